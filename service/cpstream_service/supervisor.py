"""Several worker processes, as uvicorn supervises them: signals are for the supervisor, which tells its workers."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from socket import socket

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors import Multiprocess

from .hangup import Hangup

_POLL_S = 0.1


class Supervisor(Multiprocess):
    """SIGTERM, SIGINT and a terminal that closes end the workers, each drained; a second signal ends the drain.

    A terminal sends Ctrl-C, and the word that it has closed, to all processes at once. A worker that heeded it and then the
    supervisor's SIGTERM would take this for the second signal. Any other SIGHUP is passed on to the workers.
    """

    def __init__(self, config: Config, sockets: list[socket], hangup: Hangup) -> None:
        super().__init__(config, sockets)
        self._hangup = hangup

    @property
    def failed(self) -> bool:
        """Whether a worker could not start."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def workers(self) -> list[int]:
        """The ids of the processes that serve, or begin to."""
        return [process.pid for process in self.processes if process.pid is not None]

    def init_processes(self) -> None:
        with _deaf_children():
            super().init_processes()

    def keep_subprocess_alive(self) -> None:
        with _deaf_children():
            super().keep_subprocess_alive()

    def handle_hup(self) -> None:
        if self._hangup.ends():
            self.handle_term()
            return
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGHUP)

    def join_all(self) -> None:
        for process in self.processes:
            while process.exitcode is None:
                process.process.join(_POLL_S)
                if self.signal_queue:
                    self.signal_queue.clear()
                    self.terminate_all()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started within never see SIGINT, nor SIGHUP before they ask for it; this one sees them at the end."""
    resource_tracker.ensure_running()  # now: when a worker begins it, it unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
