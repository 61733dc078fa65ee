"""Two trainers, a process each, that share one epoch which lasts as long as is wanted; every batch is compared with the truth.

One asks for as much at a time as any client does, so that its streams are long and get cut; the other for little, so that many
requests meet replicas that are about to go.
"""

import contextlib
import multiprocessing
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from cpstream_client import Client, Retry
from cpstream_client.torch import StreamingEmbeddingsDataset

from .truth import SPLIT, Truth, WrongBatch

WORLD_SIZE, BATCH_SIZE, SEED = 2, 256, 3
START_S = 120.0
FEW_BYTES = 1024**2
PREFETCH_BYTES = 4 * 1024**2
"""Little, so that the streams are open for the whole epoch rather than read in one go."""


@dataclass(frozen=True)
class Epoch:
    """What a trainer saw. longest_wait_s: for one batch; reconnects: requests that a fault ended."""

    rank: int
    batches: int
    samples: int
    longest_wait_s: float
    reconnects: int
    requests: int


@dataclass(frozen=True)
class Size:
    """Of the made-up data. samples must be a multiple of WORLD_SIZE, so that no rank is padded."""

    samples: int
    dim: int

    def write(self, folder: Path) -> None:
        Truth.of(self.samples, self.dim).write(folder)


class Trainers:
    """Both at work: the block begins when each has its first batch, and ends when both have ended. seconds: of an epoch."""

    def __init__(self, url: str | list[str], size: Size, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._begun = context.Barrier(WORLD_SIZE + 1)
        self._pool = ProcessPoolExecutor(WORLD_SIZE, context, _inherit, (self._begun,))
        self._epochs: list[Future[Epoch]] = [self._pool.submit(train, url, size, seconds, rank) for rank in range(WORLD_SIZE)]

    def __enter__(self) -> "Trainers":
        with contextlib.suppress(threading.BrokenBarrierError):  # one of them failed: its result says how
            self._begun.wait(START_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def done(self) -> bool:
        return all(epoch.done() for epoch in self._epochs)

    def results(self) -> list[Epoch]:
        """Raises WrongBatch, or what else ended a trainer."""
        return [epoch.result() for epoch in self._epochs]


_begun: Barrier | None = None


def _inherit(begun: Barrier) -> None:
    global _begun
    _begun = begun


def train(url: str | list[str], size: Size, seconds: float, rank: int) -> Epoch:
    """An epoch of one rank, its steps spread evenly. Raises WrongBatch, and what the client raises."""
    assert _begun is not None
    try:
        return _train(url, size, seconds, rank, _begun)
    except BaseException:
        _begun.abort()
        raise


def _train(url: str | list[str], size: Size, seconds: float, rank: int, begun: Barrier) -> Epoch:
    truth = Truth.of(size.samples, size.dim)
    order = truth.order(SEED, 0)[rank::WORLD_SIZE]
    client = Client(url, retry=Retry(timeout_s=60, contact_timeout_s=60))
    if rank:
        client.service = replace(client.service, request_bytes=FEW_BYTES)
    dataset = StreamingEmbeddingsDataset(
        client,
        SPLIT,
        batch_size=BATCH_SIZE,
        shuffle=True,
        seed=SEED,
        columns=("embedding", "cps", "index"),
        rank=rank,
        world_size=WORLD_SIZE,
        cache=None,
        prefetch_bytes=PREFETCH_BYTES,
    )
    longest_wait_s, step, steps = 0.0, 0, len(dataset)
    batches = iter(dataset)
    batch: tuple[Any, ...] | None = next(batches)
    begun.wait(START_S)
    began = time.monotonic()
    while batch is not None:
        embeddings, cps, index = batch
        expected = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        where = f"rank {rank}, step {step}"
        if index.tolist() != expected.tolist():
            raise WrongBatch(f"{where}: indices {index[:5].tolist()}..., not {expected[:5].tolist()}...")
        truth.check(expected, embeddings, cps, where)
        step += 1
        time.sleep(max(0.0, began + seconds * step / steps - time.monotonic()))
        asked = time.monotonic()
        batch = next(batches, None)
        longest_wait_s = max(longest_wait_s, time.monotonic() - asked)
    if step * BATCH_SIZE < len(order):
        raise WrongBatch(f"rank {rank}: the epoch ended after {step} of {steps} batches")
    stats = dataset.stats()
    return Epoch(rank, step, len(order), longest_wait_s, stats["reconnects"], stats["requests"])


def lines_of(epochs: list[Epoch]) -> list[str]:
    return [
        f"trainer {epoch.rank}: {epoch.batches:,} batches, {epoch.samples:,} samples, each as torch has it, to the bit; "
        f"{epoch.reconnects} requests cut of {epoch.requests}, longest wait for a batch {epoch.longest_wait_s:.2f} s"
        for epoch in epochs
    ]
