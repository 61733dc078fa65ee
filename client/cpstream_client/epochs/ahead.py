"""Windows of an epoch gathered from a cache ahead of the loop: by a thread of its own, and by the loop's whenever it would wait.

One thread copies about half of what the memory of two cores gives, and while the loop computes it copies nothing. So a second one
gathers the next windows, as far as `most`; a loop that comes before they are done gathers the one behind them instead of waiting.
Neither waits for a core that others keep busy, as the threads of a parallel loop do for each other.
"""

import os
import threading
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

W = TypeVar("W")
G = TypeVar("G")
MOST = 6
_JOIN_TIMEOUT_S = 5.0


def gathered_ahead(windows: Sequence[W], gather: Callable[[W], G], most: int = MOST) -> Generator[G, None, None]:
    """gather(window) of each, in order. gather: safe between threads. most: how many of them are being gathered or lie ready.

    An error of gather is raised where its window is due, or a little earlier. Closing the generator ends the thread.
    """
    ahead = _Ahead(windows, gather, most)
    # A daemon, so that an interpreter that exits in the middle of a batch does not wait for it.
    thread = threading.Thread(target=ahead.help, name="cpstream-gather", daemon=True)
    thread.start()
    owner = os.getpid()
    try:
        for number in range(len(windows)):
            # A forked process has no such thread, and perhaps locks that it held.
            yield ahead.get(number) if os.getpid() == owner else gather(windows[number])
    finally:
        if os.getpid() == owner:
            ahead.close()
            if thread is not threading.current_thread():  # the garbage collector may run this anywhere
                thread.join(_JOIN_TIMEOUT_S)


class _Ahead(Generic[W, G]):
    """Two threads that take the next window each, one for itself, the other one, `help`, until there are enough."""

    def __init__(self, windows: Sequence[W], gather: Callable[[W], G], most: int) -> None:
        self._windows, self._gather, self._most = windows, gather, most
        self._taking = threading.Lock()
        self._taken = self._wanted = 0  # windows that a thread has taken; the one that the loop is at
        self._ready: dict[int, G | BaseException] = {}
        self._arrived: SimpleQueue[None] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        self._rests = self._waits = self._closed = False

    def get(self, wanted: int) -> G:
        """The window of this number, the one behind the last that was got."""
        self._wanted = wanted
        if self._rests and self._taken - wanted <= self._most // 2:
            self._rests = False
            self._room.put(None)
        while wanted not in self._ready:
            number = self._take()
            if number is not None:
                self._ready[number] = self._gather(self._windows[number])
                continue
            self._waits = True
            if wanted not in self._ready:  # else the other thread has not seen that this one waits
                self._arrived.get()
            self._waits = False
        found = self._ready.pop(wanted)
        if isinstance(found, BaseException):
            raise found
        return found

    def help(self) -> None:
        while not self._closed:
            number = self._take()
            if number is not None:
                try:
                    self._ready[number] = self._gather(self._windows[number])
                except BaseException as error:  # the loop's to see, at its place
                    self._ready[number] = error
                if self._waits:
                    self._arrived.put(None)
            elif self._taken == len(self._windows):
                return
            else:
                self._rests = True
                if self._taken - self._wanted >= self._most:  # else the loop has gone on, and not seen that this one rests
                    self._room.get()

    def close(self) -> None:
        self._closed = True
        self._room.put(None)

    def _take(self) -> int | None:
        """The number of the next window, which is the caller's to gather; None where there are enough."""
        with self._taking:
            number = self._taken
            if number == len(self._windows) or number - self._wanted >= self._most:
                return None
            self._taken += 1
            return number
