"""The rest of a split, which this rank's epoch does not bring: fetched while the loop computes and what is fetched ahead waits."""

import os
import threading
import time
from dataclasses import replace

import numpy as np

from ..contract.bodies import SplitInfo
from ..contract.plan import Indices
from ..errors import CpstreamError
from ..stream.backlog import Backlog
from ..stream.fetch import EpochFetcher
from ..stream.lanes import Flow
from ..stream.messages import Memory
from ..transport.pace import processors
from ..transport.retry import Retry
from ..transport.service import Service
from ..transport.tracing import thread
from .budget import local_world_size
from .cache import SplitCache
from .rest import Rest, others_than
from .tally import Tally

SHARE = 0.05
"""Of this rank's processors: so much of a loop that uses all of them it may cost."""
_REQUEST_BYTES = 4 * 1024**2
_LOOK_EVERY_S = 0.02
_JOIN_TIMEOUT_S = 5.0


class Filler:
    """A thread of one iteration; `close` ends it. Faults end it, too: who needs what is missing will ask for it.

    windows: what the iteration brings itself. turn, turns: this rank's, of those that share the cache.
    """

    def __init__(
        self,
        service: Service,
        info: SplitInfo,
        cache: SplitCache,
        windows: list[Indices],
        backlog: Backlog,
        memory: Memory,
        tally: Tally,
        rank: tuple[int, int],
    ) -> None:
        self._service = replace(service, request_bytes=_REQUEST_BYTES, retry=Retry(timeout_s=0))
        self._info, self._cache, self._windows, self._rank = info, cache, windows, rank
        self._backlog, self._memory, self._tally = backlog, memory, tally
        self._fetcher: EpochFetcher | None = None
        self._closed = threading.Event()
        self._owner = os.getpid()
        self._thread = thread(self._run, name="cpstream-fill")
        self._thread.start()

    def close(self) -> None:
        if os.getpid() != self._owner:  # a forked process has the parent's sockets, and locks that nobody will release
            return
        self._closed.set()
        if self._fetcher is not None:
            self._fetcher.abort()
        if self._thread is not threading.current_thread():  # the garbage collector may run this anywhere
            self._thread.join(_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        others = others_than(self._windows, self._cache, *self._rank)
        rows = max(1, _REQUEST_BYTES // 4 // (self._info.embedding_dim * np.dtype(self._cache.dtype).itemsize))
        pieces = [others[low : low + rows] for low in range(0, len(others), rows)]
        rest = Rest(self._info, self._cache, pieces, others[:0])
        self._fetcher = fetcher = EpochFetcher(self._service, rest, self._memory, self._rank[0], max_connections=1)
        seen, read = Flow(), [0.0, 0.0]
        batches = iter(fetcher)
        try:
            while self._is_idle():
                began = time.thread_time()
                batch = next(batches, None)
                if batch is None:
                    return
                self._cache.put(batch)
                del batch
                self._tally.flowed(fetcher.flow, seen, self._memory, read)
                self._closed.wait((time.thread_time() - began) * (1 / _processors() / SHARE - 1))
        except CpstreamError:
            return

    def _is_idle(self) -> bool:
        """Waits until nothing can be fetched ahead for the loop; False when the iteration is over."""
        backlog = self._backlog
        while not self._closed.is_set():
            if backlog.is_whole or backlog.nbytes >= backlog.max_bytes:
                return True
            self._closed.wait(_LOOK_EVERY_S)
        return False


def _processors() -> float:
    """Of this rank, of those that share the machine; a pause that is negative is none."""
    return min(1 / SHARE, processors() / local_world_size())
