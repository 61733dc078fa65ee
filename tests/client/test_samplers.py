"""loader(dataset, sampler=...): the batches that a DataLoader of torch gives with the same sampler. torch is the oracle."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server
from drawing import BATCH_SAMPLERS, SAMPLERS, WEIGHTS, Buckets, Curriculum, N, seeded, torchs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_same, local
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler, WeightedRandomSampler

from cpstream_client import Client, CorruptedError, Retry
from cpstream_client.contract.index_batches import IndexBatches
from cpstream_client.stream import chosen as chosen_module
from cpstream_client.torch import Loader, RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader
from cpstream_client.transport.retry import Patience


@st.composite
def choices(draw: st.DrawFn) -> Any:
    """A function that makes anew what DataLoader and loader both take."""
    seed = draw(st.integers(0, 1000))
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(BATCH_SAMPLERS)))
        return lambda: {"batch_sampler": BATCH_SAMPLERS[name](seed)}
    name = draw(st.sampled_from(sorted(SAMPLERS)))
    fixed = {"batch_size": draw(st.integers(1, 40)), "drop_last": draw(st.booleans())}
    return lambda: {"sampler": SAMPLERS[name](seed), **fixed}


def of(server: Server | str, **options: Any) -> StreamingEmbeddingsDataset[Any]:
    return StreamingEmbeddingsDataset(getattr(server, "url", server), "dev", **{"cache": None, **options})  # type: ignore[misc]


def indices_of(batches: Any) -> list[list[int]]:
    return [index.tolist() for (index,) in batches]


# The same as torch


@settings(max_examples=60, deadline=None, derandomize=True)
@given(choice=choices(), ahead=st.sampled_from([None, 0, 1, 5]), cache=st.sampled_from([None, "memory"]))
def test_epochs_are_those_of_torchs_dataloader(server: Server, choice: Any, ahead: int | None, cache: str | None) -> None:
    train = loader(of(server, cache=cache), ahead=ahead, advance=False, **choice())
    for expected in torchs(local("dev"), choice(), epochs=3):
        assert_same(train, expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(choice=choices(), ahead=st.sampled_from([None, 0, 3]), data=st.data())
def test_resumed_anywhere_it_goes_on_as_torchs(server: Server, choice: Any, ahead: int | None, data: st.DataObject) -> None:
    expected = torchs(local("dev"), choice(), epochs=3)
    first = loader(of(server), ahead=ahead, advance=False, **choice())
    whole = data.draw(st.integers(0, 1), label="epochs before")
    for epoch in range(whole):
        assert_same(first, expected[epoch])
    at = data.draw(st.integers(0, len(expected[whole])), label="batches before")
    left = iter(first)
    assert_same([next(left) for _ in range(at)], expected[whole][:at])
    state = first.state_dict()

    second = loader(of(server), ahead=ahead, advance=False, **choice())
    second.load_state_dict(state)
    is_over = at == len(expected[whole])
    assert_same(second, expected[whole + 1] if is_over else expected[whole][at:])
    if not is_over:
        assert_same(second, expected[whole + 1])


@pytest.mark.parametrize("options", [{"sampler": "weighted", "batch_size": 16}, {"batch_sampler": "buckets"}])
def test_resumed_at_every_position(server: Server, options: dict[str, Any]) -> None:
    def made() -> Loader[Any]:
        of_seed = {name: {**SAMPLERS, **BATCH_SAMPLERS}[value](3) for name, value in options.items() if isinstance(value, str)}
        return loader(of(server, columns=("index",)), **options | of_seed)

    whole = indices_of(made())
    for at in range(len(whole)):
        first, second = made(), made()
        left = iter(first)
        for _ in range(at):
            next(left)
        second.load_state_dict(first.state_dict())
        assert indices_of(second) == whole[at:]


def test_two_ranks_with_distributed_sampler(server: Server) -> None:
    for rank in range(2):
        sampler: Any = DistributedSampler(local("dev"), num_replicas=2, rank=rank, seed=5)
        ours = loader(of(server, rank=rank, world_size=2), sampler=sampler, batch_size=32)
        torch_sampler: Any = DistributedSampler(local("dev"), num_replicas=2, rank=rank, seed=5)
        theirs: Any = DataLoader(local("dev"), sampler=torch_sampler, batch_size=32)
        for epoch in (0, 1, 7):
            if epoch == 7:
                sampler.set_epoch(epoch)  # as a loop written for torch does
            else:
                ours.set_epoch(epoch)
            torch_sampler.set_epoch(epoch)
            assert len(ours) == len(theirs)
            assert_same(ours, theirs)


def test_a_sampler_without_a_generator_draws_what_torch_draws(server: Server) -> None:
    """As long as it is RandomSampler, the only one that seeds a generator of its own."""
    for options in ({}, {"replacement": True, "num_samples": 333}):
        torch.manual_seed(4)
        expected = torchs(local("dev"), {"sampler": RandomSampler(range(N), **options), "batch_size": 30}, epochs=2)
        torch.manual_seed(4)
        ours = loader(of(server), sampler=RandomSampler(range(N), **options), batch_size=30)
        for epoch in expected:
            assert_same(ours, epoch)


def test_a_sampler_that_draws_from_the_global_generator_finds_it_as_with_torch(server: Server) -> None:
    class Global(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            yield from torch.randint(0, N, (50,)).tolist()

    torch.manual_seed(4)
    expected = torchs(local("dev"), {"sampler": Global(), "batch_size": 20}, epochs=2)
    torch.manual_seed(4)
    ours = loader(of(server), sampler=Global(), batch_size=20)
    for epoch in expected:
        assert_same(ours, epoch)


def test_all_columns_come_and_collate_fn_is_called(server: Server) -> None:
    split = server.snapshot.splits["dev"]
    columns = ("file_path", "index", "cps")
    for cache in (None, "memory"):
        sampled = loader(of(server, columns=columns, cache=cache), sampler=[7, 7, 2, 299, 0], batch_size=3, collate_fn=list)
        for epoch in range(2):
            batches = list(sampled)
            assert [type(batch) for batch in batches] == [list, list], epoch
            assert [path for paths, *_ in batches for path in paths] == split.file_paths.take([7, 7, 2, 299, 0]).to_pylist()
            assert torch.cat([cps for *_, cps in batches]).tolist() == split.cps[[7, 7, 2, 299, 0]].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": range(N), "batch_size": 7},
        {"sampler": range(N), "batch_size": 7, "drop_last": True},
        {"sampler": [], "batch_size": 7},
        {"batch_sampler": BatchSampler(range(N), 9, drop_last=False)},
    ],
)
def test_it_is_as_long_as_torchs(server: Server, options: dict[str, Any]) -> None:
    ours, theirs = loader(of(server), **options), DataLoader(local("dev"), **options)
    assert len(ours) == len(theirs) == len(list(ours)) == ours.steps_left
    for left, _ in zip(range(len(theirs) - 1, -1, -1), ours, strict=True):
        assert ours.steps_left == (left or len(theirs))


def test_a_sampler_without_length(server: Server) -> None:
    ours = loader(of(server), sampler=Curriculum(1), batch_size=4)
    with pytest.raises(TypeError, match="Curriculum has no length"):
        len(ours)
    assert len(list(ours)) == len(torchs(local("dev"), {"sampler": Curriculum(1), "batch_size": 4})[0])


def test_a_sampler_without_end_is_left_as_ever(server: Server) -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            at = 0
            while True:
                yield at % N
                at += 1

    ours = loader(of(server, columns=("index",)), sampler=Endless(), batch_size=8)
    for step, (index,) in zip(range(500), ours, strict=False):
        assert index.tolist() == [(step * 8 + i) % N for i in range(8)]


# Ahead


@pytest.mark.parametrize("ahead", [0, 1, 2, 7, 100])
def test_no_more_is_drawn_ahead_than_was_said(server: Server, ahead: int) -> None:
    drawn: list[int] = []

    class Counting(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            for index in range(60):
                drawn.append(index)
                yield index

    ours = loader(of(server), sampler=Counting(), batch_size=2, ahead=ahead)
    most = 0
    for step, _ in enumerate(ours):
        most = max(most, len(drawn) // 2 - step - 1)
        assert len(drawn) // 2 - step - 1 <= ahead
    assert most == min(ahead, 29)


def test_with_ahead_0_a_curriculum_sees_what_the_loop_has_told_it(server: Server) -> None:
    class Hardest(Sampler[int]):
        next_index = 5

        def __iter__(self) -> Iterator[int]:
            for _ in range(10):
                yield self.next_index

    sampler = Hardest()
    for step, (index,) in enumerate(loader(of(server, columns=("index",)), sampler=sampler, batch_size=1, ahead=0)):
        assert index.item() == (5 if step == 0 else (step - 1) * 7)
        sampler.next_index = step * 7


def counting(server: Server) -> tuple[Client, list[str]]:
    """A client, and the method and path of all its requests."""
    asked: list[str] = []
    return Client(server.url, event_hooks={"request": [lambda each: asked.append(f"{each.method} {each.url.path}")]}), asked


def test_many_batches_are_one_request(server: Server) -> None:
    client, asked = counting(server)
    batches = list(loader(StreamingEmbeddingsDataset(client, "dev", cache=None), sampler=RandomSampler(range(N)), batch_size=3))
    assert len(batches) == 100
    assert 1 <= asked.count("POST /v1/splits/dev/batches") <= 3
    assert set(asked) == {"GET /v1/splits/dev", "POST /v1/splits/dev/batches"}


def test_an_epochs_connection_serves_the_next(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reply is read to the end, not broken off behind the last batch."""
    failures: list[Exception] = []
    monkeypatch.setattr(Patience, "wait_s", lambda self, error, endpoint="": failures.append(error) or 0.0)  # type: ignore[func-returns-value]
    train = loader(of(server), sampler=range(30), batch_size=10)
    for _ in range(30):
        assert len(list(train)) == 3
    assert not failures


