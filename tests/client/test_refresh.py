"""The client while a service, or one of several, moves to other data: real apps that hold real versions."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from conftest import serving
from data import make_rows, make_settings, write_dataset
from fastapi import FastAPI
from oracle import FORKING, indices_of
from torch.utils.data import DataLoader, RandomSampler

from cpstream_client import Client, CpstreamError, DatasetChanged, ForgottenError, Retry, StateMismatch
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader
from cpstream_service.api.versions import Version, Versions
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot

pytestmark = FORKING
QUICK = Retry(timeout_s=30, first_delay_s=0.01, max_delay_s=0.05, changed_timeout_s=0)
OLD, NEW = 70, 90


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Snapshot]:
    """Two versions of one split: the new one has twenty samples more, and other numbers."""
    folder = tmp_path_factory.mktemp("data")
    made = []
    for number, count in enumerate((OLD, NEW)):
        source = write_dataset(folder / str(number), {"train": make_rows(count, seed=number)})
        made.append(load(make_settings(source)).snapshot)
    return made[0], made[1]


@dataclass
class Moving:
    """A service of the old version that can move to the new one."""

    url: str
    app: FastAPI
    old: Snapshot
    new: Snapshot

    @property
    def versions(self) -> Versions:
        versions: Versions = self.app.state.service.versions
        return versions

    def move(self, *, keep: bool = True) -> None:
        self.versions.open(Version.of(self.new, ServeSettings()))
        self.versions.make_current(self.new.path.name)
        if not keep:
            self.versions.drop(self.old.path.name)

    def forget(self) -> None:
        self.versions.forget([fingerprint_of(self.old)])
        self.move(keep=False)


@contextmanager
def moving(both: tuple[Snapshot, Snapshot], port: int = 0) -> Iterator[Moving]:
    app = create_app(both[0], ServeSettings())
    with serving(app, port) as url:
        yield Moving(url, app, *both)


@pytest.fixture
def service(both: tuple[Snapshot, Snapshot]) -> Iterator[Moving]:
    with moving(both) as moved:
        yield moved


def fingerprint_of(snapshot: Snapshot) -> str:
    return snapshot.splits["train"].fingerprint


def dataset(source: Any, **options: Any) -> StreamingEmbeddingsDataset[Any]:
    given = {"batch_size": 8, "shuffle": True, "seed": 3, "columns": ("embedding", "index"), "retry": QUICK, **options}
    return StreamingEmbeddingsDataset(source, "train", **given)


def check(batches: Any, snapshot: Snapshot, epoch: int, start: int = 0, **options: Any) -> None:
    """That these are the batches of the epoch of that version, by torch's DistributedSampler."""
    split = snapshot.splits["train"]
    expected = indices_of(len(split.cps), **{"batch_size": 8, "seed": 3, "epoch": epoch, **options})[start // 8 :]
    got = list(batches)
    assert [index.tolist() for _, index in got] == expected
    for embedding, index in got:
        assert np.array_equal(embedding.numpy(), split.embeddings[index.numpy()])


# A version that one service does not hold


def test_another_endpoint_holds_what_one_has_dropped(both: tuple[Snapshot, Snapshot]) -> None:
    """Replicas that are reloaded one after the other, and keep nothing, end no run."""
    with moving(both) as one, moving(both) as another:
        train = dataset([one.url, another.url], cache=None)
        batches = loader(train)
        check(batches, both[0], 0)
        one.move(keep=False)
        check(batches, both[0], 1)
        another.move()
        check(batches, both[0], 2)


def test_one_url_is_asked_again_for_a_while(service: Moving) -> None:
    """Behind one name, the replica that answers next may hold it."""
    service.move(keep=False)
    waits = 0

    def look(_: object) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            service.versions.open(Version.of(service.old, ServeSettings()))

    patient = Retry(timeout_s=60, first_delay_s=0.01, max_delay_s=0.02)
    with Client(service.url, retry=patient, event_hooks={"request": [look]}) as client:
        assert client.split("train", fingerprint=fingerprint_of(service.old)).num_samples == OLD
    assert waits > 1


def test_a_cached_epoch_asks_the_others_too(both: tuple[Snapshot, Snapshot]) -> None:
    with moving(both) as one, moving(both) as another:
        train = dataset([one.url, another.url])
        batches = loader(train)
        check(batches, both[0], 0)
        one.move(keep=False)
        check(batches, both[0], 1)
        another.move(keep=False)
        with pytest.raises(DatasetChanged, match="gave up after 2 tries"):
            next(iter(batches))


def test_a_new_process_resumes_on_the_version_of_its_state(service: Moving) -> None:
    batches = loader(dataset(service.url))
    iterator = iter(batches)
    for _ in range(3):
        next(iterator)
    state = batches.state_dict()
    service.move()
    resumed = loader(dataset(service.url))
    resumed.load_state_dict(state)
    check(resumed, service.old, 0, start=24)
    check(resumed, service.old, 1)
    service.versions.drop(service.old.path.name)
    fresh = loader(dataset(service.url))
    with pytest.raises(StateMismatch, match=f"fingerprint '{fingerprint_of(service.old)}', .* '{fingerprint_of(service.new)}'"):
        fresh.load_state_dict(state)


# refresh


@pytest.mark.parametrize("cache", ["auto", None, "directory"])
def test_refresh_between_epochs(service: Moving, tmp_path: Path, cache: str | None) -> None:
    train = dataset(service.url, cache=tmp_path if cache == "directory" else cache)
    batches = loader(train)
    assert not train.refresh()
    check(batches, service.old, 0)
    service.move()
    check(batches, service.old, 1)  # unasked, a run stays
    assert batches.refresh()
    assert not batches.refresh()
    assert batches.state_dict() == {
        "fingerprint": fingerprint_of(service.new),
        "split": "train",
        "seed": 3,
        "epoch": 2,
        "start": 0,
        "shuffle": True,
        "remainder": "pad",
    }
    assert len(batches) == -(-NEW // 8)
    check(batches, service.new, 2)
    check(batches, service.new, 3)


def test_refresh_after_set_epoch_and_with_ranks(service: Moving) -> None:
    trains = [dataset(service.url, rank=rank, world_size=2) for rank in (0, 1)]
    for train in trains:
        train.set_epoch(5)
        assert len(list(train)) == OLD // 2 // 8 + 1
    service.move()
    for rank, train in enumerate(trains):
        train.set_epoch(6)
        assert train.refresh()
        check(train, service.new, 6, rank=rank, world_size=2)


def test_refresh_in_mid_epoch_is_refused(service: Moving) -> None:
    train = dataset(service.url)
    batches = loader(train)
    iterator = iter(batches)
    next(iterator)
    service.move()
    for refresh in (train.refresh, batches.refresh):
        with pytest.raises(
            CpstreamError, match=r"within epoch 0.*set_epoch\(1\), or load_state_dict\(state, accept_version=True\)"
        ):
            refresh()
    next(iterator)
    state = batches.state_dict()
    batches.load_state_dict(state)
    with pytest.raises(CpstreamError, match="within epoch 0"):
        batches.refresh()
    check(batches, service.old, 0, start=16)
    batches.set_epoch(1)
    assert batches.refresh()
    check(batches, service.new, 1)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning")  # torch keeps the length of a persistent loader
@pytest.mark.parametrize(("make", "persistent"), [(loader, True), (loader, False), (DataLoader, True)])
def test_workers_follow(service: Moving, make: Callable[..., Any], persistent: bool) -> None:
    train = dataset(service.url)
    options = {"batch_size": None} if make is DataLoader else {}
    batches = make(train, num_workers=2, persistent_workers=persistent, multiprocessing_context="forkserver", **options)
    train.set_epoch(0)
    check(batches, service.old, 0)
    service.move(keep=False)
    train.set_epoch(1)
    assert train.refresh()
    check(batches, service.new, 1)


def test_random_access_follows_with_its_workers(service: Moving) -> None:
    train = RemoteEmbeddingsDataset(service.url, "train", retry=QUICK)
    batches = DataLoader(train, 10, num_workers=1, persistent_workers=True, multiprocessing_context="forkserver")
    assert np.array_equal(torch.cat([cps for _, cps in batches]).numpy(), service.old.splits["train"].cps)
    service.move(keep=False)
    assert train.refresh()
    assert not train.refresh()
    assert len(train) == NEW
    batches = DataLoader(train, 10)
    assert np.array_equal(torch.cat([cps for _, cps in batches]).numpy(), service.new.splits["train"].cps)


def test_a_persistent_worker_of_random_access_follows(service: Moving) -> None:
    train = RemoteEmbeddingsDataset(service.url, "train", retry=QUICK)
    context = multiprocessing.get_context("forkserver")
    batches = DataLoader(
        train, sampler=range(20), batch_size=10, num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    list(batches)
    service.move(keep=False)
    train.refresh()
    assert np.array_equal(torch.cat([cps for _, cps in batches]).numpy(), service.new.splits["train"].cps[:20])


def test_all_ranks_of_torch_distributed_move_to_what_rank_0_meets(both: tuple[Snapshot, Snapshot], tmp_path: Path) -> None:
    """The replica that rank 1 prefers has not moved yet: ranks on different data would share no epoch."""
    context = multiprocessing.get_context("forkserver")
    with moving(both) as one, moving(both) as another:
        one.move()
        another.versions.open(Version.of(both[1], ServeSettings()))
        urls = one.url, another.url
        ranks = [context.Process(target=_refresh_in_rank, args=(rank, tmp_path, urls[rank])) for rank in (0, 1)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    for rank in (0, 1):
        expected = indices_of(NEW, batch_size=8, seed=3, epoch=1, rank=rank, world_size=2)
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def _refresh_in_rank(rank: int, folder: Path, url: str) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    train = dataset(url, cache=None)
    assert train.info.num_samples == (OLD if rank else NEW)
    train.set_epoch(1)
    assert train.refresh() == bool(rank)
    (folder / f"{rank}.json").write_text(json.dumps([index.tolist() for _, index in train]))
    torch.distributed.destroy_process_group()


# Forgotten data


@pytest.mark.parametrize("kind", ["memory", "directory", "stream"])
def test_forgotten_data_are_let_go_of_at_once(service: Moving, tmp_path: Path, kind: str) -> None:
    cache = {"memory": "memory", "directory": tmp_path, "stream": None}[kind]
    train = dataset(service.url, cache=cache)
    batches = loader(train)
    check(batches, service.old, 0)
    service.forget()
    with pytest.raises(ForgottenError, match=r"holds a recording that is to be forgotten.*accept_version=True") as caught:
        next(iter(batches))
    assert "gave up" not in str(caught.value)
    assert (caught.value.status, caught.value.code) == (410, "forgotten")
    assert list(tmp_path.iterdir()) == []
    assert train._kept is None
    batches.load_state_dict(batches.state_dict(), accept_version=True)
    check(batches, service.new, 1)


def test_files_of_earlier_runs_go_too(service: Moving, tmp_path: Path) -> None:
    batches = loader(dataset(service.url, cache=tmp_path))
    check(batches, service.old, 0)
    state = batches.state_dict()
    assert [path.name for path in tmp_path.iterdir()] == [f"{fingerprint_of(service.old)}-float32"]
    service.forget()
    later = loader(dataset(service.url, cache=tmp_path))
    with pytest.raises(ForgottenError):
        later.load_state_dict(state)
    assert list(tmp_path.iterdir()) == []
    later.load_state_dict(state, accept_version=True)
    check(later, service.new, 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"{fingerprint_of(service.new)}-float32"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_loop_over_workers_gets_the_typed_error(service: Moving, tmp_path: Path, num_workers: int) -> None:
    batches = loader(dataset(service.url, cache=tmp_path), num_workers=num_workers, multiprocessing_context="forkserver")
    check(batches, service.old, 0)
    service.forget()
    with pytest.raises(ForgottenError):
        list(batches)
    assert list(tmp_path.iterdir()) == []


def test_random_access_lets_go_too(service: Moving, tmp_path: Path) -> None:
    train = RemoteEmbeddingsDataset(service.url, "train", cache=tmp_path, retry=QUICK)
    for i in range(OLD):
        train[i]
    downloaded = RemoteEmbeddingsDataset(service.url, "train", retry=QUICK)
    assert downloaded.audio_data.shape == (OLD, 8)
    downloaded[:]
    assert len(list(tmp_path.iterdir())) == 1
    service.forget()
    with pytest.raises(ForgottenError):
        [train[i] for i in range(OLD + 1)]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ForgottenError):
        downloaded[0]
    assert downloaded._whole is None
    assert downloaded.refresh()
    assert downloaded.audio_data.shape == (NEW, 8)


def test_a_service_that_reloads_is_waited_for(service: Moving) -> None:
    service.versions.forget([fingerprint_of(service.old)])
    with Client(service.url, retry=Retry(timeout_s=60, max_delay_s=0.05)) as client:
        with pytest.raises(
            CpstreamError, match="holds a recording that is to be forgotten, and the data without it is being loaded"
        ):
            Client(service.url, retry=Retry(timeout_s=0)).splits()
        service.move(keep=False)
        (info,) = client.splits()
    assert info.num_samples == NEW


# Accepting another version


def test_a_state_whose_version_is_kept_goes_on_within_its_epoch(service: Moving) -> None:
    batches = loader(dataset(service.url))
    iterator = iter(batches)
    next(iterator)
    state = batches.state_dict()
    service.move()
    resumed = loader(dataset(service.url))
    resumed.load_state_dict(state, accept_version=True)
    check(resumed, service.old, 0, start=8)


@pytest.mark.parametrize("seen", [0, 8])
def test_a_state_whose_version_is_gone_goes_on_with_the_next_epoch(service: Moving, seen: int) -> None:
    batches = loader(dataset(service.url))
    batches.set_epoch(4)
    iterator = iter(batches)
    for _ in range(seen // 8):
        next(iterator)
    state = batches.state_dict()
    service.move(keep=False)
    resumed = loader(dataset(service.url))
    resumed.load_state_dict(state, accept_version=True)
    epoch = 5 if seen else 4  # an epoch of which nothing was seen is the next one itself
    assert resumed.state_dict()["epoch"] == epoch
    check(resumed, service.new, epoch)
    with pytest.raises(StateMismatch, match="the state has seed 3, this dataset has 4"):
        loader(dataset(service.url, seed=4)).load_state_dict(state, accept_version=True)


def test_samplers_go_on_with_the_next_epoch(service: Moving) -> None:
    def sampled(length: int) -> Any:
        sampler = RandomSampler(range(length), generator=torch.Generator().manual_seed(7))
        return loader(dataset(service.url, shuffle=False), sampler=sampler)

    batches = sampled(OLD)
    list(batches)
    iterator = iter(batches)
    next(iterator)
    with pytest.raises(CpstreamError, match="refresh"):
        batches.refresh()
    state = batches.state_dict()
    service.forget()
    resumed = sampled(NEW)
    resumed.load_state_dict(state, accept_version=True)
    assert resumed.state_dict()["batches"] == 0
    torchs = RandomSampler(range(NEW), generator=torch.Generator())
    torchs.generator.set_state(_generator_of(state))
    list(torchs)  # the epoch that was left
    assert torch.cat([index for _, index in resumed]).tolist() == list(torchs)


def _generator_of(state: Any) -> torch.Tensor:
    from base64 import b64decode

    (text,) = state["generators"].values()
    return torch.frombuffer(bytearray(b64decode(text)), dtype=torch.uint8)
