"""Data that changes under a running service: loaded beside the old, current everywhere at once, the old kept for who uses it."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from command import Service, children_of, command_of, is_alive, serve, workers_of
from conftest import poll
from data import make_settings
from looked_at import look
from reloading import Trainer, current, last_reload, reload, source

from cpstream_service.snapshot.inputs import Files, identity_of
from cpstream_service.snapshot.locks import writing


@dataclass
class Running:
    """A service and its source. embeddings: those of train that it holds, by fingerprint."""

    service: Service
    source: Path
    embeddings: dict[str, npt.NDArray[np.float32]]
    seed: int = 1

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def snapshots(self) -> list[Path]:
        return list((self.source.parent / "snapshots").glob("[!.]*"))

    def renew(self) -> str:
        """Other data, loaded. Returns the fingerprint of its train."""
        self.seed += 1
        embeddings = source(self.source, self.seed)
        last = reload(self.url)
        assert (last["outcome"], last["error"]) == ("succeeded", None), self.service.log.read_text()
        self.embeddings[current(self.url)] = embeddings
        return current(self.url)

    def status(self, fingerprint: str) -> int:
        return httpx.get(f"{self.url}/v1/splits/train", params={"fingerprint": fingerprint}).status_code


def start(stack: ExitStack, folder: Path, *options: str) -> Running:
    embeddings = source(folder / "source", seed=1)
    service = stack.enter_context(serve(folder, *options, source=folder / "source"))
    return Running(service, folder / "source", {current(service.url): embeddings})


@pytest.fixture(params=["1", "2"], scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With one and with two workers. Old versions that were asked for are kept for an hour."""
    with ExitStack() as stack:
        yield start(stack, tmp_path_factory.mktemp("reload"), "--workers", request.param)


def test_streams_of_both_versions_are_whole(running: Running) -> None:
    old = current(running.url)
    trainers = [Trainer(running.url, seed) for seed in range(8)]
    with ThreadPoolExecutor(len(trainers)) as threads:
        epochs = [threads.submit(trainer.run, 0) for trainer in trainers]
        for trainer in trainers:
            assert trainer.pauses.wait(90)
        new = running.renew()
        assert new != old
        late = Trainer(running.url, 9)
        late.go_on.set()
        late.check(0, late.run(0), running.embeddings[new])
        for trainer in trainers:
            trainer.go_on.set()
        for trainer, epoch in zip(trainers, epochs, strict=True):
            trainer.check(0, epoch.result(), running.embeddings[old])
    for trainer in trainers:  # a run stays with its own, an epoch later, too
        trainer.check(1, trainer.run(1), running.embeddings[old])
    told = httpx.get(f"{running.url}/v1/versions").json()
    assert [(each["current"], each["splits"][0]["fingerprint"]) for each in told["versions"][:2]] == [(True, new), (False, old)]
    assert told["versions"][1]["last_used_at"] is not None
    assert httpx.get(f"{running.url}/v1/splits/dev").json()["num_samples"] == 5


def test_statistics_are_of_the_version_that_is_asked_for(running: Running) -> None:
    old = current(running.url)
    assert statistics(running.url, None)["fingerprint"] == old
    new = running.renew()
    for pinned, fingerprint in ((None, new), (old, old), (new, new)):
        found = statistics(running.url, pinned)
        assert found["fingerprint"] == fingerprint
        norms = np.linalg.norm(running.embeddings[fingerprint], axis=1)
        assert found["embeddings"]["norms"]["max"] == pytest.approx(norms.max())


def statistics(url: str, pinned: str | None) -> dict[str, Any]:
    """Once they are computed."""
    replies: list[httpx.Response] = []

    def is_there() -> bool:
        replies.append(httpx.get(f"{url}/v1/splits/train/statistics", params={"fingerprint": pinned} if pinned else {}))
        return replies[-1].status_code != 202

    poll(is_there)
    assert replies[-1].status_code == 200, replies[-1].text
    return dict(replies[-1].json())


def test_every_worker_has_the_new_data_when_the_reload_has_ended(running: Running) -> None:
    new = running.renew()
    assert {current(running.url) for _ in range(20)} == {new}  # a connection each


def test_a_reload_that_fails_leaves_the_data_and_says_why(running: Running) -> None:
    before = current(running.url)
    table = running.source / "train_cps.csv"
    content = table.read_bytes()
    table.write_text("path,rate\nx,1\n")
    last = reload(running.url)
    assert last["outcome"] == "failed"
    assert "train_cps.csv" in last["error"]

    def ready() -> tuple[int, Any]:
        reply = httpx.get(f"{running.url}/readyz")
        return reply.status_code, reply.json()["reload_error"]

    poll(lambda: ready() == (200, last["error"]))  # of a worker that heard of it a moment later, too
    assert str(running.source) not in last["error"]  # of the server's disk a client learns nothing
    assert f"the data is served as before: {table}" in running.service.log.read_text()
    told = "the last reload failed", " ".join(last["error"].split())

    def page() -> str:
        with httpx.Client(base_url=running.url) as http:
            return look(http, "/page/versions").text

    poll(lambda: all(words in text for text in (page(),) for words in told))
    poll(lambda: 'cpstream_loads_total{outcome="failed"} 1.0' in httpx.get(f"{running.url}/metrics").text)
    assert current(running.url) == before
    table.write_bytes(content)
    assert reload(running.url)["outcome"] == "unchanged"
    poll(lambda: ready() == (200, None))


