"""What a training loop waited for: figures of a dataset's iterations, in the loop's process and in its DataLoader workers.

The wait is taken where the loop asks, not where bytes arrive: what is fetched ahead while the loop computes costs it nothing. All
that is not the loop's wait (fetch, verify, copy) goes on in the background, unless the loop is faster.
"""

import ctypes
import math
import os
import time
from collections.abc import Iterable, Iterator
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any, TypeVar

import numpy as np

from ..locks import new_lock
from ..stream.lanes import Flow
from ..stream.messages import Memory

T = TypeVar("T")
_WORKERS = 63
"""That have a place of their own; more of them share."""
_PER_DECADE = 64
"""Buckets of the histogram of waits: a percentile is right within 2 %."""
_FIRST_S = 1e-7
_BUCKETS = 10 * _PER_DECADE
_FOLDED_FROM = 4096

clock = time.perf_counter


_SECONDS = ("fetch_s", "verify_s", "put_s", "gather_s")
_COUNTS = ("requests", "connections", "faults", "refused", "nbytes", "hits", "misses", "asked", "depth", "ahead_bytes")


class _Slot(ctypes.Structure):
    """Of one process. Each field is written by one of its threads, or under the lock."""

    _fields_ = (*((name, ctypes.c_double) for name in _SECONDS), *((name, ctypes.c_int64) for name in _COUNTS))


