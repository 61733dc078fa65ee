"""Stopping without breaking a stream: at SIGTERM the service goes on listening, but takes no new work, until it is idle.

uvicorn closes its listeners at once on a signal, so that clients and load balancers see refused connections while old streams run.
Here the signal only starts the drain: /readyz and /v1 answer 503 draining, open replies get drain_timeout_s, and then, or on a
second signal, uvicorn's own handler is called. It works the same in a single process and in each worker of several.
"""

import asyncio
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger("cpstream.service")

POLL_S = 0.05


END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What ends the service; hangup.py makes a SIGTERM of a terminal that closes."""


class Drain:
    """Whether the service is draining, and how many requests it still answers, as Access counts them."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.draining = False
        self.open_requests = 0
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, the signals to end and the death of the parent process start the drain. No-op outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        exits: dict[int, Any] = {number: signal.getsignal(number) for number in END_SIGNALS}

        def stop(number: int) -> None:
            handler = exits[number]
            if callable(handler):
                handler(number, None)

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._begin, number, stop)

        def orphaned() -> None:
            assert sentinel is not None  # noqa: S101
            loop.remove_reader(sentinel)
            self._begin(signal.SIGTERM, stop)

        for number in exits:
            signal.signal(number, handle)
        parent = multiprocessing.parent_process()
        sentinel = None if parent is None else parent.sentinel
        if sentinel is not None:  # a supervisor that was killed cannot stop its workers: they would keep the port for ever
            loop.add_reader(sentinel, orphaned)
        try:
            yield
        finally:
            for number, handler in exits.items():
                signal.signal(number, handler)
            if sentinel is not None:
                loop.remove_reader(sentinel)

    def _begin(self, number: int, stop: Callable[[int], None]) -> None:
        if self.draining:
            stop(number)
            return
        self.draining = True
        self._task = asyncio.ensure_future(self._finish(number, stop))

    async def _finish(self, number: int, stop: Callable[[int], None]) -> None:
        if self.open_requests:
            logger.info("draining: %d open requests get %g s to finish", self.open_requests, self.timeout_s)
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        while self.open_requests and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - a poll costs no request anything
            await asyncio.sleep(POLL_S)
        stop(number)