def test_a_loader_that_dies_is_a_reload_that_fails(running: Running) -> None:
    before = current(running.url)
    running.seed += 1
    source(running.source, running.seed)
    settings = make_settings(running.source, snapshot_dir=running.source.parent / "snapshots")
    key = Files.of(settings).key(identity_of(settings), settings.snapshot_dir)
    # Nobody else writes, so that it has not ended when it is killed.
    with ThreadPoolExecutor() as threads, writing(settings.snapshot_dir, key):
        reloads = threads.submit(reload, running.url)
        poll(lambda: loaders_of(running.service))
        os.kill(loaders_of(running.service)[0], signal.SIGKILL)
        last = reloads.result()
    assert last["outcome"] == "failed"
    assert "was killed, most likely for want of memory" in last["error"]
    assert current(running.url) == before


def test_a_version_that_was_asked_for_is_kept_however_many_came_since(running: Running) -> None:
    used = current(running.url)
    assert running.status(used) == 200
    before = set(running.snapshots)
    unused = running.renew()
    (folder,) = set(running.snapshots) - before
    for _ in range(2):
        running.renew()
    assert running.status(used) == 200
    poll(lambda: not folder.exists())  # it is dropped after the end of the reload; who asked before would have it kept
    refused = httpx.get(f"{running.url}/v1/splits/train", params={"fingerprint": unused})
    assert refused.json()["code"] == "dataset-changed"
    assert refused.json()["actual"] == refused.json()["held"][0]
    assert used in refused.json()["held"]


def test_a_worker_that_takes_the_place_of_another_has_all_versions(running: Running) -> None:
    workers = workers_of(running.service)
    if len(workers) < 2:
        pytest.skip("there is one process, and nobody to replace it")
    old = current(running.url)
    assert running.status(old) == 200
    os.kill(workers[0], signal.SIGKILL)
    new = running.renew()  # while one is being replaced
    poll(lambda: len(workers_of(running.service)) == 2 and not is_alive(workers[0]))
    for _ in range(20):
        assert current(running.url) == new
        assert running.status(old) == 200


def test_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    """Of 10, seen from the second on: descriptors, mapped files, snapshots on the disk."""
    with ExitStack() as stack:
        running = start(stack, tmp_path, "--keep-for", "0s")

        def held() -> tuple[int, int, int]:
            process = Path(f"/proc/{running.service.process.pid}")
            maps = {line.split()[-1] for line in (process / "maps").read_text().splitlines() if str(tmp_path) in line}
            return len(os.listdir(process / "fd")), len(maps), len(running.snapshots)

        for number in range(10):
            fingerprint = running.renew()
            assert running.status(fingerprint) == 200  # pinned: kept for no second longer
            if number == 1:
                poll(lambda: held()[2] == 2)
                second = held()
        poll(lambda: all(now <= before for now, before in zip(held(), second, strict=True)))
        assert list((tmp_path / "snapshots").glob(".writing-*")) == []


def test_watch_loads_what_has_changed_and_settled(tmp_path: Path) -> None:
    with ExitStack() as stack:
        running = start(stack, tmp_path, "--watch", "--watch-interval-s", "0.2")
        old = current(running.url)
        embeddings = source(running.source, 2)
        last = last_reload(running.url, lambda last: last["number"] >= 1 and last["outcome"] == "succeeded")
        assert last["reason"] == "the source changed"
        poll(lambda: current(running.url) != old)
        trainer = Trainer(running.url, 1)
        trainer.go_on.set()
        trainer.check(0, trainer.run(0), embeddings)


def test_three_replicas_are_reloaded_one_after_the_other_under_their_trainers(tmp_path: Path) -> None:
    embeddings = {1: source(tmp_path / "source", 1)}
    with ExitStack() as stack:
        replicas = []
        for name in "abc":
            (tmp_path / name).mkdir()
            shared = ["--snapshot-dir", str(tmp_path / "snapshots")]
            replicas.append(stack.enter_context(serve(tmp_path / name, *shared, source=tmp_path / "source")))
        urls = [replica.url for replica in replicas]
        old = current(urls[0])
        trainers = [Trainer([*urls[seed % 3 :], *urls[: seed % 3]], seed) for seed in range(8)]
        threads = stack.enter_context(ThreadPoolExecutor(len(trainers)))
        epochs = [threads.submit(trainer.run, 0) for trainer in trainers]
        for trainer in trainers:
            assert trainer.pauses.wait(90)
        embeddings[2] = source(tmp_path / "source", 2)
        assert reload(urls[0])["outcome"] == "succeeded"
        new = current(urls[0])
        assert [current(url) for url in urls] == [new, old, old]
        late = Trainer(urls[0], 9)
        late.go_on.set()
        late.check(0, late.run(0), embeddings[2])
        for url in urls[1:]:  # where it is not current; they find it in the folder that they share
            poll(lambda url=url: httpx.get(f"{url}/v1/splits/train", params={"fingerprint": new}).status_code == 200)
            assert current(url) == old
        for trainer in trainers[:4]:
            trainer.go_on.set()
        assert [reload(url)["outcome"] for url in urls[1:]] == ["succeeded"] * 2
        assert [current(url) for url in urls] == [new] * 3
        for trainer in trainers:
            trainer.go_on.set()
        for trainer, epoch in zip(trainers, epochs, strict=True):
            trainer.check(0, epoch.result(), embeddings[1])
            trainer.check(1, trainer.run(1), embeddings[1])
        # A new replica knows nothing of the old version but what lies in the folder.
        (tmp_path / "d").mkdir()
        fourth = stack.enter_context(serve(tmp_path / "d", *shared, source=tmp_path / "source"))
        poll(lambda: httpx.get(f"{fourth.url}/v1/splits/train", params={"fingerprint": old}).status_code == 200)


def loaders_of(service: Service) -> list[int]:
    """The processes that load data for a service."""
    return [pid for pid in children_of(service.process.pid) if is_alive(pid) and "versions.child" in command_of(pid)]
