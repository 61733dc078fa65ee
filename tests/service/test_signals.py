"""What ends the service, as orchestrators, terminals and shells send it."""

import fcntl
import os
import signal
import socket
import termios
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from command import is_alive, serve, workers_of
from conftest import poll, stalled_stream

BATCHES = "/v1/splits/train/batches"
WORKERS = pytest.mark.parametrize("workers", [1, 2])


class Terminal:
    """A terminal whose foreground processes are those that `take` begins."""

    def __init__(self) -> None:
        self._ours, self._theirs = os.openpty()

    def take(self) -> None:
        os.setsid()
        os.dup2(self._theirs, 0)  # one that no process has open controls nobody
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def close(self) -> None:
        os.close(self._theirs)
        os.close(self._ours)


def rest_of(stream: socket.socket) -> bytes:
    return b"HTTP/1.1 200" + b"".join(iter(lambda: stream.recv(1 << 20), b""))


def is_whole(reply: bytes) -> bool:
    head, _, body = reply.partition(b"\r\n\r\n")
    return f"content-length: {len(body)}".encode() in head.lower()


@WORKERS
@pytest.mark.parametrize("end", [Terminal.close, lambda terminal: terminal.press(b"\x03")], ids=["closed", "ctrl-c"])
def test_a_terminal_that_closes_and_ctrl_c_let_streams_finish(
    tmp_path: Path, large: Path, workers: int, end: Callable[[Terminal], None]
) -> None:
    terminal = Terminal()
    arguments = ["--workers", str(workers), "--drain-timeout-s", "60"]
    with serve(tmp_path, *arguments, source=large, before=terminal.take) as service:
        processes = workers_of(service)
        with stalled_stream(service.url, BATCHES) as stream:
            end(terminal)
            poll(lambda: "draining" in service.log.read_text())
            assert is_whole(rest_of(stream))
        assert service.process.wait(timeout=90) == 0
        poll(lambda: not any(map(is_alive, processes)))
        assert "Traceback" not in service.log.read_text()


@WORKERS
def test_a_sighup_by_hand_ends_nothing(tmp_path: Path, workers: int) -> None:
    """Whether it has a terminal, or has never had one, as those that systemd starts."""
    terminal = Terminal()
    for number, before in enumerate((terminal.take, os.setsid)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with serve(folder, "--workers", str(workers), before=before) as service:
            processes = [service.process.pid, *workers_of(service)]
            service.process.send_signal(signal.SIGHUP)
            poll(lambda log=service.log: log.read_text().count("there is nothing to read again") == workers)
            assert [service.process.pid, *workers_of(service)] == processes
            assert httpx.get(f"{service.url}{BATCHES}").status_code == 200
            assert service.stop() == 0
    terminal.close()


@WORKERS
def test_with_nohup_a_terminal_may_close(tmp_path: Path, workers: int) -> None:
    terminal = Terminal()

    def nohup() -> None:
        terminal.take()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with serve(tmp_path, "--workers", str(workers), before=nohup) as service:
        terminal.close()
        processes = [service.process.pid, *workers_of(service)]
        for process in processes:
            os.kill(process, signal.SIGHUP)
        for _ in range(10):  # with a connection of its own each, so that both workers answer
            assert httpx.get(f"{service.url}{BATCHES}").status_code == 200
        assert [service.process.pid, *workers_of(service)] == processes
        assert service.stop() == 0


def test_a_second_ctrl_c_ends_the_drain_of_workers(tmp_path: Path, large: Path) -> None:
    terminal = Terminal()
    with serve(tmp_path, "--workers", "2", "--drain-timeout-s", "600", source=large, before=terminal.take) as service:
        with stalled_stream(service.url, BATCHES):
            terminal.press(b"\x03")
            poll(lambda: "draining" in service.log.read_text())
            terminal.press(b"\x03")
            assert service.process.wait(timeout=90) == 0
        assert "Traceback" not in service.log.read_text()
    terminal.close()
