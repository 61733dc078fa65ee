"""Standard error that nobody reads, that is closed, or whose disk is full: the service goes on, and says what was lost."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from command import environment
from conftest import DEMO_DATA, poll

from cpstream_service import logs
from cpstream_service.logs import StandardError

PATIENT = "from cpstream_service import logs; logs.FLUSH_S = 60"
"""For a process whose lines a test reads after it has stood still for a while."""
LOST = re.compile(r"(\d+) log lines? lost: standard error was not read in time")


class Piped:
    """A service whose standard error is a pipe of 4 KiB, read when asked."""

    def __init__(self, folder: Path, *arguments: str, code: str = "") -> None:
        program = f"{code}\nfrom cpstream_service.__main__ import main; main()"
        options = ["--source-path", str(DEMO_DATA), "--snapshot-dir", str(folder), "--host", "127.0.0.1", "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *options, *arguments],
            env=environment(),
            stderr=subprocess.PIPE,
            pipesize=4096,
        )
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        self.said = ""
        while "no token is set" not in self.said:
            self.said += self.stderr.readline().decode()
        found = re.search(r"serving at (http://[\w.:]+)", self.said)
        assert found
        self.url = found[1]
        poll(self._answers)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/livez").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, times: int) -> None:
        """Requests with a line in the log each, by a connection each, so that all workers get some."""
        with httpx.Client(headers={"Connection": "close"}) as http:
            for _ in range(times):
                assert http.get(f"{self.url}/v1/splits/dev").status_code == 200


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[Callable[..., Piped]]:
    made: list[Piped] = []

    def make(*arguments: str, code: str = "") -> Piped:
        made.append(Piped(tmp_path, *arguments, code=code))
        return made[-1]

    yield make
    for service in made:
        service.process.kill()
        service.process.wait()
        service.stderr.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_pipe_that_nobody_reads_stops_nobody(piped: Callable[..., Piped], workers: str) -> None:
    service = piped("--workers", workers)
    service.ask(200)
    service.process.terminate()
    assert service.process.wait(90) == 0


def test_what_was_held_back_comes_when_it_is_read(piped: Callable[..., Piped]) -> None:
    service = piped(code=PATIENT)
    service.ask(200)
    service.process.terminate()
    text = service.stderr.read().decode()  # to its end, while the service ends
    assert text.count("GET /v1/splits/dev -> 200") == 200
    assert service.process.wait(90) == 0


def test_lines_that_are_lost_are_counted(piped: Callable[..., Piped]) -> None:
    service = piped(code="from cpstream_service import logs; logs.MAX_WAITING_BYTES = 20_000")
    service.ask(400)
    text = ""
    while not LOST.search(text):
        text += service.stderr.readline().decode()
        if text.count("\n") > 30:
            service.ask(1)
    service.process.terminate()
    text += service.stderr.read().decode()
    told = LOST.findall(text)
    assert len(told) == 1
    assert int(told[0]) > 100


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_pipe_whose_reader_is_gone_stops_nobody(piped: Callable[..., Piped], workers: str) -> None:
    service = piped("--workers", workers)
    service.stderr.close()
    service.ask(50)
    service.process.terminate()
    assert service.process.wait(90) == 0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FLUSH_S", 60.0)


@contextmanager
def logging_to(path: Path) -> Iterator[tuple[logging.Logger, int]]:
    """A logger over the file, and the descriptor that it writes to."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    handler = StandardError(descriptor)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    yield logger, descriptor
    handler.flush()
    handler.close()
    os.close(descriptor)


def test_a_full_disk_costs_lines_that_are_counted(tmp_path: Path) -> None:
    with logging_to(Path("/dev/full")) as (logger, descriptor):
        for number in range(3):
            logger.info("%d", number)
        logger.handlers[0].flush()
        with open(tmp_path / "log", "wb") as file:
            os.dup2(file.fileno(), descriptor)  # there is room again
        logger.info("more")
    assert (tmp_path / "log").read_text() == "3 log lines lost: No space left on device\nmore\n"


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    """A disk fills up within a line, not between two."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); r = resource.RLIMIT_FSIZE"
    program = f"""
{limit}
{PATIENT}
import logging, sys
from cpstream_service.logs import StandardError
logger = logging.Logger("test")
logger.addHandler(StandardError())
resource.setrlimit(r, (12, resource.RLIM_INFINITY))
for text in ("12345678", "12345678"):
    logger.info(text)
    logger.handlers[0].flush()
resource.setrlimit(r, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
logger.info("more")
"""
    with (tmp_path / "log").open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stderr=file, check=True)
    assert (tmp_path / "log").read_text() == "12345678\n123\n1 log line lost: File too large\nmore\n"


def test_a_line_that_cannot_be_made_is_said_and_no_more(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log") as (logger, _):
        logger.info("%d\x1b", "x")
        logger.info("\udcff é")
    assert (tmp_path / "log").read_text().startswith(r"cannot log %d\x1b: TypeError('%d format: ")
    assert (tmp_path / "log").read_text().endswith("\\udcff é\n")


def test_lines_of_workers_are_not_torn(piped: Callable[..., Piped]) -> None:
    """They share a pipe, which takes 4096 bytes in one piece."""
    service = piped("--workers", "2")
    service.ask(300)
    service.process.terminate()
    lines = service.stderr.read().decode().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", line) for line in lines)


def test_a_forked_child_logs_without_a_writer(tmp_path: Path) -> None:
    program = f"""
{PATIENT}
import logging, os
from cpstream_service.logs import StandardError
logger = logging.Logger("test")
logger.addHandler(StandardError())
logger.info("parent")
logger.handlers[0].flush()
if os.fork():
    os.wait()
else:
    logger.info("child")
    logger.handlers[0].flush()
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "parent\nchild\n"
