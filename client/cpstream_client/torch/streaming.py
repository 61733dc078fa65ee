"""StreamingEmbeddingsDataset: ready batches of a planned epoch, for training loops."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.context import get_spawning_popen
from typing import Any, Literal, Unpack, overload

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..buffers import allocate_aligned
from ..client import Client, client_of
from ..contract.plan import Remainder
from ..contract.wire import BatchQuery, Column, Dtype
from ..epochs.chosen import Chosen
from ..epochs.epochs import Epochs
from ..epochs.position import Position, Run
from ..epochs.tally import Tally, clock
from ..stream.backlog import PREFETCH_BYTES
from ..stream.early import Early
from ..transport.options import ClientOptions
from .device import allocate_pinned
from .guard import (
    caller,
    refuse_accelerate,
    refuse_collation,
    refuse_sharding,
    warn_of_repetition,
)
from .items import Item, StreamingOptions, Usual, cut
from .keeping import Cache, Kept, check_cache, keep, order_of, refuse_in_workers, remove_kept, stats_of
from .share import share_of
from .versioned import Versioned


class StreamingEmbeddingsDataset(Versioned, IterableDataset[Item]):
    """Batches of a split, in the order that DistributedSampler and DataLoader would give them, ready for the model.

    Use it by `loader(dataset, ...)`, a DataLoader that frameworks leave as it is, that counts what the loop received and goes on to
    the next epoch by itself. A plain `DataLoader(dataset, batch_size=None)` does, too, with `set_epoch` before each epoch; without
    batch_size=None it would stack ready batches along a new axis, and is refused.

    An item is a tuple of what `columns` names: embedding (B, D) float32 or float16, cps (B,) float32, index (B,) int64, file_path
    list of B strings. The tensors are writable and stay valid for as long as they are referred to.

    source: URL of the service, list of URLs of its replicas, or a Client.
    batch_size: samples a step and rank, by default 256. drop_last: leave out a last batch that is smaller.
    shuffle: True for torch's uniform permutation of seed + epoch; "blocks" for splits that exceed the service's memory.
    remainder: "pad", "drop" or "exact", see plan.py: what becomes of samples that the ranks cannot share evenly.
    prefetch_bytes: how much may be fetched ahead, a process and iteration: what waits for the loop, and what is on its way over all
    connections (see Client's max_connections; a DataLoader worker has one).
    cache: where the first epoch leaves its samples, so that later ones gather them there, in the same order, and ask the service
    only whether its data is still the same. "auto", the default: in memory, if the split fits in the budget of this process (a
    quarter of the free memory, divided by LOCAL_WORLD_SIZE, for all its datasets together), and not at all in DataLoader workers;
    `repr` says which. "memory", whatever the budget; a directory, which serves later runs, too; "device" (with `device`, by
    default the GPU). None: every epoch is streamed.
    pin_memory: receive into page-locked memory, from which copies to a GPU are asynchronous; `loader(device=...)` sees to it.
    client: what Client takes, such as token, verify, proxy, auth; where `source` is a Client, give it to that.
    rank, world_size: by default those of torch.distributed, else of RANK and WORLD_SIZE, else 0 and 1, when iteration begins.

    Nothing is asked of the service before the first use. Raises what Client raises; a fault that retrying cures is not seen.
    """

    @overload
    def __init__(
        self: "StreamingEmbeddingsDataset[Usual]",
        source: str | Sequence[str] | Client,
        split: str,
        **options: Unpack[StreamingOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: "StreamingEmbeddingsDataset[tuple[Any, ...]]",
        source: str | Sequence[str] | Client,
        split: str,
        *,
        columns: Sequence[Column],
        **options: Unpack[StreamingOptions],
    ) -> None: ...
    def __init__(
        self,
        source: str | Sequence[str] | Client,
        split: str,
        *,
        batch_size: int | None = None,
        shuffle: bool | Literal["blocks"] = False,
        seed: int = 0,
        remainder: Remainder = "pad",
        drop_last: bool = False,
        dtype: Dtype = "float32",
        columns: Sequence[Column] = ("embedding", "cps"),
        prefetch_bytes: int = PREFETCH_BYTES,
        cache: Cache = "auto",
        device: str | torch.device | None = None,
        pin_memory: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        **client: Unpack[ClientOptions],
    ) -> None:
        super().__init__()
        self._client = client_of(source, client)
        check_cache(cache)
        self._share = share_of(
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            remainder=remainder,
            drop_last=drop_last,
            dtype=dtype,
            columns=columns,
            rank=rank,
            world_size=world_size,
        )
        self.split = split
        self.columns = tuple(columns)
        self.shuffle = shuffle
        self.prefetch_bytes = prefetch_bytes
        self.cache, self.device, self.pin_memory = cache, device, pin_memory
        self._epochs: Epochs | None = None
        self._early: Early | None = None
        self.tally = Tally()
        self._kept: Kept | None = None
        self._kept_in = 0  # the process

    def __iter__(self) -> Iterator[Item]:
        self._check_caller(caller())
        worker = get_worker_info()
        if worker is not None:
            return self._iterate_in_worker(worker.id, worker.num_workers)
        return self.batches()

    def batches(self) -> Iterator[Item]:
        """Begins at the first next(), so that an epoch set after iter() counts: frameworks call iter() early."""
        run, self._prepared = self._prepared, None
        if run is None or run is not self._run:  # not one set aside by set_epoch
            self._warn_of_repetition()
            run = self._beside_early(self.begin_run)
        early, self._early = self._early, None
        try:
            yield from self._deliver(self._share.query_of(run.plan), run, early=early)
        finally:
            if early is not None:
                early.close()

    def prepare_run(self, **options: bool) -> Run:
        return self._beside_early(partial(super().prepare_run, **options))

    def _beside_early(self, begin: Callable[[], Run]) -> Run:
        """Ask for the first batch beside the metadata, where nothing is known of the split yet."""
        self._ask_early()
        try:
            return begin()
        except BaseException:
            if self._early is not None:
                self._early.close()
            raise

    def _ask_early(self) -> None:
        streams = self.cache in (None, "auto", "memory", "device")  # a directory may hold all of it
        if self._info is not None or not streams or get_worker_info() is not None or self._client.service.pace.max_connections < 2:
            return
        epoch, start = self._next()
        query = self._share.query
        rank, world_size = self._share.ranks()
        columns = query.columns if self.cache is None else (*query.columns, "embedding", "cps", "index")
        query = replace(query, epoch=epoch, start=start, rank=rank, world_size=world_size, columns=columns)
        self._early = Early(self._client.service, self.split, query, rank)

    def _iterate_in_worker(self, worker: int, num_workers: int) -> Iterator[Item]:
        """Every num_workers-th batch of the rank's, from that of this worker on."""
        if self.cache in ("memory", "device"):
            refuse_in_workers(self.cache)
        self.follow()
        self._position.mark_read_by_worker()
        self.tally.in_worker(worker)
        epoch, start, skipped = self.epoch, self._position.start, 0
        if self._worker_resume is not None:
            epoch, start, skipped = (self._worker_resume[name] for name in ("epoch", "start", "worker_batches"))
            self._worker_resume = None
        self._run = run = Run(self._plan(epoch, start), delivered=skipped)
        first = worker + skipped * num_workers
        if first >= run.plan.num_steps:
            return iter(())
        query = replace(self._share.query_of(run.plan), start=run.plan.start_after(first), num_workers=num_workers)
        batches = self._deliver(query, run, worker)
        return batches if worker else self._count_the_pass(batches)

    def _count_the_pass(self, batches: Iterator[Item]) -> Iterator[Item]:
        if self.shuffle and self._position.passes == 1 and not self._position.announced:
            warn_of_repetition(self)  # here, because torch lets a persistent worker die of an error in iter()
        yield from batches
        self._position.count_pass()

    def _deliver(self, query: BatchQuery, run: Run, turn: int = 0, early: Early | None = None) -> Iterator[Item]:
        with self.forgetting(self._position.fingerprint):
            yield from self._items(query, run, turn, early)

    def _items(self, query: BatchQuery, run: Run, turn: int, early: Early | None) -> Iterator[Item]:
        records = self._opened().records(query, query.rank + turn, early)
        # A Loader that counts takes the time itself: what a worker, or a copy to a device, waits for is not what the loop does.
        tally = None if run.counted_by_loader or get_worker_info() is not None else self.tally
        begun, asked = run.delivered, clock()
        if tally is not None:
            tally.begin_loop()
        try:
            for record in records:
                if tally is not None:
                    tally.waited(clock() - asked)
                    begun = run.delivered + 1
                self._position.pin(self.info.fingerprint)  # two workers may have met different replicas at the same moment
                items = cut(record, self.columns, self._share.query.batch_size)
                del record  # the loop shall hold the only references when it asks for more
                for item in items:
                    if not run.counted_by_loader:
                        run.delivered += 1  # before the loop has it, because here execution stops until it asks for the next
                    yield item
                    del item
                del items  # zip keeps the last tuple that it made
                if tally is not None:
                    tally.at_once(run.delivered - begun)
                begun, asked = run.delivered, clock()
        finally:
            if tally is not None:
                tally.at_once(run.delivered - begun)
                tally.end_loop()
            records.close()

    def _opened(self) -> Epochs:
        """Those of this process: a worker that was forked has its parent's, and opens its own."""
        if self._epochs is None or self._kept_in != os.getpid():
            allocate = allocate_pinned if self.pin_memory else allocate_aligned
            query = self._share.query
            self._kept_in = os.getpid()
            self._kept = keep(
                self.cache, self.info, query.dtype, self.device, embeddings="embedding" in query.columns, allocate=allocate
            )
            connections = None if get_worker_info() is None else 1  # workers are as many already
            self._epochs = Epochs(
                self._client, self.info, self.prefetch_bytes, self._kept.cache, allocate, connections, order_of, self.tally
            )
        return self._epochs

    def let_go(self, forgotten: str = "") -> None:
        self._epochs = self._kept = None
        if forgotten:
            remove_kept(self.cache, forgotten)

    @property
    def has_batch_size(self) -> bool:
        """Whether batch_size was given, and is not the default."""
        return self._share.has_batch_size

    def chosen(self, sampler: str) -> Chosen:
        """For the Loader with this sampler, which chooses the samples of an iteration."""
        self._position.pin(self.info.fingerprint)
        self._run, self._prepared, self.sampled_by = None, None, sampler
        return self._opened().chosen(self._share.query, turn=self._share.ranks()[0])

    def _check_caller(self, who: object) -> None:
        refuse_collation(self, who)
        refuse_sharding(self, who)
        run = self._run
        if self._prepared is not None or (run is not None and run.counted_by_loader and not run.delivered):
            return  # a Loader is about to iterate, whatever Accelerate has under way
        refuse_accelerate(
            self, self._share.ranks()[1], announced=self._position.announced, start=self._next()[1], sampler=self.has_sampler
        )

    def __getstate__(self) -> dict[str, Any]:
        fresh = dict.fromkeys(("_run", "_prepared", "_epochs", "_early", "_kept", "sampling"))
        state = {**self.__dict__, **fresh}
        if get_spawning_popen() is None:
            return {**state, "_position": Position(*self._next(), self._position.fingerprint, self._position.announced)}
        self._check_caller(None)  # workers that are spawned do not see who iterates
        return state

    def stats(self, *, reset: bool = False) -> dict[str, Any]:
        """What the loop waited for since the dataset was made, as JSON has it: see docs/client.md. reset: begin anew from here."""
        figures = stats_of(self.tally, self._kept)
        if reset:
            self.tally.reset()
        return figures

    def __repr__(self) -> str:
        batch_size, shuffle = self._share.query.batch_size, self.shuffle
        chosen = f" ({self._kept})" if self._kept is not None and self._kept.why else ""
        return (
            f"StreamingEmbeddingsDataset({self._client!r}, {self.split!r}, batch_size={batch_size}, shuffle={shuffle!r}, "
            f"cache={self.cache!r}{chosen})"
        )
