"""state_dict and load_state_dict: small JSON, counted in what the loop received, accepted by torch and torchdata."""

import io
import json
import multiprocessing
import pickle
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server
from oracle import FORKING, indices_of
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from cpstream_client import CpstreamError, StateMismatch
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader

pytestmark = FORKING
N, BATCH_SIZE, SEED, STEPS = 1800, 64, 7, 29


def dataset(server: Server, **options: Any) -> StreamingEmbeddingsDataset:
    """The demo's train split, of which only the indices are looked at."""
    return StreamingEmbeddingsDataset(
        server.url, "train", **{"batch_size": BATCH_SIZE, "shuffle": True, "seed": SEED, "columns": ("index",), **options}
    )


def expected(epoch: int, **options: Any) -> list[list[int]]:
    return indices_of(N, **{"batch_size": BATCH_SIZE, "seed": SEED, "epoch": epoch, **options})


def indices(batches: Iterable[Any]) -> list[list[int]]:
    return [index.tolist() for (index,) in batches]


def stopped_after(batches: Any, steps: int) -> tuple[list[list[int]], dict[str, Any]]:
    """What the loop got in so many steps, and the state that it then took in the body of its last step."""
    got = []
    for (index,) in batches:
        got.append(index.tolist())
        if len(got) == steps:
            return got, batches.state_dict()
    raise AssertionError(f"only {len(got)} steps")


# What a state is


def test_a_state_is_small_readable_json(server: Server) -> None:
    _, state = stopped_after(loader(dataset(server)), 3)
    assert state == {
        "fingerprint": server.snapshot.splits["train"].fingerprint,
        "split": "train",
        "seed": SEED,
        "epoch": 0,
        "start": 3 * BATCH_SIZE,
        "shuffle": True,
        "remainder": "pad",
    }
    assert json.loads(json.dumps(state)) == state
    assert len(json.dumps(state)) < 200


def test_numpys_integers_do_not_get_into_it(server: Server) -> None:
    train = dataset(server, seed=np.int64(SEED), batch_size=np.int32(BATCH_SIZE))
    train.set_epoch(np.int64(2))
    assert json.loads(json.dumps(stopped_after(loader(train), 1)[1]))["seed"] == SEED


def test_it_survives_json_torch_and_pickle(server: Server) -> None:
    _, state = stopped_after(loader(dataset(server)), 5)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    for copy in (json.loads(json.dumps(state)), torch.load(file, weights_only=True), pickle.loads(pickle.dumps(state))):
        resumed = loader(dataset(server))
        resumed.load_state_dict(copy)
        assert indices(resumed) == expected(0)[5:]


# What it counts


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 2}, {"num_workers": 3, "prefetch_factor": 8}], ids=str)
@pytest.mark.parametrize("prefetch_bytes", [1, 2**26])
def test_it_counts_what_the_loop_received(server: Server, options: dict[str, Any], prefetch_bytes: int) -> None:
    batches = loader(dataset(server, prefetch_bytes=prefetch_bytes, rank=1, world_size=2), **options)
    starts = []
    for _ in batches:
        state = batches.state_dict()
        starts.append((state["epoch"], state["start"]))
        assert batches.steps_left == (15 - len(starts) or 15)  # after the last step: those of the next iteration
    # All ranks' samples. In the body of the last step the epoch is over, whatever of it was padding.
    assert starts == [(0, 2 * BATCH_SIZE * step) for step in range(1, 15)] + [(1, 0)]


