"""The orders of epochs, computed off the event loop, kept, and the next one made ahead of time."""

import asyncio
from collections import OrderedDict
from concurrent.futures import Executor

from cpstream_client.contract.plan import Indices, Plan, Shuffle, epoch_order

_Key = tuple[int, Shuffle, int, int]


class OrderCache:
    """Least recently used orders within a budget of bytes. Concurrent requests for one order share its computation."""

    def __init__(self, executor: Executor, max_bytes: int = 256 * 1024**2) -> None:
        self._executor = executor
        self._max_bytes = max_bytes
        self._orders: OrderedDict[_Key, asyncio.Future[Indices]] = OrderedDict()

    async def get(self, plan: Plan) -> Indices:
        """The order of the plan's epoch. (n,) int64, read-only by agreement."""
        # shield: a caller that goes away must not cancel what the others wait for
        return await asyncio.shield(self._start(self._key(plan, plan.epoch)))

    def prepare_next(self, plan: Plan) -> None:
        """Begin the order of the following epoch, so that its first batch does not wait for it."""
        self._start(self._key(plan, plan.epoch + 1))

    @staticmethod
    def _key(plan: Plan, epoch: int) -> _Key:
        # An order depends on seed + epoch alone, and without shuffling on neither.
        return (plan.n, plan.shuffle, 0 if plan.shuffle == "none" else plan.seed + epoch, 0)

    def _start(self, key: _Key) -> asyncio.Future[Indices]:
        order = self._orders.get(key)
        if order is None or (order.done() and order.exception() is not None):
            order = asyncio.get_running_loop().run_in_executor(self._executor, epoch_order, *key)
            self._orders[key] = order
        self._orders.move_to_end(key)
        held = sum(n * 8 for n, *_ in self._orders)
        while held > self._max_bytes and len(self._orders) > 1:
            dropped, _ = self._orders.popitem(last=False)
            held -= dropped[0] * 8
        return order
