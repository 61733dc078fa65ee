"""RemoteEmbeddingsDataset: the local twin over HTTP, sample by sample."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server, serving
from oracle import FORKING, assert_same, local
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from cpstream_client import DatasetChanged, Retry
from cpstream_client.torch import RemoteEmbeddingsDataset
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

pytestmark = FORKING


@pytest.fixture
def dev(server: Server) -> RemoteEmbeddingsDataset:
    return RemoteEmbeddingsDataset(server.url, "dev")


def whole(dataset: RemoteEmbeddingsDataset) -> RemoteEmbeddingsDataset:
    """The same with the split downloaded: samples come from memory then."""
    assert len(dataset.audio_data) == len(dataset)
    return dataset


@pytest.mark.parametrize("way", ["asked for", "cached", "downloaded"])
@pytest.mark.parametrize(
    "index",
    [
        0,
        299,
        -1,
        -300,
        np.int64(5),
        torch.tensor(7),
        slice(None),
        slice(10, 20),
        slice(20, 10, -3),
        slice(-5, None),
        slice(5, 5),
        slice(290, 999),
        [3],
        [5, -1, 5, 0],
        [],
        range(0, 300, 50),
        torch.tensor([4, -2]),
        torch.tensor([], dtype=torch.int64),
        np.array([1, 299], dtype=np.uint16),
        torch.arange(300) % 7 == 0,
    ],
    ids=repr,
)
def test_indexing_selects_as_numpy_does(server: Server, index: Any, way: str) -> None:
    dev = RemoteEmbeddingsDataset(server.url, "dev", cache="auto" if way == "cached" else None)
    if way == "downloaded":
        whole(dev)
    wanted = torch.from_numpy(np.asarray(np.arange(300)[np.asarray(index) if isinstance(index, range | Tensor) else index]).copy())
    twin = local("dev")
    embeddings, cps = dev[index]
    assert embeddings.dtype == cps.dtype == torch.float32
    assert torch.equal(embeddings, twin.audio_data[wanted])
    assert torch.equal(cps, twin.labels[wanted])
    embeddings += 1  # one's own, even where the split is in memory
    assert torch.equal(dev[index][0], twin.audio_data[wanted])


def test_one_sample_is_as_the_twins(dev: RemoteEmbeddingsDataset) -> None:
    assert_same([dev[17]], [local("dev")[17]])
    assert dev[17][1].shape == ()


@pytest.mark.parametrize("index", [300, -301, [0, 300], torch.tensor([-301]), 2**40])
def test_outside_is_an_index_error(dev: RemoteEmbeddingsDataset, index: Any) -> None:
    with pytest.raises(IndexError, match=r"index -?\d+ is outside split 'dev' of 300 samples"):
        dev[index]


@pytest.mark.parametrize("index", [1.5, [0.0, 1.0], "3", None, [True, False], [[0, 1]]])
def test_what_is_no_index_is_refused(dev: RemoteEmbeddingsDataset, index: Any) -> None:
    with pytest.raises(IndexError, match="is no index"):  # never rounded, never taken for something else
        dev[index]


def test_a_for_loop_ends(server: Server) -> None:
    tiny = whole(RemoteEmbeddingsDataset(server.url, "dev"))
    assert_same(list(tiny), [local("dev")[i] for i in range(300)])


def test_getitems_is_one_request_for_a_list_of_samples(dev: RemoteEmbeddingsDataset) -> None:
    assert_same(dev.__getitems__([4, -1, 4]), [local("dev")[i] for i in (4, 299, 4)])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shuffling_dataloader_is_that_of_the_twin(server: Server, num_workers: int) -> None:
    train = RemoteEmbeddingsDataset(server.url, "train")

    def epochs(dataset: Any, **options: Any) -> list[Any]:
        batches = DataLoader(dataset, 64, shuffle=True, generator=torch.Generator().manual_seed(9), **options)
        return [batch for _ in range(2) for batch in batches]

    assert_same(epochs(train, num_workers=num_workers), epochs(local("train")))


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_whole_batches_by_a_batch_sampler_in_workers(server: Server, context: str) -> None:
    train, twin = RemoteEmbeddingsDataset(server.url, "train"), local("train")

    def sampler() -> BatchSampler:
        return BatchSampler(RandomSampler(twin, generator=torch.Generator().manual_seed(1)), 256, drop_last=True)

    batches = DataLoader(train, batch_size=None, sampler=sampler(), num_workers=2, multiprocessing_context=context)
    assert_same(batches, [(twin.audio_data[indices], twin.labels[indices]) for indices in sampler()])


def test_the_whole_split_is_the_twins(server: Server) -> None:
    test, twin = RemoteEmbeddingsDataset(server.url, "test"), local("test")
    assert len(test) == len(twin)
    assert torch.equal(test.audio_data, twin.audio_data)
    assert torch.equal(test.labels, twin.labels)
    assert test.filenames == twin.filenames
    assert test.audio_data is test.audio_data  # downloaded once


def test_float16_is_half_of_it(server: Server) -> None:
    half = RemoteEmbeddingsDataset(server.url, "dev", dtype="float16")
    assert torch.equal(half[:][0], local("dev").audio_data.half())
    assert torch.equal(half.audio_data, local("dev").audio_data.half())
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float32, float16"):
        RemoteEmbeddingsDataset(server.url, "dev", dtype="int8")  # type: ignore[arg-type]


def test_it_pickles_before_and_after_use(dev: RemoteEmbeddingsDataset) -> None:
    expected = [local("dev")[3]]
    assert_same([pickle.loads(pickle.dumps(dev))[3]], expected)
    assert_same([dev[3]], expected)
    assert_same([pickle.loads(pickle.dumps(dev))[3]], expected)
    assert_same([pickle.loads(pickle.dumps(whole(dev)))[3]], expected)


def test_nothing_is_asked_of_the_service_before_use() -> None:
    dataset = RemoteEmbeddingsDataset("http://127.0.0.1:9", "train")
    assert repr(pickle.loads(pickle.dumps(dataset))) == "RemoteEmbeddingsDataset(Client(http://127.0.0.1:9), 'train', cache='auto')"


@pytest.mark.parametrize("use", [lambda ds: ds[0], lambda ds: ds.audio_data, lambda ds: ds.labels, lambda ds: ds.filenames])
def test_other_data_than_at_first_is_refused(snapshot: Snapshot, port: int, use: Any) -> None:
    # The same service address, first with one split under the name, then with another.
    other = Snapshot(**{**snapshot.__dict__, "splits": {"dev": snapshot.splits["test"]}})
    with serving(create_app(snapshot, ServeSettings()), port) as url:
        dataset = RemoteEmbeddingsDataset(url, "dev", retry=Retry(changed_timeout_s=0))
        assert len(dataset) == 300
    with serving(create_app(other, ServeSettings()), port), pytest.raises(DatasetChanged) as caught:
        use(dataset)
    assert caught.value.expected == snapshot.splits["dev"].fingerprint
    assert caught.value.actual == snapshot.splits["test"].fingerprint
