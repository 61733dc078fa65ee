"""Datasets for torch.utils.data.DataLoader, filled over HTTP.

StreamingEmbeddingsDataset yields ready batches of a planned epoch and is what training loops want. RemoteEmbeddingsDataset is
map-style: any sample at any time. Both deliver what the local RegressionEmbeddingsDataset would, bit for bit.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np

from .buffers import BufferPool
from .errors import CpstreamError, StateMismatch
from .fetch import Course, EpochFetcher, cut
from .http import Client
from .plan import Plan, Remainder, Shuffle
from .position import Identity, Position, Run
from .prefetch import prefetch
from .reader import Batch
from .wire import BatchQuery, Column, Dtype, SplitInfo

try:
    import torch
    from torch import Tensor
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("cpstream_client.torch needs PyTorch: pip install 'cpstream[torch]'", name="torch") from error

PREFETCH_BYTES = 64 * 1024**2
IDLE_BUFFERS = 64


class StreamingEmbeddingsDataset(IterableDataset[tuple[Any, ...]]):
    """Batches of a split, in the order that DistributedSampler and DataLoader would give them, ready for the model.

    Use it as `DataLoader(dataset, batch_size=None)`, or by `loader(dataset, ...)`, and call `set_epoch` before each epoch. An item
    is a tuple of what `columns` names: embedding (B, D) float32 or float16, cps (B,) float32, index (B,) int64, file_path
    list of B strings. The tensors are writable and stay valid for as long as they are referred to.

    source: URL of the service, list of URLs of its replicas, or a Client.
    batch_size: samples a step and rank. drop_last: leave out a last batch that is smaller.
    shuffle: True for torch's uniform permutation of seed + epoch; "blocks" for splits that exceed the service's memory.
    remainder: "pad", "drop" or "exact", see plan.py: what becomes of samples that the ranks cannot share evenly.
    prefetch_bytes: how much may be fetched ahead, a process.
    rank, world_size: by default those of torch.distributed, else of RANK and WORLD_SIZE, else 0 and 1, when iteration begins.

    Nothing is asked of the service before the first use. Raises what Client raises; a fault that retrying cures is not seen.
    """

    def __init__(
        self,
        source: str | Sequence[str] | Client,
        split: str,
        *,
        batch_size: int = 256,
        shuffle: bool | Literal["blocks"] = False,
        seed: int = 0,
        remainder: Remainder = "pad",
        drop_last: bool = False,
        dtype: Dtype = "float32",
        columns: Sequence[Column] = ("embedding", "cps"),
        prefetch_bytes: int = PREFETCH_BYTES,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._client = source if isinstance(source, Client) else Client(source)
        self._query = BatchQuery(
            batch_size=batch_size,
            shuffle=_shuffle_word(shuffle),
            seed=seed,
            remainder=remainder,
            drop_last=drop_last,
            dtype=dtype,
            columns=tuple(columns),
        )
        self._query.plan(0)  # a wrong parameter should be heard of here, not in the middle of a job
        if (rank is None) != (world_size is None):
            raise ValueError("rank and world_size belong together; give both or neither")
        self.split = split
        self.columns = tuple(columns)
        self.shuffle = shuffle
        self.prefetch_bytes = prefetch_bytes
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        self._inherited_ranks: tuple[int, int] | None = None
        self._info: SplitInfo | None = None
        self._position = Position()
        self._run: Run | None = None
        self._worker_resume: dict[str, int] | None = None

    @property
    def info(self) -> SplitInfo:
        """The split as the service held it at first use; from then on other data is refused."""
        if self._info is None:
            self._info = self._client.split(self.split)
        return self._info

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of: what set_epoch or load_state_dict set."""
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, as DistributedSampler.set_epoch. A resumed epoch keeps its position."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be 0 or more")
        if epoch != self.epoch or (self._run is not None and self._run.finished):
            self._position.set(epoch, 0)
            self._run = None

    def __len__(self) -> int:
        """Steps of this rank: of the iteration under way, else of the next one."""
        return self._run.plan.num_steps if self._run is not None else self._plan(self._position.start).num_steps

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        worker = get_worker_info()
        if worker is None:
            run = self.begin_run()
            return self._deliver(self._query_of(run.plan), run)
        self._position.mark_read_by_worker()
        run = Run(self.epoch, self._plan(self._position.start))
        skipped = 0
        if self._worker_resume is not None:
            if (self._worker_resume["worker"], self._worker_resume["num_workers"]) != (worker.id, worker.num_workers):
                raise StateMismatch("the state of a DataLoader worker can be resumed only with the same num_workers")
            run = Run(self._worker_resume["epoch"], self._plan(self._worker_resume["start"]))
            skipped = self._worker_resume["worker_batches"]
            self._worker_resume = None
        run.delivered = skipped
        self._run = run
        query = self._query_of(run.plan)
        start = run.plan.start_after(worker.id + skipped * worker.num_workers)
        query = replace(query, start=start, worker=0, num_workers=worker.num_workers)
        if worker.id + skipped * worker.num_workers >= run.plan.num_steps:
            return iter(())
        return self._deliver(query, run, worker.id)

    def begin_run(self) -> Run:
        """Begin an iteration from the position; the one after it begins at the start of the epoch."""
        self._run = Run(self.epoch, self._plan(self._position.start))
        self._position.set(self.epoch, 0)
        return self._run

    def _deliver(self, query: BatchQuery, run: Run, turn: int = 0) -> Iterator[tuple[Any, ...]]:
        course = Course(query, self.info)
        fetcher = EpochFetcher(self._client.service, course, BufferPool(IDLE_BUFFERS), turn=query.rank + turn)
        batches = prefetch(fetcher, self.prefetch_bytes, fetcher.abort)
        try:
            for batch in cut(batches, course):
                item = self._to_tensors(batch)
                del batch  # the loop shall hold the only reference when it asks for the next
                run.delivered += 1  # before the loop has it, because here execution stops until it asks for the next
                yield item
                del item
        finally:
            batches.close()

    def _to_tensors(self, batch: Batch) -> tuple[Any, ...]:
        return tuple(_COLUMN_OF[name](batch) for name in self.columns)

    def _plan(self, start: int) -> Plan:
        rank, world_size = self._rank_and_world_size()
        query = replace(self._query, epoch=self.epoch, start=start, rank=rank, world_size=world_size)
        return query.plan(self.info.num_samples)

    def _query_of(self, plan: Plan) -> BatchQuery:
        return replace(self._query, epoch=plan.epoch, start=plan.start, rank=plan.rank, world_size=plan.world_size)

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self._ranks is not None:
            return self._ranks
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return self._inherited_ranks or (0, 1)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is, as small JSON. Counts batches that it received, never prefetched ones.

        Raises CpstreamError where that cannot be known: in a plain DataLoader with workers. Use `loader`.
        """
        identity = self._identity()
        if get_worker_info() is not None:
            return self._worker_state(identity)
        if self._run is not None:
            epoch, start = self._run.resume_at()
        elif self._position.read_by_workers:
            raise CpstreamError(
                "state_dict() cannot know which of the batches that DataLoader workers fetched ahead have reached the loop; "
                "make the loader by cpstream_client.torch.loader(dataset, num_workers=...) and use its state_dict()"
            )
        else:
            epoch, start = self._position.epoch, self._position.start
        return _state(identity, epoch, start, self._query.remainder)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken: the next iteration begins there, with any world size, batch size and workers.

        Raises StateMismatch, naming both values, when the state is of other data, another split, seed or shuffle.
        """
        self._identity().check(state)
        if "worker" in state:
            if get_worker_info() is None:
                raise StateMismatch(
                    "this is the state of one DataLoader worker; load it through the StatefulDataLoader that made it"
                )
            self._worker_resume = {name: state[name] for name in ("epoch", "start", "worker", "num_workers", "worker_batches")}
            return
        if state["start"] > self.info.num_samples:
            raise StateMismatch(f"the state's start is {state['start']}; the split has {self.info.num_samples} samples")
        self._position.set(state["epoch"], state["start"])
        self._run = None

    def _identity(self) -> Identity:
        return Identity(self.info.fingerprint, self.split, self._query.seed, self.shuffle)

    def _worker_state(self, identity: Identity) -> dict[str, Any]:
        """For torchdata's StatefulDataLoader, which asks each worker for a state of its own."""
        worker = get_worker_info()
        assert worker is not None  # noqa: S101 - the caller has asked
        run = self._run
        epoch, start = (run.epoch, run.plan.start) if run is not None else (self.epoch, self._position.start)
        own = {"worker": worker.id, "num_workers": worker.num_workers, "worker_batches": run.delivered if run is not None else 0}
        return {**_state(identity, epoch, start, self._query.remainder), **own}

    def __getstate__(self) -> dict[str, Any]:
        # A spawned DataLoader worker has no torch.distributed to ask; a rank's process that was spawned has, and asks that.
        return {**self.__dict__, "_run": None, "_inherited_ranks": self._rank_and_world_size()}

    def __repr__(self) -> str:
        batch_size, shuffle = self._query.batch_size, self.shuffle
        return f"StreamingEmbeddingsDataset({self._client!r}, {self.split!r}, batch_size={batch_size}, shuffle={shuffle!r})"


