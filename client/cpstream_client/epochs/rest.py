"""What a cache does not hold yet, asked for while the loop goes on: a window of the epoch at a time, and some of the rest with it.

An epoch is gone through in windows, some training batches each. Of a window only what is missing is asked for; the room that is
left in its request is given to samples that this epoch does not need, so that each epoch costs what streaming it would, and brings
as much that is new.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..contract.bodies import SplitInfo
from ..contract.index_batches import IndexBatches
from ..contract.plan import Indices
from ..contract.wire import DEFAULT_COLUMNS, OCTET_STREAM, split_path
from ..stream.chosen import ChosenAsk
from ..stream.course import Ask
from ..stream.reader import Expected
from ..stream.sizes import sizes_of
from .cache import SplitCache


class Rest:
    """A course (see stream/course.py): a batch for each window that misses something, or several where it is too large.

    others: (M,) what may come with it.
    """

    def __init__(self, info: SplitInfo, cache: SplitCache, windows: Sequence[Indices], others: Indices) -> None:
        self._info, self._cache, self.windows, self._others = info, cache, windows, others
        self._sizes = sizes_of(cache.dtype, DEFAULT_COLUMNS, info)
        self._most = self._sizes.rows() or len(others) + info.num_samples
        self._looking = threading.Lock()
        self._takes: list[tuple[Indices, int]] = []  # of each batch, and the number of the window that wants it
        self._window = self._other = 0
        self._needed: list[int] = []

    def more(self, first: int) -> bool:
        with self._looking:
            while len(self._takes) <= first and self._window < len(self.windows):
                self._look_at(self.windows[self._window])
                self._window += 1
            return first < len(self._takes)

    def ask(self, first: int, max_bytes: int, record_bytes: int) -> Ask | None:
        if not self.more(first):
            return None
        sizes = self._sizes
        most = max_bytes if sizes.limit is None else min(max_bytes, sizes.limit - sizes.reply)
        count = nbytes = 0
        while self.more(first + count):
            nbytes += sizes.record + len(self._takes[first + count][0]) * sizes.row
            if count and nbytes > most:
                break
            count += 1
        return self._ask(first, count)

    def rest(self, ask: Ask, done: int) -> Ask:
        return self._ask(ask.behind(done), ask.count - done)

    def left_bytes(self, first: int) -> int | None:
        return None

    def _ask(self, first: int, count: int) -> Ask:
        info, chosen = self._info, IndexBatches.of([indices for indices, _ in self._takes[first : first + count]])
        rows = chosen.sizes.tolist()
        params = {"dtype": self._cache.dtype, "columns": ",".join(DEFAULT_COLUMNS), "fingerprint": info.fingerprint}
        metadata = {"split": info.split, "fingerprint": info.fingerprint, "num_rows": str(sum(rows)), "num_batches": str(len(rows))}
        return ChosenAsk(
            method="POST",
            path=split_path(info.split, "batches"),
            params=params,
            first=first,
            rows=rows,
            expected=Expected(info.embedding_dim, self._cache.dtype, DEFAULT_COLUMNS, metadata),
            nbytes=sum(rows) * self._sizes.row,
            body=chosen.pack(),
            content_type=OCTET_STREAM,
            chosen=chosen,
        )

    def ready(self, kept: int) -> int:
        """How many of the windows are complete once so many batches have been kept."""
        return self._takes[kept][1] if self.more(kept) else len(self.windows)

    def needed(self, window: int) -> int:
        """How many samples of a window that is complete were missing."""
        return self._needed[window]

    def _look_at(self, window: Indices) -> None:
        needed = np.unique(self._cache.missing(window))
        self._needed.append(len(needed))
        wanted = np.concatenate([needed, self._some_others(len(window) - len(needed))])
        self._takes += [(wanted[low : low + self._most], self._window) for low in range(0, len(wanted), self._most)]

    def _some_others(self, count: int) -> Indices:
        others = self._others[self._other : self._other + count]
        self._other += len(others)
        return self._cache.missing(others) if len(others) else others


def others_than(windows: Sequence[Indices], cache: SplitCache, turn: int, turns: int) -> Indices:
    """What the cache misses and none of the windows holds, from this rank's part of it on. (M,) int64."""
    missing: Any = cache.missing()
    here = np.zeros(int(missing[-1]) + 1 if len(missing) else 0, np.bool_)
    here[missing] = True
    for window in windows:
        here[window[window < len(here)]] = False
    others = np.flatnonzero(here)
    return np.roll(others, -(len(others) * turn // turns))  # ranks that share a directory do not all begin with the same
