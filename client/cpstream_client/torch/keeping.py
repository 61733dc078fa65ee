"""What a dataset's `cache` names, opened: "auto" is memory where the split fits, and no cache where it does not."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import get_worker_info

from ..buffers import Bytes, allocate_aligned
from ..contract.bodies import SplitInfo
from ..contract.plan import Indices, Plan
from ..contract.randperm import randperm
from ..contract.wire import Dtype
from ..epochs.budget import BUDGET, Verdict
from ..epochs.cache import MemoryCache, SplitCache, cache_bytes
from ..epochs.file_cache import FileCache, remove_files
from ..epochs.tally import Tally
from .device import DeviceCache

Cache = str | os.PathLike[str] | None
Kind = Literal["memory", "device", "directory", "none"]

logger = logging.getLogger("cpstream.client")


@dataclass(frozen=True, eq=False)
class Kept:
    """A cache, or none, and why. verdict: of the budget, where it was asked; it holds the memory for as long as it lives."""

    kind: Kind
    why: str
    cache: SplitCache | None = None
    verdict: Verdict | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}" if self.why else self.kind


def check_cache(cache: object) -> None:
    """Raises TypeError for what names no cache."""
    if cache is not None and not isinstance(cache, str | os.PathLike):
        raise TypeError(f"cache is {cache!r}; it must be 'auto', 'memory', 'device', the path of a directory, or None")


def keep(
    cache: Cache,
    info: SplitInfo,
    dtype: Dtype,
    device: str | torch.device | None,
    *,
    embeddings: bool = True,
    allocate: Callable[[int], Bytes] = allocate_aligned,
) -> Kept:
    """The cache that a dataset's `cache` and `device` name. embeddings: whether any are asked for.

    Raises ValueError for one that lives in one process, in a DataLoader worker.
    """
    kept = _keep(cache, info, dtype, device, embeddings, allocate)
    logger.debug("split %s, cache=%r: %s", info.split, cache, str(kept))  # who keeps the record shall not keep the cache
    return kept


def _keep(
    cache: Cache,
    info: SplitInfo,
    dtype: Dtype,
    device: str | torch.device | None,
    embeddings: bool,
    allocate: Callable[[int], Bytes],
) -> Kept:
    if cache is None:
        return Kept("none", "")
    if cache in ("memory", "device"):
        refuse_in_workers(cache)
    if cache == "memory":
        verdict = BUDGET.take(cache_bytes(info, dtype))
        return Kept("memory", verdict.why, MemoryCache(info, dtype, allocate), verdict)
    if cache == "device":
        on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return Kept("device", f"on {on} as asked for", DeviceCache(info, dtype, on))
    if cache != "auto":
        return Kept("directory", f"in {os.fspath(cache)} as asked for", FileCache(cache, info, dtype))
    if get_worker_info() is not None:
        return Kept("none", "each DataLoader worker would fill its own")
    if not embeddings:
        return Kept("none", "no embeddings are asked for")
    verdict = BUDGET.ask(cache_bytes(info, dtype))
    if not verdict.granted:
        return Kept("none", verdict.why, None, verdict)
    try:
        return Kept("memory", verdict.why, MemoryCache(info, dtype, allocate), verdict)
    except MemoryError:  # a limit of the process that nothing else tells of, such as ulimit -v
        return Kept("none", f"the system refuses {cache_bytes(info, dtype) / 1e6:,.0f} MB")


def remove_kept(cache: Cache, fingerprint: str) -> None:
    """Delete what the cache that is named keeps of this data on disk; what is in memory goes with the last reference to it."""
    if cache is not None and cache not in ("auto", "memory", "device"):
        remove_files(cache, fingerprint)


def stats_of(tally: Tally, kept: Kept | None) -> dict[str, Any]:
    """The figures of a dataset, with what it keeps, and why."""
    figures = tally.figures()
    verdict = kept.verdict if kept is not None else None
    figures["cache"] |= {
        "kind": kept.kind if kept is not None else None,
        "why": kept.why if kept is not None else "nothing has been asked for yet",
        "bytes": verdict.nbytes if verdict is not None and verdict.granted else 0,
        "budget_bytes": verdict.budget_bytes if verdict is not None else None,
    }
    return figures


def refuse_in_workers(cache: Any) -> None:
    if get_worker_info() is not None:
        raise ValueError(
            f"cache={cache!r} lives in one process, and each DataLoader worker would fill its own; use num_workers=0, "
            "which is as fast with a cache, or cache='/some/directory', which processes share"
        )


def order_of(plan: Plan) -> Indices:
    """Plan.order, by torch itself where that gives the same, several times as fast. (n,) int64."""
    # From 2^32 / 20 on torch uses another method than the plan.
    if plan.shuffle != "uniform" or plan.n >= 2**32 // 20 or not _torch_agrees():
        return plan.order()
    return _torchs(plan.n, plan.seed + plan.epoch)


_agrees: list[bool] = []


def _torch_agrees() -> bool:
    """Whether this torch shuffles as the plan says, which is what the service goes by."""
    if not _agrees:
        _agrees.append(bool((_torchs(1000, 1) == randperm(1000, 1)).all()))
    return _agrees[0]


def _torchs(n: int, seed: int) -> Indices:
    order: Indices = torch.randperm(n, generator=torch.Generator().manual_seed(seed & 0xFFFFFFFF)).numpy()
    return order
