"""What the connections of one event loop know of each other: whose heads were refused of late, and which of them ask nothing."""

import asyncio
import logging
import os
import resource
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

logger = logging.getLogger("cpstream.service")

REFUSED_EVERY_S = 0.05
"""Of one client. A head that is refused takes half a millisecond, of which an answer at once would bring the next."""
CHANGED_EVERY_S = 0.005
CHANGES_WAITING = 32
"""New connections of one client, at most: each is an open file."""
MOST_S = 30.0
_REMEMBERED = 1024
_SPARE_FILES = 160
"""For files that are opened later, and connections that come before those that give way are closed: 32 in each of four ticks."""


class Refusals:
    """When each client's refused heads are answered: the first at once, the others one after the other."""

    def __init__(self) -> None:
        self._free: dict[str, float] = {}  # when each client's next one may be, the latest last

    def wait_s(self, client: str, now: float) -> float:
        """Seconds to wait before the next refusal of this client's is answered."""
        at = max(now, self._free.pop(client, now))
        self._free[client] = min(at, now + MOST_S) + REFUSED_EVERY_S
        if len(self._free) > _REMEMBERED:
            del self._free[next(iter(self._free))]
        return min(at - now, MOST_S)


class Changes:
    """When new connections of a client's may take the places of its own older ones, where there may be no more.

    Each costs a third of a millisecond, and whoever lost its place may come again at once. So `most` may at once, as after an
    epoch of many workers, and later ones CHANGED_EVERY_S after each other.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._free: dict[str, float] = {}  # when each client's next one may be, the latest last

    def wait_s(self, client: str, now: float) -> float | None:
        """Seconds to wait before the next one takes a place; None if others of the client's wait already, as many as may."""
        at = max(now - (self._most - 1) * CHANGED_EVERY_S, self._free.get(client, 0.0))
        if at - now > CHANGES_WAITING * CHANGED_EVERY_S:
            return None
        self._free.pop(client, None)
        self._free[client] = at + CHANGED_EVERY_S
        if len(self._free) > _REMEMBERED:
            del self._free[next(iter(self._free))]
        return max(0.0, at - now)


class Starts:
    """Begins requests in turn: one of each client's a tick of the event loop, so that hundreds at once keep nobody waiting."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Callable[[], None]]] = {}  # of clients of which one was begun in this tick or the last

    def start(self, client: str, begin: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Call `begin` now, or in a later tick."""
        if client in self._waiting:
            self._waiting[client].append(begin)
            return
        self._waiting[client] = deque()
        loop.call_soon(self._next, client, loop)
        begin()

    def _next(self, client: str, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._waiting[client]
        if not waiting:
            del self._waiting[client]
            return
        loop.call_soon(self._next, client, loop)
        waiting.popleft()()


class Closable(Hashable, Protocol):
    """A connection."""

    def close_if_idle(self) -> bool: ...


T = TypeVar("T", bound=Closable)


class Silent(Generic[T]):
    """Connections that ask nothing now. They give way to new ones where there may be no more: the oldest of whoever has most."""

    def __init__(self, most: int | None = None) -> None:
        self.most = _most_connections() if most is None else most
        self._of: dict[str, dict[T, None]] = {}

    def add(self, client: str, connection: T) -> None:
        self._of.setdefault(client, {})[connection] = None

    def discard(self, client: str, connection: T) -> None:
        found = self._of.get(client, {})
        found.pop(connection, None)
        if not found:
            self._of.pop(client, None)

    def has_most(self, client: str) -> bool:
        """Whether it is this client's that would give way."""
        return client in self._of and len(self._of[client]) == max(map(len, self._of.values()))

    def make_room(self, newest: T) -> bool:
        """Close one, but not the newest. Whether there was one to close."""
        for client in sorted(self._of, key=lambda client: -len(self._of[client])):
            for connection in self._of[client]:
                if connection is not newest and connection.close_if_idle():
                    self.discard(client, connection)
                    return True
        return False


def _most_connections() -> int:
    """As many as this process may have open files for."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft - len(os.listdir("/dev/fd")) - min(_SPARE_FILES, soft // 3) if soft != resource.RLIM_INFINITY else 2**31


class Seldom:
    """What is said at most once a second, with how often it has happened since."""

    def __init__(self, every_s: float = 1.0) -> None:
        self._every_s, self._said_s, self._count = every_s, -every_s, 0

    def count(self) -> int:
        """It has happened once more: how often since it was said, or 0 where that was just now."""
        self._count += 1
        if time.monotonic() - self._said_s < self._every_s:
            return 0
        self._said_s, count, self._count = time.monotonic(), self._count, 0
        return count


class Crowd:
    """What the connections of one event loop share. count: of those that are open."""

    def __init__(self) -> None:
        self.refusals, self.silent, self.starts = Refusals(), Silent[Closable](), Starts()
        self.changes = Changes(self.silent.most)
        self.count = 0
        self._seldom: defaultdict[str, Seldom] = defaultdict(Seldom)

    def tell(self, what: str, *limit: int) -> None:
        """Log it, with how often it happened, once a second."""
        if count := self._seldom[what].count():
            logger.warning(what, count, *limit)

    def is_full(self) -> bool:
        return self.count >= self.silent.most

    def wait_s(self, client: str, now: float) -> float | None:
        """Seconds for which a connection of this client's that has just come must wait; None where it is to be refused."""
        if not self.is_full() or not self.silent.has_most(client):
            return 0.0
        return self.changes.wait_s(client, now)


_crowds: "WeakKeyDictionary[object, Crowd]" = WeakKeyDictionary()


def crowd_of(loop: object) -> Crowd:
    """That of the connections of this event loop."""
    found = _crowds.get(loop)
    if found is None:
        found = _crowds[loop] = Crowd()
    return found