class RemoteEmbeddingsDataset(Dataset[tuple[Tensor, Tensor]]):
    """A split as a map-style dataset: ds[i] is (embedding (D,) float32, cps float32 scalar), ds[[...]] is ((B, D), (B,)).

    A list of indices is one request, so let the DataLoader ask for whole batches:
    `DataLoader(ds, batch_size=None, sampler=BatchSampler(RandomSampler(ds), 256, drop_last=False))`. With `DataLoader(ds, 256)` it
    is one request a batch, too, and one more copy to collate it. `audio_data`, `labels` and `filenames` download the split once;
    from then on samples come from there.
    """

    def __init__(self, source: str | Sequence[str] | Client, split: str, *, dtype: Dtype = "float32") -> None:
        self._client = source if isinstance(source, Client) else Client(source)
        self.split = split
        self.dtype: Dtype = dtype
        self._info: SplitInfo | None = None
        self._filenames: list[str] | None = None
        self._whole: tuple[Tensor, Tensor] | None = None

    @property
    def info(self) -> SplitInfo:
        """The split as the service held it at first use; from then on other data is refused."""
        if self._info is None:
            self._info = self._client.split(self.split)
        return self._info

    def __len__(self) -> int:
        return self.info.num_samples

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Raises IndexError for what lies outside the split."""
        n = len(self)
        wanted = np.arange(n)[index] if isinstance(index, slice) else np.asarray(index, dtype=np.int64)
        outside = (wanted < -n) | (wanted >= n)
        if outside.any():
            raise IndexError(f"index {wanted[outside].reshape(-1)[0]} is outside split {self.split!r} of {n} samples")
        embeddings, cps = self._take(np.where(wanted < 0, wanted + n, wanted).reshape(-1))
        return (embeddings, cps) if wanted.ndim else (embeddings[0], cps[0])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A batch in one request, as the list of samples that DataLoader's collate function wants."""
        embeddings, cps = self[indices]
        return list(zip(embeddings.unbind(), cps.unbind(), strict=True))

    def _take(self, indices: Any) -> tuple[Tensor, Tensor]:
        if self._whole is not None:
            chosen = torch.from_numpy(indices)
            return self._whole[0][chosen], self._whole[1][chosen]
        batch = self._client.take(self.split, indices, dtype=self.dtype, columns=("embedding", "cps"), info=self.info)
        return _COLUMN_OF["embedding"](batch), _COLUMN_OF["cps"](batch)

    def _load(self) -> tuple[Tensor, Tensor]:
        if self._whole is None:
            whole = self._client.load(self.split, dtype=self.dtype, info=self.info)
            self._whole = _COLUMN_OF["embedding"](whole), _COLUMN_OF["cps"](whole)
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
            self._filenames = self._client.file_paths(self.split)
        return self._filenames

    def __repr__(self) -> str:
        return f"RemoteEmbeddingsDataset({self._client!r}, {self.split!r})"


