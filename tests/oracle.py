"""What torch makes of the same data on this machine: the local dataset, DistributedSampler, DataLoader.

    local(split)                 the local twin of the demo's split, read once a run
    epoch_of(dataset, ...)       the batches that one rank gets in one epoch, by torch's own sampler and loader
    indices_of(n, ...)           the same for the indices of n samples
    assert_same(got, expected)   the same batches, bit for bit
    FORKING                      pytestmark of tests that start DataLoader workers

Nothing here knows of the plan.
"""

import multiprocessing
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from conftest import DEMO_DATA
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cpstream_service.dataset import RegressionEmbeddingsDataset

FORKING = [
    # CPython 3.12 warns of every fork beside a thread (gh-100228), and fork is what DataLoader uses by default there.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    # torch warns of more workers than cores (check_worker_number_rationality); that is what the tests want.
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes in total:UserWarning"),
]
# Workers of the fork server then start in no time; those of spawn import torch, some seconds each.
multiprocessing.set_forkserver_preload(["cpstream_client.torch", "torch.utils.data"])


@cache
def local(split: str) -> RegressionEmbeddingsDataset:
    return RegressionEmbeddingsDataset(
        source_path=str(DEMO_DATA), split=split, source_type="npy", cps_csv=str(DEMO_DATA / f"{split}_cps.csv")
    )


def epoch_of(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    epoch: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
    remainder: str = "pad",
    drop_last: bool = False,
) -> list[Any]:
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed, drop_last=remainder == "drop"
    )
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset, batch_size=batch_size, sampler=sampler, drop_last=drop_last))


def indices_of(n: int, **options: Any) -> list[list[int]]:
    return [batch.tolist() for batch in epoch_of(list(range(n)), **options)]  # type: ignore[arg-type]


def assert_same(got: Iterable[Sequence[Tensor]], expected: Iterable[Sequence[Tensor]]) -> None:
    for step, (batch, wanted) in enumerate(zip(got, expected, strict=True)):
        assert len(batch) == len(wanted), step
        for tensor, other in zip(batch, wanted, strict=True):
            assert tensor.dtype == other.dtype
            assert torch.equal(tensor, other), f"step {step} differs"