def test_what_the_cache_holds_is_not_asked_for(server: Server) -> None:
    client, asked = counting(server)
    dataset = StreamingEmbeddingsDataset(client, "dev", cache="memory", columns=("index",))
    some, others = loader(dataset, sampler=range(100), batch_size=8), loader(dataset, sampler=range(90, 120), batch_size=8)
    assert indices_of(some) == batches_of(range(100), 8)
    asked.clear()
    assert indices_of(some) == batches_of(range(100), 8)
    assert asked == ["GET /v1/splits/dev"]  # whether the data is the same still
    assert indices_of(others) == batches_of(range(90, 120), 8)
    assert "POST /v1/splits/dev/batches" in asked


def test_of_what_the_cache_lacks_only_that_is_asked_for(server: Server) -> None:
    bodies: list[bytes] = []
    hooks = {"request": [lambda each: bodies.append(each.read())]}
    client = Client(server.url, event_hooks=hooks)
    dataset = StreamingEmbeddingsDataset(client, "dev", cache="memory", columns=("index", "embedding"))
    list(loader(dataset, sampler=range(100), batch_size=8))
    bodies.clear()
    got = list(loader(dataset, sampler=[*range(60, 140), 120], batch_size=100))
    assert [len(index) for index, _ in got] == [81]
    assert torch.equal(got[0][1], local("dev").audio_data[[*range(60, 140), 120]])
    asked = [IndexBatches.unpack(body).indices.tolist() for body in bodies if body]
    assert asked == [list(range(100, 140))]


