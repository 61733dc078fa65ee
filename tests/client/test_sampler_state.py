"""State of a loader with a sampler: what each kind of sampler is saved by, and what is refused."""

import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server
from drawing import WEIGHTS, N, seeded
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from cpstream_client import CpstreamError, Retry, StateMismatch
from cpstream_client.torch import Loader, StreamingEmbeddingsDataset, loader


def of(server: Server, **options: Any) -> StreamingEmbeddingsDataset[Any]:
    return StreamingEmbeddingsDataset(
        server.url, "dev", cache=None, columns=("index",), retry=Retry(changed_timeout_s=0), **options
    )


def made(server: Server, sampler: Any, ahead: int | None = None, **options: Any) -> Loader[Any]:
    return loader(of(server), sampler=sampler, batch_size=10, ahead=ahead, **options)


def some(train: Loader[Any], count: int) -> list[list[int]]:
    """The first batches of an iteration that is then left."""
    return [index.tolist() for _, (index,) in zip(range(count), train, strict=False)]


def rest(train: Loader[Any]) -> list[list[int]]:
    return [index.tolist() for (index,) in train]


# Samplers that people write


class Shuffled(Sampler[int]):
    """Over a generator of Python, numpy or torch, as an attribute."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        for _ in range(90):
            if isinstance(self.generator, torch.Generator):
                yield int(torch.randint(0, N, (), generator=self.generator))
            elif isinstance(self.generator, np.random.Generator):
                yield int(self.generator.integers(0, N))
            elif isinstance(self.generator, np.random.RandomState):
                yield int(self.generator.randint(N))
            else:
                yield self.generator.randrange(N)


class Positioned(Sampler[int]):
    """As torchdata's StatefulDistributedSampler: its state is how far it is."""

    def __init__(self) -> None:
        self.yielded, self._from, self.epoch = 0, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(N, generator=seeded(self.epoch)).tolist()
        self.yielded, self._from = self._from, 0
        for index in order[self.yielded :]:
            self.yielded += 1
            yield index

    def state_dict(self) -> dict[str, Any]:
        return {"yielded": self.yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._from = state["yielded"]


class OfEpochs(Sampler[int]):
    """Its state is that of its generator, and says nothing of how far an epoch is."""

    def __init__(self, seed: int) -> None:
        self._random = seeded(seed)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(N, generator=self._random).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._random.set_state(state["random"])


class Fixed(OfEpochs):
    """Its state never changes at all."""

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(N, generator=seeded(5)).tolist()


class Follows(Sampler[int]):
    """A curriculum: what it draws depends on what the loop has told it."""

    def __init__(self) -> None:
        self.drawn, self.losses = 0, [0]

    def tell(self, loss: int) -> None:
        self.losses.append(loss)

    def __iter__(self) -> Iterator[int]:
        while self.drawn < 120:
            self.drawn += 1
            yield (self.drawn * 7 + sum(self.losses)) % N
        self.drawn = 0

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "losses": self.losses}  # the list itself, as people do

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn, self.losses = state["drawn"], state["losses"]


WITH_STATE: dict[str, Callable[[], Any]] = {
    "torch's generator": lambda: Shuffled(seeded(3)),
    "numpy's generator": lambda: Shuffled(np.random.default_rng(3)),
    "numpy's Philox": lambda: Shuffled(np.random.Generator(np.random.Philox(3))),
    "numpy's Mersenne twister": lambda: Shuffled(np.random.Generator(np.random.MT19937(3))),
    "numpy's RandomState": lambda: Shuffled(np.random.RandomState(3)),
    "Python's generator": lambda: Shuffled(random.Random(3)),
    "a position": Positioned,
    "a generator's state": lambda: OfEpochs(3),
    "a state that never changes": lambda: Fixed(3),
    "an epoch": lambda: DistributedSampler(range(N), num_replicas=3, rank=1),  # type: ignore[arg-type]
    "nothing": lambda: SequentialSampler(range(N)),
}


@pytest.mark.parametrize("name", WITH_STATE)
@pytest.mark.parametrize("ahead", [None, 0, 2])
def test_any_kind_goes_on_where_the_loop_was(server: Server, name: str, ahead: int | None) -> None:
    sampler = WITH_STATE[name]
    train = made(server, sampler(), ahead)
    epochs = [rest(train) for _ in range(3)]
    for before, at in ((0, 0), (0, 4), (1, 1), (1, len(epochs[1]))):
        first = made(server, sampler(), ahead)
        for _ in range(before):
            rest(first)
        assert some(first, at) == epochs[before][:at]
        saved = io.BytesIO()
        torch.save(first.state_dict(), saved)
        saved.seek(0)
        second = made(server, sampler(), ahead)
        second.load_state_dict(torch.load(saved, weights_only=True))
        left = epochs[before][at:] + (epochs[before + 1] if at == len(epochs[before]) else [])
        assert rest(second) == left, (before, at)
        if at < len(epochs[before]):
            assert rest(second) == epochs[before + 1], (before, at)


