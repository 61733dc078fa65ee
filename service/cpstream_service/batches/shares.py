"""Who is next: what there is too little of is given to clients in turn, however many connections each of them has."""

import asyncio
from collections import Counter, deque

_REMEMBERED = 1024


class Shares:
    """An amount, of turns or threads or bytes, of which requests hold some for a while. For one event loop.

    What does not suffice is waited for: the client that was last served the longest ago is next, and of its requests that which
    came first. each: how much one client may hold. A request alone may hold more than there is.
    """

    def __init__(self, amount: int, each: int | None = None) -> None:
        self.held = 0
        self._amount, self._each = amount, each
        self._held_by: Counter[str] = Counter()
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._served: dict[str, int] = {}  # when each client was last served, counted in services; the latest come last
        self._services = 0

    def take(self, client: str, amount: int = 1) -> bool:
        """Hold that much from now on, if it need not be waited for. Whether it is held."""
        if self._waiting or self._is_full(client, amount) or not self._is_there(amount):
            return False
        self._hold(client, amount)
        return True

    async def wait(self, client: str, amount: int = 1) -> None:
        """Hold that much as soon as it is this client's turn."""
        future = asyncio.get_running_loop().create_future()
        entry = amount, future
        self._waiting.setdefault(client, deque()).append(entry)
        self._serve()
        try:
            await future
        except BaseException:
            if future.done() and not future.cancelled():  # it was given just before
                self.give(client, amount)
            elif entry in self._waiting.get(client, ()):
                self._dequeue(client, entry)
                self._serve()
            raise

    def give(self, client: str, amount: int = 1) -> None:
        """Hold that much no longer."""
        self.held -= amount
        if self._each is not None:
            self._held_by[client] -= amount
            if not self._held_by[client]:
                del self._held_by[client]
        if self._waiting:
            self._serve()

    def _is_full(self, client: str, amount: int) -> bool:
        """Whether the client holds as much as one may."""
        return self._each is not None and client in self._held_by and self._held_by[client] + amount > self._each

    def _is_there(self, amount: int) -> bool:
        return not self.held or self.held + amount <= self._amount

    def _hold(self, client: str, amount: int) -> None:
        self.held += amount
        if self._each is not None:
            self._held_by[client] += amount
        self._services += 1
        self._served.pop(client, None)
        self._served[client] = self._services
        if len(self._served) > _REMEMBERED:
            del self._served[next(iter(self._served))]

    def _serve(self) -> None:
        """Give to those who wait, for as long as there is something."""
        while self._waiting:
            entitled = list(self._waiting)
            if self._each is not None:
                entitled = [client for client, queue in self._waiting.items() if not self._is_full(client, queue[0][0])]
                if not entitled:
                    return
            client = min(entitled, key=lambda client: self._served.get(client, 0))
            entry = amount, future = self._waiting[client][0]
            if not future.done() and not self._is_there(amount):  # what is wanted next is not passed over
                return
            self._dequeue(client, entry)
            if not future.done():  # by its cancellation
                self._hold(client, amount)
                future.set_result(None)

    def _dequeue(self, client: str, entry: tuple[int, asyncio.Future[None]]) -> None:
        self._waiting[client].remove(entry)
        if not self._waiting[client]:
            del self._waiting[client]
