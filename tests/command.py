"""`cpstream` as people and orchestrators run it: real processes, with their files in a folder of the test.

run(*arguments, **env)         a command that ends
serve(folder, *arguments)      a service on a port that it chooses -> Service, once it is ready
"""

import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from conftest import DEMO_DATA, poll

COMMAND = [sys.executable, "-m", "cpstream_service"]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CPSTREAM_")} | {"COLUMNS": "120"} | more


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], env=environment(**env), capture_output=True, text=True, timeout=120)


@dataclass
class Service:
    """A `cpstream serve` process. log: its stderr, in a file."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=90)


@contextmanager
def serve(
    folder: Path,
    *arguments: str,
    source: Path = DEMO_DATA,
    before: Callable[[], object] | None = None,
    verify: ssl.SSLContext | bool = True,
    **env: str,
) -> Iterator[Service]:
    """Run `cpstream serve` with its files under `folder`, on a port that it chooses. before: what its process calls first."""
    log = folder / "log"
    options = ["--source-path", str(source), "--host", "127.0.0.1", "--port", "0"]
    if "--snapshot-dir" not in arguments:
        options += ["--snapshot-dir", str(folder / "snapshots")]
    (folder / "tmp").mkdir(exist_ok=True)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "serve", *options, *arguments],
            env=environment(TMPDIR=str(folder / "tmp"), **env),
            stderr=stderr,
            preexec_fn=before,
        )
    try:
        poll(lambda: process.poll() is not None or "serving at" in log.read_text())
        found = re.search(r"serving at (https?://[\w.:]+)", log.read_text())
        assert found, log.read_text()
        service = Service(process, found[1], log)
        poll(lambda: answers(service.url, verify))
        yield service
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def answers(url: str, verify: ssl.SSLContext | bool = True) -> bool:
    try:
        return httpx.get(f"{url}/readyz", verify=verify).status_code == 200
    except httpx.TransportError:
        return False


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers_of(service: "Service") -> list[int]:
    return [child for child in children_of(service.process.pid) if is_alive(child) and "spawn_main" in command_of(child)]


def command_of(pid: int) -> str:
    """Its command line; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends meanwhile
            found += map(int, (task / "children").read_text().split())
    return found
