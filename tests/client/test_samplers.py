"""loader(dataset, sampler=...): the batches that a DataLoader of torch gives with the same sampler. torch is the oracle."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from conftest import Server
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_same, local
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from cpstream_client.torch import StreamingEmbeddingsDataset, loader

N = 300  # of split dev


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
    """Batches of several sizes, as of recordings of about one length."""

    def __init__(self, seed: int) -> None:
        self.inner = RandomSampler(range(N), generator=seeded(seed))

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.inner:
            batch.append(index)
            if len(batch) > index % 23:
                yield batch
                batch = []
        if batch:
            yield batch


WEIGHTS = torch.linspace(0.1, 3, N)
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
}
BATCH_SAMPLERS: dict[str, Callable[[int], Any]] = {
    "batches": lambda seed: BatchSampler(WeightedRandomSampler(WEIGHTS, 100, generator=seeded(seed)), 7, drop_last=True),
    "buckets": Buckets,
    "lists": lambda seed: [[1, 2, 3], [4], [5, 5, 5, 5]],
    "arrays": lambda seed: np.random.default_rng(seed).integers(0, N, (9, 4)),
}


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """What DataLoader and loader both take, made anew by each call of the function under "made"."""
    seed = draw(st.integers(0, 1000))
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(BATCH_SAMPLERS)))
        return {"made": lambda: {"batch_sampler": BATCH_SAMPLERS[name](seed)}, "name": name}
    name = draw(st.sampled_from(sorted(SAMPLERS)))
    fixed = {"batch_size": draw(st.integers(1, 40)), "drop_last": draw(st.booleans())}
    return {"made": lambda: {"sampler": SAMPLERS[name](seed), **fixed}, "name": name}


def of(server: Server | str, **options: Any) -> StreamingEmbeddingsDataset:
    return StreamingEmbeddingsDataset(getattr(server, "url", server), "dev", **{"cache": None, **options})


def torchs(options: dict[str, Any], epochs: int = 1) -> list[Any]:
    """The batches of torch's DataLoader over the local dataset, epoch after epoch."""
    made: DataLoader[Any] = DataLoader(local("dev"), **options)
    return [list(made) for _ in range(epochs)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(choice=choices(), ahead=st.sampled_from([None, 0, 1, 5]), cache=st.sampled_from([None, "memory"]))
def test_epochs_are_those_of_torchs_dataloader(
    server: Server, choice: dict[str, Any], ahead: int | None, cache: str | None
) -> None:
    train = loader(of(server, cache=cache), ahead=ahead, advance=False, **choice["made"]())
    for expected in torchs(choice["made"](), epochs=3):
        assert_same(train, expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(choice=choices(), ahead=st.sampled_from([None, 0, 3]), data=st.data())
def test_resumed_anywhere_it_goes_on_as_torchs(
    server: Server, choice: dict[str, Any], ahead: int | None, data: st.DataObject
) -> None:
    expected = torchs(choice["made"](), epochs=3)
    first = loader(of(server), ahead=ahead, advance=False, **choice["made"]())
    whole = data.draw(st.integers(0, 1), label="epochs before")
    for epoch in range(whole):
        assert_same(first, expected[epoch])
    at = data.draw(st.integers(0, len(expected[whole])), label="batches before")
    left = iter(first)
    assert_same([next(left) for _ in range(at)], expected[whole][:at])
    state = first.state_dict()

    second = loader(of(server), ahead=ahead, advance=False, **choice["made"]())
    second.load_state_dict(state)
    rest = [*expected[whole][at:], *([] if at < len(expected[whole]) else expected[whole + 1])]
    assert_same(second, rest)
    if at < len(expected[whole]):
        assert_same(second, expected[whole + 1])