def _one_ahead(items: Iterable[Any], _: torch.device) -> Iterator[Any]:
    """What to_device does, but for the copies: it takes a batch before the loop has asked for it."""
    yield from (batch for batch, _ in pairwise([*items, None]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_does_not_count_what_is_being_copied_to_a_device(
    server: Server, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr(import_module("cpstream_client.torch.loader"), "to_device", _one_ahead)
    batches = loader(dataset(server), num_workers=num_workers)
    batches.device = torch.device("cpu")
    got, state = stopped_after(batches, 7)
    assert state["start"] == 7 * BATCH_SIZE
    batches.load_state_dict(state)
    assert got + indices(batches) == expected(0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_before_the_first_batch_and_after_the_last(server: Server, num_workers: int) -> None:
    batches = loader(dataset(server), num_workers=num_workers)
    batches.set_epoch(4)
    iterator = iter(batches)
    assert (batches.state_dict()["epoch"], batches.state_dict()["start"]) == (4, 0)
    assert len(list(iterator)) == STEPS
    assert (batches.state_dict()["epoch"], batches.state_dict()["start"]) == (5, 0)


@pytest.mark.parametrize("make", [lambda ds: ds, lambda ds: DataLoader(ds, batch_size=None)], ids=["alone", "plain loader"])
def test_in_one_process_the_dataset_itself_knows(server: Server, make: Any) -> None:
    train = dataset(server)
    for step, _ in enumerate(make(train), 1):
        if step == 4:
            break
    resumed = dataset(server)
    resumed.load_state_dict(train.state_dict())
    assert indices(make(resumed)) == expected(0)[4:]


def test_a_plain_loader_with_workers_cannot_know_and_says_so(server: Server) -> None:
    train = dataset(server)
    list(train)  # of an earlier iteration it knew
    for _ in DataLoader(train, batch_size=None, num_workers=2):
        with pytest.raises(CpstreamError, match=r"cpstream_client\.torch\.loader\(dataset, num_workers=\.\.\.\)"):
            train.state_dict()
        break


def test_a_loader_out_of_order_is_refused(server: Server) -> None:
    with pytest.raises(ValueError, match="in_order is False"):
        loader(dataset(server), num_workers=2, in_order=False)


def test_a_loader_of_something_else_is_refused(server: Server) -> None:
    with pytest.raises(TypeError, match="not a RemoteEmbeddingsDataset; give that to a DataLoader"):
        loader(RemoteEmbeddingsDataset(server.url, "train"))  # type: ignore[arg-type]


# Going on


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("steps", [1, 7, STEPS - 1])
def test_resuming_goes_on_with_the_next_batch(server: Server, steps: int, num_workers: int) -> None:
    first = loader(dataset(server), num_workers=num_workers)
    first.set_epoch(3)
    got, state = stopped_after(first, steps)
    resumed = loader(dataset(server), num_workers=num_workers)
    resumed.load_state_dict(state)
    assert (resumed.dataset.epoch, resumed.steps_left, len(resumed)) == (3, STEPS - steps, STEPS)
    for epoch in range(resumed.dataset.epoch, 6):  # as a training script does
        resumed.set_epoch(epoch)
        got += indices(resumed)
    assert got == expected(3) + expected(4) + expected(5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_of_the_last_step_begins_a_full_next_epoch(server: Server, num_workers: int) -> None:
    _, state = stopped_after(loader(dataset(server), num_workers=num_workers), STEPS)
    resumed = loader(dataset(server), num_workers=num_workers)
    resumed.load_state_dict(state)
    assert resumed.dataset.epoch == 1
    assert indices(resumed) == expected(1)


def test_a_resume_of_a_resume_and_a_second_resume(server: Server) -> None:
    got, state = stopped_after(loader(dataset(server)), 5)
    middle = loader(dataset(server), num_workers=2)
    middle.load_state_dict(state)
    more, later = stopped_after(middle, 4)
    for _ in range(2):  # the second crash before the next checkpoint
        last = loader(dataset(server), num_workers=1)
        last.load_state_dict(later)
        assert last.state_dict() == later  # before the first batch
        assert got + more + indices(last) == expected(0)


def test_resuming_under_other_conditions(server: Server) -> None:
    _, state = stopped_after(loader(dataset(server), num_workers=2), 10)
    for batch_size, num_workers in ((100, 0), (33, 1), (2000, 3)):
        resumed = loader(dataset(server, batch_size=batch_size), num_workers=num_workers)
        resumed.load_state_dict(state)
        left = [index for batch in expected(0)[10:] for index in batch]
        assert indices(resumed) == [left[low : low + batch_size] for low in range(0, len(left), batch_size)]


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=str)
def test_a_position_is_resumed_once(server: Server, options: dict[str, Any]) -> None:
    batches = loader(dataset(server), advance=False, **options)
    _, state = stopped_after(batches, 6)
    batches.load_state_dict(state)  # into the loader that runs already, its workers alive
    assert indices(batches) == expected(0)[6:]
    assert indices(batches) == expected(0)  # then whole epochs again, without set_epoch the same one
    batches.load_state_dict(state)
    stopped_after(batches, 2)
    assert indices(batches) == expected(0)  # beginning again starts over, as ever
    batches.load_state_dict(state)
    batches.set_epoch(0)  # the same: keeps the position
    iter(batches)  # nor does this use it up
    assert indices(batches) == expected(0)[6:]
    batches.load_state_dict(state)
    batches.set_epoch(2)  # another: does not
    assert indices(batches) == expected(2)


def test_set_epoch_after_leaving_the_loop_begins_the_epoch(server: Server) -> None:
    batches = loader(dataset(server))
    stopped_after(batches, 6)
    assert batches.state_dict()["start"] == 6 * BATCH_SIZE
    batches.set_epoch(0)
    assert batches.state_dict()["start"] == 0
    assert batches.steps_left == STEPS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 32}, "the state has fingerprint '0{32}', this dataset has '{fingerprint}'"),
        ({"split": "dev"}, "the state has split 'dev', this dataset has 'train'"),
        ({"seed": 8}, "the state has seed 8, this dataset has 7; resume with the seed of the state, or start a new run without it"),
        ({"shuffle": False}, "the state has shuffle False, this dataset has True"),
        ({"epoch": -1}, "the state's epoch is -1; it must be a whole number, 0 or more"),
        ({"start": 1.5}, r"the state's start is 1\.5; it must be a whole number, 0 or more"),
        ({"start": 1801}, "the state's start is 1801; the split has 1800 samples"),
        ({"worker": 0}, "this is the state of one DataLoader worker"),
    ],
)
def test_a_state_of_something_else_is_refused_with_both_values(server: Server, change: dict[str, Any], message: str) -> None:
    train = dataset(server)
    train.load_state_dict({**train.state_dict(), "epoch": 1, "start": 640})
    with pytest.raises(StateMismatch, match=message.replace("{fingerprint}", train.info.fingerprint)):
        train.load_state_dict({**train.state_dict(), **change})
    assert indices(train) == expected(1)[10:]  # and has changed nothing


