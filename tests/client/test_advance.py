"""Where nobody calls set_epoch: a loader goes on to the next epoch by itself, and a plain DataLoader says that it does not."""

import json
import pickle
from typing import Any

import pytest
from conftest import Server
from oracle import FORKING
from test_state import STEPS, dataset, expected, indices, stopped_after
from torch.utils.data import DataLoader

from cpstream_client.torch import loader

pytestmark = FORKING
WORKERS = pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=str)
REPEATED = "begins the same shuffled epoch again, in the same order: call set_epoch"


@WORKERS
def test_a_loader_advances_after_each_complete_pass(server: Server, options: dict[str, Any]) -> None:
    batches = loader(dataset(server), **options)
    for epoch in range(2):
        assert batches.dataset.epoch == epoch
        assert indices(batches) == expected(epoch)
    stopped_after(batches, 5)  # a pass that was left does not count
    assert batches.dataset.epoch == 2
    assert indices(batches) == expected(2)
    assert (batches.state_dict()["epoch"], batches.state_dict()["start"]) == (3, 0)


@WORKERS
def test_resumes_advance_too(server: Server, options: dict[str, Any]) -> None:
    first = loader(dataset(server), **options)
    indices(first)
    got, state = stopped_after(first, 9)
    resumed = loader(dataset(server), **options)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert got + indices(resumed) == expected(1)
    assert indices(resumed) == expected(2)
    # Of the end of an epoch, which a loop that counts its steps does not ask to end.
    _, ended = stopped_after(resumed, STEPS)
    assert resumed.steps_left == STEPS
    again = loader(dataset(server), **options)
    again.load_state_dict(ended)
    assert indices(again) == indices(resumed) == expected(4)


@WORKERS
def test_set_epoch_takes_over_for_good(server: Server, options: dict[str, Any]) -> None:
    batches = loader(dataset(server), **options)
    assert indices(batches) == expected(0)
    batches.set_epoch(1)  # the very epoch that it has come to
    for _ in range(2):
        assert indices(batches) == expected(1)
    batches.set_epoch(0)
    assert indices(batches) == expected(0)


@WORKERS
def test_advance_can_be_turned_off(server: Server, options: dict[str, Any]) -> None:
    batches = loader(dataset(server), advance=False, **options)
    for _ in range(3):
        assert indices(batches) == expected(0)


def test_a_copy_and_a_second_loader_go_on_where_the_first_came_to(server: Server) -> None:
    train = dataset(server)
    indices(loader(train))
    copy = pickle.loads(pickle.dumps(train))
    assert indices(loader(copy)) == indices(loader(train, num_workers=1)) == expected(1)
    train.set_epoch(5)
    copy = pickle.loads(pickle.dumps(train))
    assert indices(loader(copy)) == indices(loader(copy)) == expected(5)


@pytest.mark.parametrize("make", [lambda train: train, lambda train: DataLoader(train, batch_size=None)], ids=["alone", "plain"])
def test_a_plain_loader_warns_once_at_the_second_pass(server: Server, make: Any) -> None:
    batches = make(dataset(server))
    next(iter(batches))  # a pass that was left
    assert indices(batches) == expected(0)
    with pytest.warns(UserWarning, match=REPEATED):
        assert indices(batches) == expected(0)
    assert indices(batches) == expected(0)  # warnings are errors here


@pytest.mark.parametrize("persistent", [False, True])
def test_a_plain_loader_with_workers_warns_in_a_worker(server: Server, persistent: bool) -> None:
    batches = DataLoader(dataset(server), batch_size=None, num_workers=2, persistent_workers=persistent)
    assert indices(batches) == expected(0)
    with pytest.raises(UserWarning, match=REPEATED):  # an error, because the workers inherit pytest's filter
        indices(batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_warning_without_shuffle_or_after_set_epoch(server: Server, num_workers: int) -> None:
    for train in (dataset(server, shuffle=False), dataset(server)):
        if train.shuffle:
            train.set_epoch(0)
        batches = DataLoader(train, batch_size=None, num_workers=num_workers)
        assert indices(batches) == indices(batches)  # warnings are errors here
