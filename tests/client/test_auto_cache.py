"""cache="auto", the default: a split that fits is kept, and nothing else changes."""

import gc
import logging
import threading
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server, poll, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import FORKING, assert_same, epoch_of, local
from torch.utils.data import DataLoader

from cpstream_client import BatchQuery, Client, DatasetChanged, Retry
from cpstream_client.contract.plan import Plan
from cpstream_client.epochs import epochs as epochs_module
from cpstream_client.epochs import filler
from cpstream_client.epochs.budget import Budget
from cpstream_client.epochs.cache import MemoryCache
from cpstream_client.epochs.epochs import Epochs
from cpstream_client.stream.course import cut
from cpstream_client.stream.reader import Batch
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, keeping, loader
from cpstream_client.torch.keeping import order_of
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

pytestmark = FORKING


class Requests:
    """Counts the requests of a client, by path."""

    def __init__(self, url: str) -> None:
        self.paths: list[str] = []
        self.client = Client(url, event_hooks={"request": [lambda request: self.paths.append(request.url.path)]})

    def since(self) -> list[str]:
        """The last parts of the paths asked for since the last time."""
        paths, self.paths = self.paths, []
        return [path.rsplit("/", 1)[1] for path in paths]


@pytest.mark.usefixtures("short_path")
def test_later_epochs_ask_only_whether_the_data_is_the_same(server: Server) -> None:
    requests = Requests(server.url)
    train = StreamingEmbeddingsDataset(requests.client, "train", batch_size=64, shuffle=True, seed=2)
    for epoch, asked in enumerate([["train", "batches"], ["train"], ["train"]]):
        train.set_epoch(epoch)
        assert_same(loader(train), epoch_of(local("train"), batch_size=64, seed=2, epoch=epoch))
        assert requests.since() == asked
    plain = StreamingEmbeddingsDataset(requests.client, "train", batch_size=64, shuffle=True, cache=None)
    for epoch in range(2):
        plain.set_epoch(epoch)
        assert_same(plain, epoch_of(local("train"), batch_size=64, epoch=epoch))
        assert "batches" in requests.since()


def test_epochs_that_are_gathered_ahead_are_exact_wherever_they_are_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs_module, "_WINDOW_BYTES", 3 * 10 * 154 * 4)  # three batches
    columns = ("index", "embedding", "cps")
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=10, shuffle=True, columns=columns)
    batches = loader(train)
    for index, _, _ in batches:
        index.zero_()  # the loop's own
    for epoch, left_at in [(1, 0), (1, 1), (2, 7), (3, 50), (3, None)]:
        train.set_epoch(epoch)
        wanted = epoch_of(local("train"), batch_size=10, epoch=epoch)
        iterator = iter(batches)
        kept = list(islice(iterator, left_at))
        iterator.close()  # type: ignore[attr-defined]
        assert_same([batch[1:] for batch in kept], wanted[:left_at])  # as they were, whatever has been gathered since
        state = batches.state_dict()
        assert "cpstream-gather" not in [thread.name for thread in threading.enumerate()]
        batches.load_state_dict(state)
        if left_at:
            assert_same([batch[1:] for batch in batches], wanted[left_at:])


@pytest.mark.usefixtures("short_path")
def test_random_access_asks_for_each_sample_once(server: Server) -> None:
    requests = Requests(server.url)
    dev, twin = RemoteEmbeddingsDataset(requests.client, "dev"), local("dev")
    some, every = list(range(250, 100, -1)), list(range(300))
    for indices, asked in (
        (some, ["dev", "take"]),
        (every, ["take"]),
        (every, ["dev"]),  # once an epoch, whether the data is still the same
        (some, ["dev"]),
        (some, []),
        ([5, 5], ["dev"]),
    ):
        assert_same([dev[indices]], [(twin.audio_data[indices], twin.labels[indices])])
        assert requests.since() == asked


