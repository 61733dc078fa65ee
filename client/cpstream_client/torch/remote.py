"""RemoteEmbeddingsDataset: any sample of a split at any time, for map-style use."""

import os
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..client import Client, client_of
from ..contract.bodies import SplitInfo
from ..contract.plan import Indices
from ..contract.wire import DTYPES, Dtype
from ..epochs.position import Position
from ..epochs.tally import Tally, clock
from ..errors import CpstreamError, ForgottenError
from ..transport.options import ClientOptions
from .keeping import Cache, Kept, check_cache, keep, remove_kept, stats_of


class RemoteEmbeddingsDataset(Dataset[tuple[Tensor, Tensor]]):
    """A split as a map-style dataset: ds[i] is (embedding (D,) float32, cps float32 scalar), ds[[...]] is ((B, D), (B,)).

    A list of indices is one request, so let the DataLoader ask for whole batches:
    `DataLoader(ds, batch_size=None, sampler=BatchSampler(RandomSampler(ds), 256, drop_last=False))`. With `DataLoader(ds, 256)` it
    is one request a batch, too, and one more copy to collate it. `audio_data`, `labels` and `filenames` download the split once;
    from then on samples come from there. cache, device: as StreamingEmbeddingsDataset's; what is not in the cache yet is asked for,
    and once in as many samples as the split has, whether the service's data is still the same.
    client: what Client takes, such as token, verify, proxy, auth.
    """

    def __init__(
        self,
        source: str | Sequence[str] | Client,
        split: str,
        *,
        dtype: Dtype = "float32",
        cache: Cache = "auto",
        device: str | torch.device | None = None,
        **client: Unpack[ClientOptions],
    ) -> None:
        check_cache(cache)
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        self._client = client_of(source, client)
        self.split = split
        self.dtype: Dtype = dtype
        self._info: SplitInfo | None = None
        self._position = Position()  # of which the fingerprint counts: workers see it
        self._filenames: list[str] | None = None
        self._whole: tuple[Tensor, Tensor] | None = None
        self.cache, self.device = cache, device
        self.tally = Tally()
        self._kept: Kept | None = None
        self._kept_in = 0  # the process
        self._worker: int | None = None  # whose process this is
        self._unchecked = 0  # samples from the cache since the service last said that its data is the same

    @property
    def info(self) -> SplitInfo:
        """The split as the service held it at first use, or at the last refresh(); other data is refused."""
        if self._info is None or (self._worker is not None and self._info.fingerprint != self._position.fingerprint):
            self._let_go()  # in a worker that lives on, while the process of the loop has moved to another version
            try:
                info = self._client.split(self.split, fingerprint=self._position.fingerprint or None)
            except ForgottenError:
                self._forget()
                raise
            self._position.pin(info.fingerprint)
            self._info = info
        return self._info

    def refresh(self) -> bool:
        """Move to the version that the service has now. Returns whether that is other data than before.

        What is kept of the old version is freed; workers follow, persistent ones, too. Samplers have to be told of the new length.
        Raises CpstreamError in a worker.
        """
        if get_worker_info() is not None:
            raise CpstreamError("refresh() was called in a DataLoader worker; call it in the process of the loop, between epochs")
        info, before = self._client.split(self.split), self._position.fingerprint
        if info.fingerprint != before:
            self._position.move(info.fingerprint)
            self._let_go()
            self._info = info
        return before not in ("", info.fingerprint)

    def _forget(self) -> None:
        """Keep nothing of the version, on disk neither."""
        self._let_go()
        remove_kept(self.cache, self._position.fingerprint)

    def _let_go(self) -> None:
        """Keep nothing of the version in memory."""
        self._kept = self._whole = self._filenames = None
        self._unchecked = 0

    def __len__(self) -> int:
        return self.info.num_samples

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """One sample, or those of a slice, of a sequence of indices or of a mask of length N, as numpy would select them.

        Raises IndexError for what lies outside the split or is no index.
        """
        wanted = self._wanted(index)
        if not wanted.ndim:
            embeddings, cps = self._take(wanted.reshape(1))
            return embeddings[0], cps[0]
        return self._take(wanted)

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A batch in one request, as the list of samples that DataLoader's collate function wants."""
        embeddings, cps = self[indices]
        return list(zip(embeddings.unbind(), cps.unbind(), strict=True))

    def _wanted(self, index: Any) -> Indices:
        """What an index selects. () or (B,) int64, in [0, N)."""
        n = len(self)
        if isinstance(index, slice):
            return np.arange(*index.indices(n), dtype=np.int64)
        wanted = np.asarray(index)
        if not wanted.size and not isinstance(index, np.ndarray | Tensor):
            wanted = wanted.astype(np.int64)  # [] is of floats, says numpy
        if wanted.dtype == np.bool_ and wanted.shape == (n,):
            return np.flatnonzero(wanted)
        if wanted.dtype.kind not in "iu" or wanted.ndim > 1:
            raise IndexError(f"{index!r} is no index: give an integer, a slice, a list of integers, or a mask of {n} booleans")
        if not wanted.size:
            return wanted.astype(np.int64)
        low, high = wanted.min(), wanted.max()
        if low < -n or high >= n:
            raise IndexError(f"index {low if low < -n else high} is outside split {self.split!r} of {n} samples")
        wanted = wanted.astype(np.int64)
        return np.where(wanted < 0, wanted + n, wanted) if low < 0 else wanted

    def _take(self, indices: Indices) -> tuple[Tensor, Tensor]:
        then = clock()
        try:
            taken = self._taken(indices)
        except ForgottenError:
            self._forget()
            raise
        if self._worker is None:  # else the loop does not wait for it
            self.tally.waited(clock() - then)
        return taken

    def _taken(self, indices: Indices) -> tuple[Tensor, Tensor]:
        if self._whole is not None:
            self._check_now_and_then(len(indices))
            chosen = torch.from_numpy(indices)
            return self._whole[0][chosen], self._whole[1][chosen]
        cache = self._opened().cache
        if cache is None:
            batch = self._client.take(self.split, indices, dtype=self.dtype, columns=("embedding", "cps"), info=self.info)
            self._asked(batch.num_rows, batch.nbytes)
            return torch.from_numpy(batch.embeddings), torch.from_numpy(batch.cps)
        missing = cache.missing(indices)
        if len(missing):
            batch = self._client.take(self.split, missing, dtype=self.dtype, info=self.info)
            cache.put(batch)
            self._asked(batch.num_rows, batch.nbytes)
            self._unchecked = 0
        self._check_now_and_then(len(indices))
        batch = cache.gather(indices)
        self.tally.gathered(0, len(indices) - len(missing))
        return torch.as_tensor(batch.embeddings), torch.as_tensor(batch.cps)

    def _check_now_and_then(self, count: int) -> None:
        """Once in an epoch of samples that are kept here."""
        if self._unchecked >= self.info.num_samples:
            self._client.check_while_there(self.info)
            self._unchecked = 0
        self._unchecked += count

    def _asked(self, rows: int, nbytes: int) -> None:
        self.tally.missed(rows)
        self.tally.took(nbytes)

    def _opened(self) -> Kept:
        """That of this process: a worker that was forked has its parent's, and opens its own."""
        if self._kept is None or self._kept_in != os.getpid():
            self._kept = keep(self.cache, self.info, self.dtype, self.device)
            self._kept_in = os.getpid()
            worker = get_worker_info()
            self._worker = None if worker is None else worker.id
            if worker is not None:
                self.tally.in_worker(worker.id)
        return self._kept

    def stats(self, *, reset: bool = False) -> dict[str, Any]:
        """As StreamingEmbeddingsDataset.stats; a step is what is asked for at once. What workers wait for, the loop does not."""
        figures = stats_of(self.tally, self._kept)
        if reset:
            self.tally.reset()
        return figures

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # another process opens its own

    def _load(self) -> tuple[Tensor, Tensor]:
        if self._whole is None:
            whole = self._client.load(self.split, dtype=self.dtype, info=self.info)
            self._whole = torch.from_numpy(whole.embeddings), torch.from_numpy(whole.cps)
        return self._whole

    @property
    def audio_data(self) -> Tensor:
        """All embeddings. (N, D)."""
        return self._load()[0]

    @property
    def labels(self) -> Tensor:
        """All speech rates, characters per second. (N,) float32."""
        return self._load()[1]

    @property
    def filenames(self) -> list[str]:
        """All file paths, by index."""
        if self._filenames is None:
            self._filenames = self._client.file_paths(self.split, info=self.info)
        return self._filenames

    def __repr__(self) -> str:
        chosen = f" ({self._kept})" if self._kept is not None and self._kept.why else ""
        return f"RemoteEmbeddingsDataset({self._client!r}, {self.split!r}, cache={self.cache!r}{chosen})"
