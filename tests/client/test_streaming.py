"""StreamingEmbeddingsDataset in one process: the batches of the local twin, to the bit."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Server
from oracle import FORKING, assert_same, epoch_of, local
from torch.utils.data import DataLoader

from cpstream_client import Client, InvalidRequestError, NotFoundError
from cpstream_client.contract.plan import epoch_order
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader

pytestmark = FORKING
NOBODY = "http://127.0.0.1:9"
"""An address at which nothing listens."""


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_two_epochs_are_those_of_the_local_dataset(server: Server, rank: int, world_size: int, drop_last: bool) -> None:
    twin = local("train")
    train = StreamingEmbeddingsDataset(
        server.url, "train", batch_size=64, shuffle=True, seed=5, drop_last=drop_last, cache=None, rank=rank, world_size=world_size
    )
    batches = DataLoader(train, batch_size=None)
    for epoch in range(2):
        train.set_epoch(epoch)
        expected = epoch_of(twin, batch_size=64, epoch=epoch, seed=5, rank=rank, world_size=world_size, drop_last=drop_last)
        assert_same(batches, expected)
        assert len(train) == len(batches) == len(expected)


@pytest.mark.parametrize("remainder", ["pad", "drop"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_remainders_are_those_of_distributed_sampler(server: Server, remainder: Any, shuffle: bool) -> None:
    twin = local("dev")
    for rank in range(7):  # 300 = 7 * 42 + 6
        options: dict[str, Any] = {"batch_size": 32, "shuffle": shuffle, "remainder": remainder, "rank": rank, "world_size": 7}
        assert_same(StreamingEmbeddingsDataset(server.url, "dev", **options), epoch_of(twin, **options))


def test_float16_is_half_of_it(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=100, shuffle=True, dtype="float16")
    expected = [(embeddings.half(), cps) for embeddings, cps in epoch_of(local("train"), batch_size=100)]
    assert_same(train, expected)


def test_blocks_deliver_the_order_of_the_plan(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=100, shuffle="blocks", seed=2, columns=("index",))
    train.set_epoch(3)
    order = epoch_order(len(local("train")), "blocks", seed=2, epoch=3)
    assert torch.cat([index for (index,) in train]).tolist() == order.tolist()


@pytest.mark.parametrize("batch_size", [1, 7, 299, 300, 10_000])
def test_any_batch_size_over_many_small_requests(server: Server, batch_size: int) -> None:
    client = Client(server.url)
    client.service = replace(client.service, request_bytes=20_000)
    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": True, "seed": 1}
    # One byte of prefetch: one record batch is ahead, and no more.
    dev = StreamingEmbeddingsDataset(client, "dev", prefetch_bytes=1, **options)
    assert_same(dev, epoch_of(local("dev"), **options))


def test_columns_come_as_asked_and_belong_together(server: Server) -> None:
    twin = local("train")
    dataset = StreamingEmbeddingsDataset(
        server.url, "train", batch_size=64, shuffle=True, columns=("file_path", "cps", "index", "embedding")
    )
    for paths, cps, index, embeddings in DataLoader(dataset, batch_size=None):
        assert paths == [twin.filenames[i] for i in index.tolist()]
        assert torch.equal(cps, twin.labels[index])
        assert torch.equal(embeddings, twin.audio_data[index])
    assert [len(item) for item in StreamingEmbeddingsDataset(server.url, "dev", columns=("cps",))] == [1, 1]


def test_batches_are_writable_and_stay_valid(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=64, shuffle=True)
    kept = []
    for embeddings, cps in train:
        embeddings += 1  # a loop may work in place
        kept.append((embeddings, cps))  # and keep what it got, while buffers are used again
    assert_same(kept, [(embeddings + 1, cps) for embeddings, cps in epoch_of(local("train"), batch_size=64)])


def test_exact_ends_on_empty_batches_of_the_right_shape(server: Server) -> None:
    dim = local("dev").audio_data.shape[1]
    # 300 samples on 7 ranks: ranks 0 to 5 have 43, rank 6 has 42, so with batches of 42 its second is empty.
    last = StreamingEmbeddingsDataset(
        server.url,
        "dev",
        batch_size=42,
        remainder="exact",
        columns=("embedding", "cps", "index", "file_path"),
        rank=6,
        world_size=7,
    )
    first, (embeddings, cps, index, paths) = last
    assert len(first[1]) == 42
    assert (embeddings.shape, cps.shape, index.shape, paths) == ((0, dim), (0,), (0,), [])
    assert (embeddings.dtype, cps.dtype, index.dtype) == (torch.float32, torch.float32, torch.int64)
    for num_workers in (0, 2):
        half = StreamingEmbeddingsDataset(
            server.url, "dev", batch_size=42, remainder="exact", dtype="float16", rank=6, world_size=7
        )
        embeddings, cps = list(loader(half, num_workers=num_workers))[-1]
        assert (embeddings.shape, embeddings.dtype, cps.shape) == ((0, dim), torch.float16, (0,))


def test_rank_and_world_size_come_from_the_environment_when_iteration_begins(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=64, shuffle=True)
    assert_same(train, epoch_of(local("train"), batch_size=64))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert_same(train, epoch_of(local("train"), batch_size=64, rank=1, world_size=3))


def test_without_set_epoch_every_iteration_is_the_same_epoch(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=256, shuffle=True)
    train.set_epoch(4)
    expected = epoch_of(local("train"), batch_size=256, epoch=4)
    for _ in range(2):  # as DistributedSampler
        assert_same(train, expected)


def test_leaving_the_loop_and_beginning_again_starts_over(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=256, shuffle=True)
    for _ in train:
        break
    assert_same(train, epoch_of(local("train"), batch_size=256))


def test_an_epoch_set_after_iter_counts(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=256, shuffle=True)
    batches = iter(train)  # as Lightning does before it announces the epoch
    train.set_epoch(2)
    assert_same(batches, epoch_of(local("train"), batch_size=256, epoch=2))


def test_two_iterations_at_once_do_not_disturb_each_other(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=256, shuffle=True)
    one, other = zip(*zip(train, train, strict=True), strict=True)
    assert_same(one, other)
    assert_same(one, epoch_of(local("train"), batch_size=256))


def test_nothing_is_asked_of_the_service_before_use() -> None:
    train = StreamingEmbeddingsDataset(NOBODY, "train", shuffle=True)
    train.set_epoch(3)
    assert copy.deepcopy(train).epoch == pickle.loads(pickle.dumps(train)).epoch == 3
    assert repr(train) == f"StreamingEmbeddingsDataset(Client({NOBODY}), 'train', batch_size=256, shuffle=True, cache='auto')"


def test_a_pickled_copy_delivers_the_same(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=256, shuffle=True, rank=1, world_size=2)
    train.set_epoch(1)
    for _ in train:  # in the middle of an iteration
        twins = pickle.loads(pickle.dumps(train)), copy.deepcopy(train)
        break
    expected = epoch_of(local("train"), batch_size=256, epoch=1, rank=1, world_size=2)
    for twin in twins:
        assert_same(twin, expected)
    twins[0].set_epoch(5)
    assert train.epoch == 1  # a copy goes its own way


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"shuffle": "yes"}, "shuffle is 'yes'; it must be True, False or 'blocks'"),
        ({"remainder": "keep"}, "remainder is 'keep'; it must be one of pad, drop, exact"),
        ({"dtype": "float64"}, "dtype is 'float64'; it must be one of float32, float16"),
        ({"columns": ("embeddings",)}, r"columns is \('embeddings',\); it must name some of embedding, cps, index, file_path"),
        ({"columns": ()}, r"columns is \(\); it must name some of"),
        ({"rank": 1}, "rank and world_size belong together; give both or neither"),
        ({"rank": 2, "world_size": 2}, r"rank is 2; it must be from 0 to 1"),
        ({"rank": 0, "world_size": 0}, "world_size is 0; it must be 1 or more"),
    ],
)
def test_a_wrong_parameter_is_heard_of_at_once(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamingEmbeddingsDataset(NOBODY, "train", **wrong)


@pytest.mark.parametrize("make", [StreamingEmbeddingsDataset, RemoteEmbeddingsDataset])
def test_what_is_no_cache_is_heard_of_at_once(make: Any) -> None:
    with pytest.raises(TypeError, match="cache is True; it must be 'auto', 'memory', 'device', the path of a directory, or None"):
        make(NOBODY, "train", cache=True)


def test_a_wrong_epoch_is_heard_of_at_once() -> None:
    train = StreamingEmbeddingsDataset(NOBODY, "train")
    with pytest.raises(ValueError, match="epoch is -1; it must be 0 or more"):
        train.set_epoch(-1)
    with pytest.raises(TypeError):
        train.set_epoch(1.5)  # type: ignore[arg-type]


def test_what_the_service_refuses_reaches_the_loop(server: Server) -> None:
    with pytest.raises(NotFoundError, match="trian"):
        next(iter(StreamingEmbeddingsDataset(server.url, "trian")))
    with pytest.raises(InvalidRequestError, match="seed"):
        next(iter(StreamingEmbeddingsDataset(server.url, "train", shuffle=True, seed=2**64)))
