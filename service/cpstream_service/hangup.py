"""SIGHUP: what access files hold is read again; or its terminal has closed, which ends the service, unless nohup has it live on.

The kernel takes a terminal that closes from all of its processes before it signals any of them, so that /dev/tty is gone by then;
who sends the signal by hand leaves it there. A service that never had one, as those of systemd and of containers, reads again.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True)
class Hangup:
    """What is known at the start. is_ignored: by nohup; had_terminal: one whose end would be this service's."""

    is_ignored: bool
    had_terminal: bool

    @classmethod
    def at_start(cls) -> "Hangup":
        return cls(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, _has_terminal())

    def ends(self) -> bool:
        """Whether the SIGHUP that has just come says that the terminal has closed, and that this is the end."""
        return self.had_terminal and not self.is_ignored and not _has_terminal()


@contextmanager
def on_hangup(hangup: Hangup, read_again: Callable[[], None]) -> Iterator[None]:
    """Within, SIGHUP does what it should to the process of an app. No-op outside the main thread.

    A worker is born with the signal blocked, and leaves it to its supervisor to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def react() -> None:
        if not hangup.ends():
            read_again()
        elif multiprocessing.parent_process() is None:
            signal.raise_signal(signal.SIGTERM)  # as whoever handles that

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(react)

    before = signal.signal(signal.SIGHUP, handle)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGHUP, before)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
