"""What would silently lose, repeat or reshape the batches of a StreamingEmbeddingsDataset is refused with the remedy."""

from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.data_loader import IterableDatasetShard, prepare_data_loader, skip_first_batches
from conftest import Server
from oracle import FORKING
from test_state import dataset, expected, indices, stopped_after
from torch.utils.data import DataLoader, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from cpstream_client import CpstreamError
from cpstream_client.torch import loader

pytestmark = [
    *FORKING,
    # torchdata 0.11 calls torch.set_vital, which torch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    # Ignite 0.5 imports what calls torch.jit, which torch 2.13 deprecates.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning"),
]


# The axis that a DataLoader adds


def by_ignite(train: Any, **options: Any) -> Any:
    from ignite.distributed import auto_dataloader  # here, where what it warns of is ignored

    return auto_dataloader(train, **options)


@pytest.mark.parametrize("make", [DataLoader, StatefulDataLoader, by_ignite])
@pytest.mark.parametrize("options", [{}, {"batch_size": 4}, {"num_workers": 2}, {"collate_fn": default_collate}], ids=", ".join)
def test_batches_are_not_collated_again(server: Server, make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(CpstreamError, match=r"stack batches that are ready, along a new axis; use cpstream_client\.torch\.loader"):
        next(iter(make(dataset(server), **options)))


def test_who_brings_a_collate_function_knows(server: Server) -> None:
    assert indices(DataLoader(dataset(server), collate_fn=lambda batches: batches[0])) == expected(0)
    assert indices(DataLoader(dataset(server), batch_size=None, collate_fn=lambda batch: batch)) == expected(0)


def test_a_loader_takes_no_batch_size(server: Server) -> None:
    with pytest.raises(ValueError, match="give batch_size to StreamingEmbeddingsDataset, not to loader"):
        loader(dataset(server), batch_size=4)
    assert indices(loader(dataset(server), batch_size=None)) == expected(0)


# Shares of a share


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_share_is_not_shared_again(server: Server, num_workers: int) -> None:
    sharded = IterableDatasetShard(dataset(server), num_processes=2, process_index=1)
    with pytest.raises(
        CpstreamError, match=r"IterableDatasetShard would take a share .* cpstream_client\.torch\.loader\(dataset\)"
    ):
        next(iter(DataLoader(sharded, batch_size=1, collate_fn=lambda batches: batches[0], num_workers=num_workers)))
    with pytest.raises(CpstreamError, match="IterableDatasetShard would take a share"):
        sharded.set_epoch(1)  # as Accelerate does before it iterates
    alone = IterableDatasetShard(dataset(server), num_processes=1)
    assert indices(alone) == expected(0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_of_one_rank_are_not_dispatched_to_all(server: Server, num_workers: int) -> None:
    plain = DataLoader(dataset(server, rank=0, world_size=2), batch_size=None, num_workers=num_workers)
    dispatching = prepare_data_loader(plain, num_processes=2, process_index=0, dispatch_batches=True, put_on_device=True)
    with pytest.raises(CpstreamError, match=r"dispatch the batches of rank 0 alone, .* of 2 in all: .*loader\("):
        next(iter(dispatching))


# An epoch of Accelerate's own counting


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dispatch_batches", [False, True])
def test_a_position_is_not_dropped_for_a_loaders_own_counting(
    server: Server, num_workers: int, dispatch_batches: bool, stateful: bool
) -> None:
    train = dataset(server)
    state = train.state_dict()
    plain = DataLoader(train, batch_size=None, num_workers=num_workers)
    prepared = prepare_data_loader(
        plain,
        num_processes=1,
        process_index=0,
        dispatch_batches=dispatch_batches,
        put_on_device=True,
        use_stateful_dataloader=stateful,
    )
    assert indices(prepared) == expected(0)
    assert indices(prepared) == expected(1)  # it counts them right as long as nobody else does
    train.load_state_dict({**state, "epoch": 5, "start": 640})
    with pytest.raises(CpstreamError, match=r"would begin epoch 2, by its own counting, and drop epoch 5 from sample 640 on"):
        next(iter(prepared))
    prepared.set_epoch(5)
    assert indices(prepared) == expected(5)[10:]
    assert indices(prepared) == expected(6)
    train.set_epoch(3)
    with pytest.raises(CpstreamError, match=r"call set_epoch\(3\) of the DataLoader\w+, too, or do not prepare"):
        next(iter(prepared))


@pytest.mark.parametrize("dispatch_batches", [False, True])
def test_a_state_that_counts_what_accelerate_took_ahead_is_refused(server: Server, dispatch_batches: bool) -> None:
    train = dataset(server)
    plain = DataLoader(train, batch_size=None)
    prepared = prepare_data_loader(plain, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=dispatch_batches)
    for _ in prepared:
        with pytest.raises(
            CpstreamError, match="a loader of Accelerate takes a batch ahead of the loop, and the state would count it"
        ):
            train.state_dict()
    assert train.state_dict()["epoch"] == 1


# Skipping, as Accelerate's users and Hugging Face Trainer do when they resume


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "make", [loader, lambda train, **options: DataLoader(train, batch_size=None, **options)], ids=["loader", "plain"]
)
def test_batches_of_an_epoch_that_was_chosen_can_be_skipped(server: Server, make: Any, num_workers: int) -> None:
    batches = make(dataset(server), num_workers=num_workers)
    batches.dataset.set_epoch(3)
    assert indices(skip_first_batches(batches, 10)) == expected(3)[10:]
    batches.dataset.set_epoch(4)
    assert indices(batches) == expected(4)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "multiprocessing_context": "forkserver"}], ids=str)
def test_batches_of_an_epoch_that_nobody_chose_are_not_skipped(server: Server, options: dict[str, Any]) -> None:
    skipping = skip_first_batches(loader(dataset(server), **options), 10)
    with pytest.raises(CpstreamError, match=r"skip 10 batches of an epoch that nobody chose: call set_epoch\(epoch\) before"):
        next(iter(skipping))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_is_skipped_twice(server: Server, num_workers: int) -> None:
    _, state = stopped_after(loader(dataset(server)), 10)
    resumed = loader(dataset(server), num_workers=num_workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(0)
    skipping = skip_first_batches(resumed, 10)
    with pytest.raises(CpstreamError, match=r"gone on to sample 640, and skip_first_batches would skip 10 batches more"):
        next(iter(skipping))
    assert indices(resumed) == expected(0)[10:]  # although the other one is still open


def test_a_loader_with_a_sampler_is_left_as_it_is_and_its_sampler_not_passed_by(server: Server) -> None:
    train = loader(dataset(server, shuffle=False), sampler=range(0, 1800, 2))
    assert Accelerator(cpu=True).prepare(train) is train
    assert [each for batch in indices(train) for each in batch] == list(range(0, 1800, 2))
    train.set_epoch(1)
    train.dataset.set_epoch(1)
    for wrapped in (skip_first_batches(train, 3), prepare_data_loader(train, put_on_device=False)):
        with pytest.raises(CpstreamError, match="of Accelerate would go through the dataset's own order, without range"):
            next(iter(wrapped))