def batches_of(sampler: Any, batch_size: int) -> list[list[int]]:
    return [list(batch) for batch in BatchSampler(sampler, batch_size, drop_last=False)]


def test_a_batch_sampler_given_as_sampler_is_one(server: Server) -> None:
    """As in DataLoader(..., batch_size=None, sampler=BatchSampler(...)), the fastest way to use torch's."""
    ours = loader(of(server, columns=("index",)), sampler=BatchSampler(range(50), 8, drop_last=True))
    assert indices_of(ours) == batches_of(range(48), 8)


def test_an_iterator_serves_one_epoch_and_says_so(server: Server) -> None:
    ours = loader(of(server, columns=("index",)), sampler=iter(range(30)), batch_size=10)
    assert indices_of(ours) == batches_of(range(30), 10)
    with pytest.raises(TypeError, match="range_iterator is an iterator, and at its end"):
        next(iter(ours))


# The audit


def test_indices_say_which_samples_a_batch_holds(server: Server) -> None:
    ours = loader(of(server, columns=("index",)), sampler=WeightedRandomSampler(WEIGHTS, 100, generator=seeded(1)), batch_size=9)
    with pytest.raises(IndexError, match="draws when the iteration begins"):
        ours.indices(0)
    batches = indices_of(ours)
    assert [ours.indices(step).tolist() for step in range(len(batches))] == batches
    with pytest.raises(IndexError, match="steps 0 to 11 are known"):
        ours.indices(12)


def test_indices_of_a_plan(server: Server) -> None:
    ours = loader(of(server, columns=("index",), shuffle=True, batch_size=64, rank=1, world_size=2))
    for _ in range(2):
        batches = indices_of(ours)
        assert [ours.indices(step).tolist() for step in range(len(batches))] == batches
    with pytest.raises(IndexError, match="has 3 steps"):
        ours.indices(3)


# What is wrong