class Loader(DataLoader[tuple[Any, ...]]):
    """A DataLoader over a StreamingEmbeddingsDataset that counts what its loop received, whatever its workers fetched ahead."""

    dataset: StreamingEmbeddingsDataset

    def __iter__(self) -> Iterator[tuple[Any, ...]]:  # type: ignore[override]
        if not self.num_workers:
            yield from super().__iter__()
            return
        # The workers read the position while they start, or at their first batch if they persist: clear it only afterwards.
        position = self.dataset._position
        run = Run(self.dataset.epoch, self.dataset._plan(position.start))
        self.dataset._run = run
        for batch in super().__iter__():
            run.delivered += 1
            if run.delivered == 1:
                position.set(run.epoch, 0)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """As StreamingEmbeddingsDataset.state_dict, right with any number of workers."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As StreamingEmbeddingsDataset.load_state_dict."""
        self.dataset.load_state_dict(state)


def loader(dataset: StreamingEmbeddingsDataset, *, num_workers: int = 0, **options: Any) -> Loader:
    """A DataLoader over ready batches, whose state_dict() is right with any num_workers. options: as DataLoader's."""
    return Loader(dataset, batch_size=None, num_workers=num_workers, **options)


def _state(identity: Identity, epoch: int, start: int, remainder: Remainder) -> dict[str, Any]:
    return {
        "fingerprint": identity.fingerprint,
        "split": identity.split,
        "seed": identity.seed,
        "epoch": epoch,
        "start": start,
        "shuffle": identity.shuffle,
        "remainder": remainder,
    }


def _shuffle_word(shuffle: bool | str) -> Shuffle:
    if isinstance(shuffle, bool):
        return "uniform" if shuffle else "none"
    return cast(Shuffle, shuffle)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(values)  # no copy: the tensor keeps the buffer from being used again


_COLUMN_OF: dict[str, Any] = {
    "embedding": lambda batch: _tensor(batch.embeddings),
    "cps": lambda batch: _tensor(batch.cps),
    "index": lambda batch: _tensor(batch.index),
    "file_path": lambda batch: batch.file_paths,
}