class Tally:
    """Adds up. For the loop's thread and the one that fetches; workers that are forked or spawned add to the same memory."""

    def __init__(self) -> None:
        self._slots: Any = RawArray(_Slot, 1 + _WORKERS)
        self._owner = os.getpid()
        self._slot: Any = self._slots[0]
        self._flowing = new_lock()
        self._waits: list[float] = []
        self._since: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._histogram = np.zeros(_BUCKETS, np.int64)
        self._steps, self._total_s, self._most_s = 0, 0.0, 0.0
        self._looped_s = 0.0  # in iterations that are over
        self._since = None if self._since is None else clock()  # that is not over

    def reset(self) -> None:
        """Begin anew, workers included."""
        ctypes.memset(self._slots, 0, ctypes.sizeof(self._slots))
        self._waits.clear()
        self._clear()

    def __reduce__(self) -> tuple[Any, ...]:
        """On its way to a child process it shares the memory; any other copy begins anew."""
        return (_sharing, (self._slots,)) if get_spawning_popen() is not None else (Tally, ())

    def in_worker(self, worker: int) -> None:
        """This process is a DataLoader worker: it adds to a place of its own."""
        self._slot = self._slots[1 + worker % _WORKERS]

    # What the loop does

    def waited(self, seconds: float) -> None:
        """The loop has waited for a step's batch."""
        self._waits.append(seconds)
        if len(self._waits) >= _FOLDED_FROM:
            self._fold()

    def at_once(self, steps: int) -> None:
        """The loop has got so many batches that lay ready."""
        self._steps += steps
        self._histogram[0] += steps

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, each a step's batch."""
        iterator = iter(items)
        self.begin_loop()
        try:
            while True:
                asked = clock()
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                self.waited(clock() - asked)
                yield item
                del item
        finally:
            self.end_loop()

    def begin_loop(self) -> None:
        """From here on the loop iterates: what it does not wait for is its own time."""
        self._since = clock()

    def end_loop(self) -> None:
        if self._since is not None:
            self._looped_s += clock() - self._since
        self._since = None

    def met(self, depth: int, nbytes: int) -> None:
        """What had been fetched ahead when the loop asked: record batches, and their bytes."""
        slot = self._slot
        slot.asked += 1
        slot.depth += depth
        slot.ahead_bytes += nbytes

    def gathered(self, seconds: float, rows: int) -> None:
        """Samples that came from the cache."""
        self._slot.gather_s += seconds
        self._slot.hits += rows

    def missed(self, rows: int, *, kept: int = 0) -> None:
        """Samples that the service sent. kept: so many of them are gathered from the cache then, and are no hits."""
        self._slot.misses += rows
        self._slot.hits -= kept

    def took(self, nbytes: int) -> None:
        """The reply to a request of random access."""
        self._slot.requests += 1
        self._slot.nbytes += nbytes

    # What the fetching thread does

    def put(self, seconds: float) -> None:
        self._slot.put_s += seconds

    def flowed(self, flow: Flow, seen: Flow, memory: Memory, read: list[float]) -> None:
        """What a fetcher has done since the last time. seen, read: what it and the memory's clocks said then, and say now."""
        with self._flowing:
            slot = self._slot
            for name in ("requests", "faults", "refused", "nbytes"):
                value = getattr(flow, name)
                setattr(slot, name, getattr(slot, name) + value - getattr(seen, name))
                setattr(seen, name, value)
            slot.connections = max(slot.connections, flow.connections)
            fetch_s, verify_s = memory.times.fetch_s, memory.times.verify_s
            slot.fetch_s += fetch_s - read[0]
            slot.verify_s += verify_s - read[1]
            read[:] = fetch_s, verify_s

    # What came of it

    def _fold(self) -> None:
        waits = np.array(self._waits)
        self._waits.clear()
        if not len(waits):
            return
        self._steps += len(waits)
        self._total_s += float(waits.sum())
        self._most_s = max(self._most_s, float(waits.max()))
        places = np.log10(np.maximum(waits, _FIRST_S) / _FIRST_S) * _PER_DECADE
        self._histogram += np.bincount(np.minimum(places.astype(np.int64), _BUCKETS - 1), minlength=_BUCKETS)

    def _percentile_ms(self, share: float) -> float:
        """The middle of the bucket in which it lies; the first holds what lay ready."""
        if not self._steps:
            return 0.0
        bucket = int(np.searchsorted(np.cumsum(self._histogram), math.ceil(share * self._steps)))
        return 0.0 if not bucket else min(self._most_s, _FIRST_S * 10 ** ((bucket + 0.5) / _PER_DECADE)) * 1e3

    def figures(self) -> dict[str, Any]:
        """As JSON has them; docs/client.md says what each is."""
        self._fold()
        total: dict[str, Any] = {name: sum(getattr(slot, name) for slot in self._slots) for name in (*_SECONDS, *_COUNTS)}
        steps, samples = self._steps, total["hits"] + total["misses"]
        looped_s = self._looped_s + (0.0 if self._since is None else clock() - self._since)
        own_s = max(0.0, looped_s - self._total_s)
        return {
            "steps": steps,
            "exposed_ms": {
                "total": self._total_s * 1e3,
                "mean": self._total_s * 1e3 / steps if steps else 0.0,
                "p50": self._percentile_ms(0.5),
                "p99": self._percentile_ms(0.99),
                "max": self._most_s * 1e3,
            },
            "loop_ms": {"total": own_s * 1e3, "mean": own_s * 1e3 / steps if steps else 0.0},
            "background_ms": {
                "fetch": total["fetch_s"] * 1e3,
                "verify": total["verify_s"] * 1e3,
                "copy": (total["put_s"] + total["gather_s"]) * 1e3,
            },
            "queue": {
                "depth": total["depth"] / total["asked"] if total["asked"] else 0.0,
                "bytes": total["ahead_bytes"] / total["asked"] if total["asked"] else 0.0,
            },
            "requests": total["requests"],
            "connections": max(slot.connections for slot in self._slots),
            "reconnects": total["faults"],
            "refused": total["refused"],
            "bytes": total["nbytes"],
            "cache": {"hits": total["hits"], "misses": total["misses"], "hit_rate": total["hits"] / samples if samples else 0.0},
        }


def _sharing(slots: Any) -> Tally:
    tally = Tally()
    tally._slots = slots
    tally._slot = slots[0]
    return tally