def test_a_state_is_taken_again_from_what_was_resumed(server: Server) -> None:
    for sampler in WITH_STATE.values():
        whole = rest(made(server, sampler()))
        got, state = [], made(server, sampler()).state_dict()
        while len(got) < len(whole):
            train = made(server, sampler())
            train.load_state_dict(state)
            assert train.state_dict() == state or "own" in state
            got += some(train, 3)
            state = train.state_dict()
        assert got == whole


def test_a_curriculum_that_follows_the_loss_goes_on_with_what_it_was_told(server: Server) -> None:
    def train(sampler: Follows, batches: Any) -> list[list[int]]:
        got = []
        for (index,) in batches:
            got.append(index.tolist())
            sampler.tell(int(index.sum()))
        return got

    sampler = Follows()
    whole = train(sampler, made(server, sampler, ahead=0))
    first = Follows()
    before = made(server, first, ahead=0)
    assert train(first, (batch for _, batch in zip(range(5), before, strict=False))) == whole[:5]
    state = before.state_dict()
    first.tell(10**6)  # what comes later is none of the state's
    second = Follows()
    after = made(server, second, ahead=0)
    after.load_state_dict(state)
    assert train(second, after) == whole[5:]


def test_what_was_drawn_ahead_of_a_curriculum_is_kept(server: Server) -> None:
    """It could not be drawn again: the sampler has been told something since."""
    first = Follows()
    before = made(server, first, ahead=4)
    batches = iter(before)
    got = [next(batches)[0].tolist() for _ in range(2)]
    ahead = [before.indices(step).tolist() for step in range(2, 5)]
    first.tell(123)
    second = Follows()
    after = made(server, second, ahead=4)
    after.load_state_dict(before.state_dict())
    assert some(after, 3) == ahead
    assert got[0] != ahead[0]


@pytest.mark.parametrize(
    "sampler", [lambda: RandomSampler(range(N)), lambda: SubsetRandomSampler(range(N)), lambda: WeightedRandomSampler(WEIGHTS, N)]
)
@pytest.mark.parametrize("in_batches", [False, True])
def test_torchs_samplers_without_a_generator_get_one(server: Server, sampler: Callable[[], Any], in_batches: bool) -> None:
    def new() -> Loader[Any]:
        if in_batches:
            return loader(of(server), batch_sampler=BatchSampler(sampler(), 10, drop_last=False))
        return made(server, sampler())

    torch.manual_seed(7)
    first = new()
    whole = [rest(first), rest(first)]
    assert whole[0] != whole[1]
    torch.manual_seed(7)
    again = new()
    assert [rest(again), rest(again)] == whole  # torch's own seed fixes it
    torch.manual_seed(7)
    before = new()
    some(before, 4)
    state = before.state_dict()
    torch.manual_seed(8)
    after = new()
    after.load_state_dict(state)
    assert rest(after) == whole[0][4:]


def test_a_state_without_a_samplers_own_is_json(server: Server) -> None:
    for sampler in (Shuffled(np.random.default_rng(3)), Shuffled(seeded(3)), Shuffled(random.Random(3)), range(N)):
        train = made(server, sampler)
        some(train, 2)
        state = train.state_dict()
        assert json.loads(json.dumps(state)) == state


# Epochs


def test_it_goes_on_to_the_next_epoch_and_tells_the_sampler(server: Server) -> None:
    sampler: Any = DistributedSampler(range(N), num_replicas=1, rank=0)  # type: ignore[arg-type]
    train = made(server, sampler)
    epochs = [rest(train) for _ in range(3)]
    assert [epochs[0] == epochs[1], epochs[1] == epochs[2], sampler.epoch] == [False, False, 2]
    train.set_epoch(1)
    assert [rest(train), rest(train)] == [epochs[1]] * 2  # from now on it is the caller's affair
    same = made(server, DistributedSampler(range(N), num_replicas=1, rank=0), advance=False)  # type: ignore[arg-type]
    assert [rest(same), rest(same)] == [epochs[0]] * 2


def test_an_epoch_that_the_sampler_was_told_itself_counts(server: Server) -> None:
    def new() -> Any:
        return DistributedSampler(range(N), num_replicas=1, rank=0)  # type: ignore[arg-type]

    train = made(server, new(), advance=False)
    expected = []
    for epoch in range(4):
        train.set_epoch(epoch)
        expected.append(rest(train))
    sampler = new()
    sampler.set_epoch(2)  # before the loader is made
    other = made(server, sampler)
    assert rest(other) == expected[2]
    sampler.set_epoch(1)
    assert rest(other) == expected[1]
    assert other.state_dict()["epoch"] == 1  # as long as nobody says otherwise


def test_set_epoch_keeps_a_position_of_that_epoch(server: Server) -> None:
    first = made(server, Positioned())
    whole = rest(first)
    some(first, 0)
    before = made(server, Positioned())
    some(before, 4)
    for epoch, expected in ((0, whole[4:]), (1, rest(first))):
        after = made(server, Positioned())
        after.load_state_dict(before.state_dict())
        after.set_epoch(epoch)
        assert rest(after) == expected


