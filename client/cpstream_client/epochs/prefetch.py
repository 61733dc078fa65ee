"""Runs an iterator in a background thread, ahead of its consumer, within a byte budget."""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

from ..errors import CpstreamError
from ..stream.backlog import Backlog
from ..transport.tracing import thread

_JOIN_TIMEOUT_S = 5.0
_CHECK_EVERY_S = 1.0


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


def prefetch(
    items: Iterable[T], backlog: Backlog, abort: Callable[[], None], met: Callable[[int, int], None]
) -> Generator[T, None, None]:
    """The same items in the same order. At least one is fetched ahead, however large. backlog: says how much waits here.
    met: told how many items, and bytes, lay ready when the consumer asked for one.

    Any error in the thread is raised here, where the consumer is, after the items before it. Closing the generator (leaving the
    loop, an exception, the end of the interpreter) calls `abort`, which must make the iterator return soon, and waits for the
    thread.
    """
    queue = _Queue[T](backlog)
    filler = thread(queue.fill, items, name="cpstream-prefetch")
    filler.start()
    owner = os.getpid()
    try:
        yield from queue.drain(filler.is_alive, met)
    finally:
        if os.getpid() == owner:  # a forked process has the parent's sockets, and locks that no thread of its own will release
            queue.close()
            abort()
            if filler is not threading.current_thread():  # the garbage collector may run this anywhere
                filler.join(_JOIN_TIMEOUT_S)


class _Queue(Generic[T]):
    """Of one thread that fills it and one that drains it. SimpleQueue is C, where a Condition is a page of Python a hand-over."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._items: SimpleQueue[T | None] = SimpleQueue()  # None: there are no more
        self._room: SimpleQueue[None] = SimpleQueue()
        self._is_full = self._closed = False
        self._error: BaseException | None = None

    def fill(self, items: Iterable[T]) -> None:
        """The thread: ends when the items do, at their first error, or when the consumer has gone."""
        try:
            iterator = iter(items)
            try:
                self._take(iterator)
            finally:
                if isinstance(iterator, Generator):
                    iterator.close()
        except BaseException as error:
            self._error = error
        finally:
            self._backlog.is_whole = True
            self._items.put(None)

    def _take(self, iterator: Iterator[T]) -> None:
        backlog = self._backlog
        for item in iterator:
            while backlog.nbytes >= backlog.max_bytes and not self._closed:
                self._is_full = True
                if backlog.nbytes >= backlog.max_bytes and not self._closed:  # else the consumer may not have seen that it waits
                    self._room.get()
            if self._closed:
                return
            backlog.put_bytes += item.nbytes
            self._items.put(item)
            del item  # or this thread would keep its buffer from being used again

    def drain(self, is_filled: Callable[[], bool], met: Callable[[int, int], None]) -> Iterator[T]:
        """The consumer. is_filled: whether the thread lives; a forked process has the queue, but not the thread."""
        backlog = self._backlog
        while True:
            depth = self._items.qsize() - backlog.is_whole  # the mark of the end is none
            if depth > 0 or not backlog.is_whole:
                met(max(0, depth), backlog.nbytes)
            item = self._next(is_filled)
            if item is None:
                break
            backlog.got_bytes += item.nbytes
            if self._is_full:
                self._is_full = False
                self._room.put(None)
            yield item
            del item
        if self._error is not None:
            raise self._error

    def _next(self, is_filled: Callable[[], bool]) -> T | None:
        while True:
            try:
                return self._items.get(timeout=_CHECK_EVERY_S)
            except Empty:
                if not is_filled() and self._items.empty():
                    raise CpstreamError(
                        "the thread that fetches batches is gone; was the process forked in the middle of an epoch?"
                    ) from None

    def close(self) -> None:
        self._closed = True
        self._room.put(None)
        while not self._items.empty():  # what lies here shall keep no buffer
            self._items.get()
