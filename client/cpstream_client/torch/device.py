"""From host memory to an accelerator: copies on a side stream, one batch ahead of the loop, and a cache that lives there."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from ..buffers import ALIGNMENT, Bytes
from ..contract.bodies import SplitInfo
from ..contract.plan import Indices
from ..contract.wire import Dtype
from ..stream.reader import Batch

Item = tuple[Any, ...]


def allocate_pinned(nbytes: int) -> Bytes:
    """Page-locked memory, which the device copies from without the CPU. (nbytes,) uint8, aligned to 64 bytes."""
    memory: Bytes = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8, pin_memory=True).numpy()
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + nbytes]


def to_device(items: Iterable[Item], device: torch.device) -> Iterator[Item]:
    """The same items with their tensors on `device`. While the loop computes on one, the next is being copied.

    Asynchronous only from pinned memory (allocate_pinned, or DataLoader's pin_memory). What is not a tensor passes unchanged.
    """
    copier = _Copier(device)
    ahead: _Copied | None = None
    for item in items:
        copied = copier.copy(item)
        del item
        if ahead is not None:
            yield copier.receive(ahead)
        ahead = copied
    if ahead is not None:
        yield copier.receive(ahead)


class _Copied:
    """A copy under way: its result, the host memory that it reads, and the event that tells when it is done."""

    __slots__ = ("done", "item", "source")

    def __init__(self, item: Item, source: Item, done: Any) -> None:
        self.item, self.source, self.done = item, source, done


class _Copier:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: Any = torch.get_device_module(device)
        self._side = self._streams.Stream(device)
        self._reading: deque[_Copied] = deque()  # host memory must not be used again while the device reads it

    def copy(self, item: Item) -> _Copied:
        with self._streams.stream(self._side):
            result = tuple(part.to(self._device, non_blocking=True) if isinstance(part, torch.Tensor) else part for part in item)
            done = self._side.record_event()
        copied = _Copied(result, item, done)
        self._reading.append(copied)
        while self._reading and self._reading[0].done.query():
            self._reading.popleft()
        return copied

    def receive(self, copied: _Copied) -> Item:
        """Make the current stream wait for the copy (not the CPU), and tell the allocator that it uses the result, too."""
        current = self._streams.current_stream(self._device)
        current.wait_event(copied.done)
        for part in copied.item:
            if isinstance(part, torch.Tensor):
                part.record_stream(current)
        return copied.item


class DeviceCache:
    """A whole split in the memory of a device; batches are gathered there. A SplitCache whose arrays are tensors."""

    in_host_memory = False

    def __init__(self, info: SplitInfo, dtype: Dtype, device: torch.device) -> None:
        self.dtype: Dtype = dtype
        n = info.num_samples
        self._device = device
        self._embeddings = torch.empty((n, info.embedding_dim), dtype=getattr(torch, dtype), device=device)
        self._cps = torch.empty(n, device=device)
        self._has = np.zeros(n, np.bool_)

    def missing(self, among: Indices | None = None) -> Indices:
        return np.flatnonzero(~self._has) if among is None else among[~self._has[among]]

    def put(self, batch: Batch) -> None:
        assert batch.index is not None  # noqa: S101 - the caller asked for the column
        index = torch.from_numpy(batch.index).to(self._device)
        # Synchronous copies: the host buffer is used again as soon as this returns.
        self._embeddings[index] = torch.from_numpy(batch.embeddings).to(self._device)
        self._cps[index] = torch.from_numpy(batch.cps).to(self._device)
        self._has[batch.index] = True

    def gather(self, indices: Indices) -> Batch:
        """As SplitCache.gather, but embeddings and cps are tensors on the device."""
        wanted = torch.from_numpy(indices).to(self._device)
        embeddings: Any = self._embeddings.index_select(0, wanted)
        cps: Any = self._cps.index_select(0, wanted)
        return Batch(embeddings, cps, indices, None, len(indices), embeddings.nbytes)