def test_who_tells_the_loaders_sampler_of_an_epoch_tells_the_sampler(server: Server) -> None:
    """As Lightning does."""
    sampler: Any = DistributedSampler(range(N), num_replicas=1, rank=0)  # type: ignore[arg-type]
    train: Any = made(server, sampler)
    train.sampler.set_epoch(3)
    assert (sampler.epoch, train.epoch) == (3, 3)


def test_an_epoch_of_which_the_sampler_knows_nothing_is_warned_of(server: Server) -> None:
    train = made(server, Shuffled(seeded(1)))
    for epoch in range(3):
        train.set_epoch(epoch)
        rest(train)
    fresh = made(server, Shuffled(seeded(1)))
    with pytest.warns(UserWarning, match="epoch 2 was chosen, and Shuffled knows nothing of epochs"):
        fresh.set_epoch(2)
    other = made(server, Shuffled(seeded(1)))
    other.load_state_dict(train.state_dict())
    other.set_epoch(other.epoch)


def test_a_pass_that_was_left_begins_again(server: Server) -> None:
    train = made(server, DistributedSampler(range(N), num_replicas=1, rank=0))  # type: ignore[arg-type]
    assert some(train, 3) == rest(train)[:3]


# What is refused


class Unknown(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        yield from np.random.permutation(N).tolist()


def test_a_sampler_of_which_nothing_is_known_has_no_state(server: Server) -> None:
    train = made(server, Unknown())
    assert len(rest(train)) == N // 10
    with pytest.raises(CpstreamError, match="Unknown has no state that could be saved: give it a generator of its own"):
        train.state_dict()
    with pytest.raises(CpstreamError, match="Unknown has no state"):
        train.load_state_dict(made(server, range(N)).state_dict() | {"sampler": "Unknown"})


def test_planned_and_sampled_states_refuse_each_other(server: Server) -> None:
    planned, sampled = loader(of(server)), made(server, range(N))
    with pytest.raises(StateMismatch, match="the state is of a loader with a sampler, range"):
        planned.load_state_dict(sampled.state_dict())
    with pytest.raises(StateMismatch, match="the state is of a loader without a sampler, and this one has range"):
        sampled.load_state_dict(planned.state_dict())


def test_the_dataset_does_not_answer_for_a_sampler(server: Server) -> None:
    dataset = of(server)
    some(loader(dataset, sampler=range(N)), 1)
    with pytest.raises(CpstreamError, match="the last batches were chosen by range"):
        dataset.state_dict()
    some(loader(dataset), 1)
    assert dataset.state_dict()["start"] == 256


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fingerprint": "ffff"}, "fingerprint 'ffff'"),
        ({"split": "train"}, "split 'train'"),
        ({"sampler": "RandomSampler"}, "sampler 'RandomSampler', this dataset has 'Shuffled'"),
        ({"batch_size": 20}, "batch_size 20"),
        ({"drop_last": True}, "drop_last True"),
        ({"world_size": 2}, "world_size 2"),
        ({"rank": 1}, "rank 1, and this is rank 0"),
        ({"generators": {"rng": ""}}, "states of rng, and Shuffled here has states of generator"),
    ],
)
def test_a_state_of_something_else_is_refused(server: Server, change: dict[str, Any], says: str) -> None:
    first = made(server, Shuffled(seeded(1)))
    some(first, 2)
    with pytest.raises(StateMismatch, match=says):
        made(server, Shuffled(seeded(1))).load_state_dict(first.state_dict() | change)


def test_a_state_of_a_sampler_with_a_state_of_its_own(server: Server) -> None:
    state = made(server, Positioned()).state_dict()
    with pytest.raises(StateMismatch, match=r"the state holds a state_dict of its own, and Shuffled here has states of generator"):
        made(server, Shuffled(seeded(1))).load_state_dict(state | {"sampler": "Shuffled"})


def test_a_sampler_that_draws_something_else_is_noticed(server: Server) -> None:
    """Its weights have changed, say. Without this its batches would be repeated and lost, silently."""
    first = made(server, WeightedRandomSampler(WEIGHTS, N, generator=seeded(1)))
    some(first, 3)
    second = made(server, WeightedRandomSampler(WEIGHTS.flip(0), N, generator=seeded(1)))
    second.load_state_dict(first.state_dict())
    with pytest.raises(StateMismatch, match="WeightedRandomSampler draws other batches than the 3 that the state counts"):
        next(iter(second))


def test_ranks_share_the_state_of_a_sampler_that_depends_on_the_epoch_alone(server: Server) -> None:
    def of_rank(rank: int) -> Loader[Any]:
        sampler: Any = DistributedSampler(range(N), num_replicas=2, rank=rank)  # type: ignore[arg-type]
        return loader(of(server, rank=rank, world_size=2), sampler=sampler, batch_size=10)

    first = of_rank(0)
    some(first, 3)
    other = of_rank(1)
    whole = rest(of_rank(1))
    other.load_state_dict(first.state_dict())
    assert rest(other) == whole[3:]
