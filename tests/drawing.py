"""Samplers for tests: torch's, and such as users write. Each entry makes one of a seed, over the indices of 300 samples.

SAMPLERS, BATCH_SAMPLERS   by name
seeded(seed)               a torch.Generator
torchs(dataset, ...)       the batches of torch's own DataLoader, a list an epoch
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

N = 300
WEIGHTS = torch.linspace(0.1, 3, N)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Curriculum(Sampler[int]):
    """A user's own: without length, over a numpy generator, indices of numpy's."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[int]:
        for _ in range(int(self.rng.integers(5, 60))):
            yield self.rng.integers(0, N)


class Buckets(Sampler[list[int]]):
    """Batches of several sizes, as of recordings of about one length. Its generator is that of a sampler within."""

    def __init__(self, seed: int) -> None:
        self.inner = [RandomSampler(range(N), generator=seeded(seed))]

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.inner[0]:
            batch.append(index)
            if len(batch) > index % 23:
                yield batch
                batch = []
        if batch:
            yield batch


SAMPLERS: dict[str, Callable[[int], Any]] = {
    "random": lambda seed: RandomSampler(range(N), generator=seeded(seed)),
    "replaced": lambda seed: RandomSampler(range(N), replacement=True, num_samples=411, generator=seeded(seed)),
    "weighted": lambda seed: WeightedRandomSampler(WEIGHTS, 250, generator=seeded(seed)),
    "subset": lambda seed: SubsetRandomSampler(list(range(0, N, 3)), generator=seeded(seed)),
    "sequential": lambda seed: SequentialSampler(range(N)),
    "distributed": lambda seed: DistributedSampler(range(N), num_replicas=2, rank=1, seed=seed),  # type: ignore[arg-type]
    "curriculum": Curriculum,
    "a list": lambda seed: [(seed * 7 + i * 11) % N for i in range(seed % 50)],
    "an array": lambda seed: np.random.default_rng(seed).permutation(N)[:77],
    "a tensor": lambda seed: torch.randperm(N, generator=seeded(seed)),
    "tensors": lambda seed: list(torch.randperm(N, generator=seeded(seed))[:30]),
}
BATCH_SAMPLERS: dict[str, Callable[[int], Any]] = {
    "batches": lambda seed: BatchSampler(WeightedRandomSampler(WEIGHTS, 100, generator=seeded(seed)), 7, drop_last=True),
    "buckets": Buckets,
    "lists": lambda seed: [[1, 2, 3], [4], [5, 5, 5, 5]],
    "arrays": lambda seed: np.random.default_rng(seed).integers(0, N, (9, 4)),
}


def torchs(dataset: Dataset[Any], options: dict[str, Any], epochs: int = 1) -> list[Any]:
    made: DataLoader[Any] = DataLoader(dataset, **options)
    return [list(made) for _ in range(epochs)]
