"""Runs an iterator in a background thread, ahead of its consumer, within a byte budget."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
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
    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False
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
            with self._changed:
                self._ended = self._backlog.is_whole = True
                self._changed.notify_all()

    def _take(self, iterator: Iterator[T]) -> None:
        for item in iterator:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog.nbytes < self._backlog.max_bytes or self._closed)
                if self._closed:
                    return
                self._items.append(item)
                self._backlog.nbytes += item.nbytes
                self._changed.notify_all()
            del item  # or this thread would keep its buffer from being used again

    def drain(self, is_filled: Callable[[], bool], met: Callable[[int, int], None]) -> Iterator[T]:
        """The consumer. is_filled: whether the thread lives; a forked process has the queue, but not the thread."""
        while True:
            with self._changed:
                if self._items or not self._ended:
                    met(len(self._items), self._backlog.nbytes)
                while not (self._items or self._ended):
                    if not self._changed.wait(_CHECK_EVERY_S) and not is_filled() and not self._ended:
                        raise CpstreamError(
                            "the thread that fetches batches is gone; was the process forked in the middle of an epoch?"
                        )
                if not self._items:
                    break
                item = self._items.popleft()
                self._backlog.nbytes -= item.nbytes
                self._changed.notify_all()
            yield item
            del item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