@pytest.mark.parametrize("kind", [StreamingEmbeddingsDataset, RemoteEmbeddingsDataset])
def test_changed_data_is_refused_at_the_next_epoch(snapshot: Snapshot, port: int, kind: Any) -> None:
    other = replace(snapshot, splits={"dev": snapshot.splits["test"]})
    with serving(create_app(snapshot, ServeSettings()), port) as url:
        dev = kind(url, "dev", retry=Retry(changed_timeout_s=0))
        batches = loader(dev) if kind is StreamingEmbeddingsDataset else DataLoader(dev, 256)
        for _ in range(2):
            assert_same(batches, epoch_of(local("dev"), batch_size=256, shuffle=False))
    assert_same(batches, list(batches))  # a service that is away stops nobody
    with serving(create_app(other, ServeSettings()), port), pytest.raises(DatasetChanged):
        list(batches)


def test_what_was_chosen_is_said(server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [40_000_000]
    budget = Budget(lambda: free[0])
    monkeypatch.setattr(keeping, "BUDGET", budget)
    with caplog.at_level(logging.DEBUG, "cpstream.client"):
        train = StreamingEmbeddingsDataset(server.url, "train")
        next(iter(train))
        assert repr(train).endswith("cache='auto' (memory: 1 MB of a budget of 10 MB, a quarter of the free memory))")
        free[0] = 4_000_000
        dev = RemoteEmbeddingsDataset(server.url, "train")
        assert len(dev[:10][1]) == 10
        assert repr(dev).endswith(
            "cache='auto' (none: 1 MB exceed a budget of 1 MB, a quarter of the free memory less 1 MB of other datasets))"
        )
        labels = StreamingEmbeddingsDataset(server.url, "train", columns=("cps",))
        next(iter(labels))
        assert repr(labels).endswith("cache='auto' (none: no embeddings are asked for))")
    assert [record.getMessage() for record in caplog.records if record.name == "cpstream.client"] == [
        "split train, cache='auto': memory: 1 MB of a budget of 10 MB, a quarter of the free memory",
        "split train, cache='auto': none: 1 MB exceed a budget of 1 MB, a quarter of the free memory less 1 MB of other datasets",
        "split train, cache='auto': none: no embeddings are asked for",
    ]
    assert budget.held_bytes == 1800 * (154 * 4 + 12)
    del train
    gc.collect()
    assert budget.held_bytes == 0


class Saying:
    """A map-style dataset whose samples are the repr of another after a use in this process."""

    def __init__(self, dataset: RemoteEmbeddingsDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> str:
        if index > 1:
            raise IndexError(index)
        assert self.dataset[index][0].shape == (154,)
        return repr(self.dataset)


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_in_workers_there_is_none(server: Server, context: str) -> None:
    remote = RemoteEmbeddingsDataset(server.url, "dev")
    assert "memory: " in (repr(remote) if remote[:5] else "")
    for said in DataLoader(Saying(remote), batch_size=None, num_workers=2, multiprocessing_context=context):
        assert said.endswith("cache='auto' (none: each DataLoader worker would fill its own))")
    asked_for = RemoteEmbeddingsDataset(server.url, "dev", cache="memory")
    with pytest.raises(ValueError, match=r"cache='memory' lives in one process.*use num_workers=0"):
        list(DataLoader(Saying(asked_for), batch_size=None, num_workers=1, multiprocessing_context=context))
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=64, shuffle=True)
    for workers in (0, 2, 0, 2):
        assert_same(loader(train, num_workers=workers, advance=False), epoch_of(local("train"), batch_size=64))


# The same batches, whatever is cached


QUERIES = st.builds(
    BatchQuery,
    batch_size=st.sampled_from([1, 7, 32, 64, 100, 400]),
    shuffle=st.sampled_from(["none", "uniform", "blocks"]),
    seed=st.integers(-5, 2**40),
    epoch=st.integers(0, 3),
    rank=st.just(0),
    world_size=st.integers(1, 9),
    remainder=st.sampled_from(["pad", "drop", "exact"]),
    drop_last=st.booleans(),
    start=st.integers(0, 300),
    dtype=st.sampled_from(["float32", "float16"]),
    columns=st.sampled_from(
        [("embedding", "cps", "index"), ("embedding",), ("embedding", "file_path"), ("embedding", "cps", "index", "file_path")]
    ),
)


def batches_of(epochs: Epochs, query: BatchQuery) -> list[Batch]:
    return list(cut(epochs.records(query), query.batch_size))


def assert_equal(got: list[Batch], expected: list[Batch]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.num_rows == other.num_rows
        for name in ("embeddings", "cps", "index", "file_paths"):
            value, wanted = getattr(one, name), getattr(other, name)
            if wanted is not None:
                assert np.shape(value) == np.shape(wanted), name
                np.testing.assert_array_equal(value, wanted)


@settings(max_examples=60, deadline=None)
@given(query=QUERIES, rank=st.integers(0, 8), kept=st.integers(0, 300), draw=st.randoms(use_true_random=False))
def test_an_epoch_is_the_same_whatever_is_kept_of_it(server: Server, query: BatchQuery, rank: int, kept: int, draw: Any) -> None:
    client = Client(server.url)
    info = client.split("dev")
    query = replace(query, rank=rank % query.world_size)
    expected = batches_of(Epochs(client, info, 2**20), query)
    cache = MemoryCache(info, query.dtype)
    some = draw.sample(range(300), kept)
    cache.put(client.take("dev", np.array(some, np.int64), dtype=query.dtype, info=info))
    cached = Epochs(client, info, 2**20, cache, order=order_of)
    assert_equal(batches_of(cached, query), expected)
    later = replace(query, epoch=query.epoch + 1)
    for _ in range(2):
        assert_equal(batches_of(cached, later), batches_of(Epochs(client, info, 2**20), later))


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_by_which_epoch_a_rank_has_the_whole_split(server: Server, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of docs/client.md, for a loop that leaves no time: in epoch world_size + 1 at the latest."""
    monkeypatch.setattr(filler, "SHARE", 1e-9)  # one piece of the rest, and then a pause for ever
    monkeypatch.setattr(filler, "_REQUEST_BYTES", 1)
    client = Client(server.url)
    info = client.split("train")
    cache = MemoryCache(info, "float32")
    epochs = Epochs(client, info, 2**20, cache)
    for epoch in range(world_size):
        assert len(cache.missing()) > 0
        batches_of(epochs, BatchQuery(batch_size=32, shuffle="uniform", epoch=epoch, rank=world_size - 1, world_size=world_size))
    assert len(cache.missing()) == 0


@pytest.mark.parametrize("world_size", [2, 8])
def test_the_rest_comes_while_the_loop_computes(server: Server, world_size: int) -> None:
    rank = loader(StreamingEmbeddingsDataset(server.url, "train", batch_size=32, shuffle=True, rank=1, world_size=world_size))
    batches = iter(rank)
    first = next(batches)
    kept = rank.dataset._kept
    assert kept is not None
    assert kept.cache is not None
    poll(lambda: not len(kept.cache.missing()))  # a step that takes long
    options: dict[str, Any] = {"batch_size": 32, "rank": 1, "world_size": world_size}
    assert_same([first, *batches], epoch_of(local("train"), **options))
    rank.stats(reset=True)
    assert_same(rank, epoch_of(local("train"), epoch=1, **options))
    assert rank.stats()["cache"]["hit_rate"] == 1
    assert rank.stats()["bytes"] == 0


def test_leaving_the_loop_ends_what_fills_the_cache(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=32, shuffle=True, rank=0, world_size=2)
    for _ in range(3):
        for _ in train:
            break
        poll(lambda: not [thread.name for thread in threading.enumerate() if thread.name.startswith("cpstream")])
    assert_same(train, epoch_of(local("train"), batch_size=32, world_size=2))


@pytest.mark.parametrize("n", [0, 1, 2, 1000, 12345])
@pytest.mark.parametrize("seed", [0, 7, -1, 2**32 + 5, 2**63])
def test_torchs_order_is_the_plans(n: int, seed: int) -> None:
    plan = Plan(n, shuffle="uniform", seed=seed, epoch=3)
    assert np.array_equal(order_of(plan), plan.order())


def test_a_loop_that_works_in_place_can_go_backward_through_the_batch_before(server: Server) -> None:
    """Batches are cut from one buffer, and count for autograd as if each had its own."""
    for batches in (StreamingEmbeddingsDataset(server.url, "dev", batch_size=50, cache=cache) for cache in (None, "auto")):
        weight = torch.zeros(154, requires_grad=True)
        for _ in range(2):
            iterator = iter(batches)
            one, two = next(iterator)[0], next(iterator)[0]
            loss = (one * weight).sum()
            two.add_(1)
            loss.backward()
            assert torch.equal(two.mul_(weight), torch.zeros(50, 154))
            assert torch.equal(one, local("dev").audio_data[:50])