@pytest.mark.parametrize(
    ("drawn", "error", "says"),
    [
        (-1, IndexError, "drew index -1, which is outside split 'dev'; indices: 0 to 299"),
        (300, IndexError, "drew index 300, which is outside split 'dev'; indices: 0 to 299"),
        (np.int32(301), IndexError, "drew index 301"),
        (2**70, TypeError, f"drew {2**70}, which is no index"),
        (1.0, TypeError, "drew 1.0, which is no index; indices are whole numbers"),
        ("7", TypeError, "drew '7', which is no index"),
        (None, TypeError, "drew None"),
        (torch.tensor(1.5), TypeError, r"drew tensor\(1.5000\)"),
        ([1, 2], TypeError, r"drew \[1, 2\]"),
    ],
)
def test_what_is_no_index_is_said_at_its_batch(server: Server, drawn: Any, error: type[Exception], says: str) -> None:
    class Wrong(Sampler[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from [1, 2, 3, 4, 5, drawn, 7]

    got: list[list[int]] = []
    batches = loader(of(server, columns=("index",)), sampler=Wrong(), batch_size=2)
    with pytest.raises(error, match=f"Wrong {says}"):
        got.extend(index.tolist() for (index,) in batches)
    assert got == [[1, 2], [3, 4]]


@pytest.mark.parametrize("drawn", [np.array([1.5]), torch.zeros(2, 2, dtype=torch.int64), np.array([True])])
def test_a_batch_that_is_no_row_of_indices(server: Server, drawn: Any) -> None:
    with pytest.raises(TypeError, match=r"list drew .*a batch is a row of whole numbers"):
        list(loader(of(server), batch_sampler=[[1], drawn]))


def test_an_error_of_the_sampler_comes_at_its_batch_as_it_is(server: Server) -> None:
    raised = KeyError("no such speaker")

    class Raising(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            yield from range(20)
            raise raised

    for ahead in (None, 0, 3):
        ours = loader(of(server, columns=("index",)), sampler=Raising(), batch_size=8, ahead=ahead)
        for _ in range(2):  # a pass that failed is one that was left
            got: list[list[int]] = []
            with pytest.raises(KeyError) as caught:
                got.extend(index.tolist() for (index,) in ours)
            assert caught.value is raised
            assert got == batches_of(range(16), 8)


def test_empty_batches_and_no_batches(server: Server) -> None:
    assert list(loader(of(server), sampler=[], batch_size=3)) == []
    sizes = [len(cps) for _, cps in loader(of(server), batch_sampler=[[1, 2], [], [3]])]
    assert sizes == [2, 0, 1]


@pytest.mark.parametrize(
    ("options", "of_dataset", "says"),
    [
        ({"sampler": [1], "batch_sampler": [[1]]}, {}, "give one of them"),
        ({"sampler": [1], "num_workers": 2}, {}, "num_workers is 2; list is drawn from in the loop's process"),
        ({"sampler": [1], "ahead": -1}, {}, "ahead is -1"),
        ({"sampler": [1]}, {"shuffle": True}, "the dataset's shuffle is True, and list chooses the order"),
        ({"sampler": [1], "batch_size": 8}, {"batch_size": 16}, "batch_size is 8, and that of the dataset 16"),
        ({"sampler": [1], "batch_size": 8}, {"batch_size": 256}, "batch_size is 8, and that of the dataset 256"),
        ({"sampler": [1], "batch_size": 0}, {}, "batch_size is 0"),
        ({"batch_sampler": [[1]], "batch_size": 8}, {}, "batch_size and drop_last go with sampler="),
        ({"batch_sampler": [[1]], "drop_last": True}, {}, "batch_size and drop_last go with sampler="),
        ({"ahead": 3}, {}, "ahead is 3; it goes with a sampler"),
        ({"drop_last": True}, {}, "drop_last is True; it goes with a sampler"),
        ({"batch_size": 8}, {}, "give batch_size to StreamingEmbeddingsDataset"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], of_dataset: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        loader(of("http://127.0.0.1:9", **of_dataset), **options)


def test_what_is_no_sampler() -> None:
    for wrong in (7, "abc"):
        with pytest.raises(TypeError, match="must be a torch sampler"):
            loader(of("http://127.0.0.1:9"), sampler=wrong)  # type: ignore[arg-type]
    remote: Any = RemoteEmbeddingsDataset("http://127.0.0.1:9", "dev")
    with pytest.raises(TypeError, match="loader takes a StreamingEmbeddingsDataset"):
        loader(remote, sampler=[1])


def test_batch_size_is_the_loaders_or_else_the_datasets(server: Server) -> None:
    for of_dataset, of_loader, expected in ((None, 40, 40), (50, None, 50), (60, 60, 60), (None, None, 256)):
        ours = loader(of(server, batch_size=of_dataset), sampler=range(N), batch_size=of_loader)
        assert len(next(iter(ours))[1]) == expected


def test_a_reply_with_other_samples_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the index column, although all its checksums are right."""
    real = chosen_module.IndexBatches.pack
    monkeypatch.setattr(
        chosen_module.IndexBatches,
        "pack",
        lambda self: real(chosen_module.IndexBatches(self.indices[::-1].copy(), self.sizes)),
    )
    client = Client(server.url, retry=Retry(timeout_s=0))
    dataset = StreamingEmbeddingsDataset(client, "dev", cache=None)
    with pytest.raises(CorruptedError, match="other samples than those asked for"):
        list(loader(dataset, sampler=[1, 2, 3], batch_size=3))


def test_buckets_are_of_several_sizes() -> None:
    """The sampler that stands for them in these tests is one."""
    assert len({len(batch) for batch in Buckets(0)}) > 5