def test_what_is_no_state_is_refused(server: Server) -> None:
    with pytest.raises(StateMismatch, match="the state has no 'fingerprint'"):
        dataset(server).load_state_dict({"epoch": 3})


# Copies and processes


def test_a_copy_of_a_resumed_dataset_is_resumed(server: Server) -> None:
    train = dataset(server)
    train.load_state_dict({**train.state_dict(), "epoch": 1, "start": 640})
    assert indices(pickle.loads(pickle.dumps(train))) == expected(1)[10:]
    assert len(indices(train)) == STEPS - 10
    assert indices(pickle.loads(pickle.dumps(train))) == expected(1)  # but not one that was resumed before


def _go_to(train: StreamingEmbeddingsDataset, epoch: int) -> None:
    train.set_epoch(epoch)
    got = indices(loader(train, num_workers=2))
    assert got == expected(epoch)


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_ranks_of_one_machine_do_not_move_each_others_epoch(server: Server, context: Any) -> None:
    train = dataset(server)
    rank = multiprocessing.get_context(context).Process(target=_go_to, args=(train, 3))
    rank.start()
    rank.join()
    assert rank.exitcode == 0
    assert train.epoch == 0
    assert indices(loader(train, num_workers=2)) == expected(0)


# Other people's loaders


# torchdata 0.11 calls torch.set_vital, which torch 2.13 deprecates.
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=str)
def test_torchdatas_stateful_dataloader(server: Server, options: dict[str, Any]) -> None:
    def stateful(**changed: Any) -> tuple[StreamingEmbeddingsDataset, StatefulDataLoader[Any]]:
        train = dataset(server, **changed)
        return train, StatefulDataLoader(train, batch_size=None, **options)

    train, batches = stateful()
    train.set_epoch(2)
    assert indices(batches) == expected(2)
    ended = json.loads(json.dumps(batches.state_dict()))
    train.set_epoch(3)
    got, state = stopped_after(batches, 9)
    state = json.loads(json.dumps(state))
    # A resume, and a resume of the resume.
    for steps in (4, None):
        train, batches = stateful()
        batches.load_state_dict(state)  # which knows the epoch, too
        if steps is None:
            got += indices(batches)
        else:
            more, state = stopped_after(batches, steps)
            got += more
    assert got == expected(3)
    train.set_epoch(4)
    assert indices(batches) == expected(4)
    # Of the end of an epoch: a full next one.
    train, batches = stateful()
    train.set_epoch(3)
    batches.load_state_dict(ended)
    assert indices(batches) == expected(3)
    # Of another seed, or with workers of another batch size, in which they count.
    for changed in ({"seed": 8}, {"batch_size": 32}) if options else ({"seed": 8},):
        _, batches = stateful(**changed)
        batches.load_state_dict(state)
        with pytest.raises(StateMismatch, match=f"the state has {next(iter(changed))} "):
            next(iter(batches))
