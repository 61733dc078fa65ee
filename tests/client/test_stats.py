"""stats(): what the loop waited, against loops whose compute time and servers whose speed are known."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import torch
from conftest import Server, bound, poll
from faultproxy import FaultProxy
from oracle import FORKING
from torch.utils.data import DataLoader, RandomSampler

from cpstream_client import Client, Retry
from cpstream_client.epochs.tally import Tally
from cpstream_client.stream import chosen as chosen_module
from cpstream_client.stream import course as course_module
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader

pytestmark = [*FORKING, pytest.mark.usefixtures("short_path")]
BATCH_SIZE, STEPS = 100, 18
BATCH_BYTES = BATCH_SIZE * (154 * 4 + 4)


@pytest.fixture(autouse=True)
def _one_batch_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (course_module, chosen_module):
        monkeypatch.setattr(module, "WIRE_BATCH_BYTES", BATCH_BYTES)


@contextmanager
def throttled(url: str, bytes_per_s: float) -> Iterator[str]:
    """The address of a relay that sends the service's bytes on at this rate, over all connections together."""
    host, port = url.removeprefix("http://").split(":")
    listener, lock, sent = bound(), threading.Lock(), [0.0]
    listener.listen()

    def pump(source: socket.socket, target: socket.socket, rate: float | None) -> None:
        try:
            while data := source.recv(4096):
                if rate is not None:
                    with lock:
                        sent[0] = max(sent[0], time.monotonic()) + len(data) / rate
                        wait_s = sent[0] - time.monotonic()
                    time.sleep(max(0, wait_s))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            service = socket.create_connection((host, int(port)))
            opened.extend((client, service))
            for ends in ((client, service, None), (service, client, bytes_per_s)):
                threads.append(threading.Thread(target=pump, args=ends))
                threads[-1].start()

    opened: list[socket.socket] = []
    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in opened:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for each in opened:
            each.close()


def run(batches: Any, compute_s: float) -> tuple[float, list[float], list[float]]:
    """Seconds that the loop took, those of them in which it computed, and those that went into fetching meanwhile, by step."""
    began, computed, fetched = time.monotonic(), [], [0.0]
    for _ in batches:
        then = time.monotonic()
        time.sleep(compute_s)
        fetched.append(batches.stats()["background_ms"]["fetch"] / 1e3)
        computed.append(time.monotonic() - then)
    return time.monotonic() - began, computed, [later - sooner for sooner, later in pairwise(fetched)]


@pytest.mark.parametrize("way", ["dataset", "loader", "worker", "sampler"])
def test_a_loop_that_is_faster_than_its_server_waits_for_the_rest(server: Server, way: str) -> None:
    fetch_s, compute_s = 0.12, 0.05  # of a batch; what arrives while the loop computes is not waited for
    with throttled(server.url, BATCH_BYTES / fetch_s) as url:
        client = Client(url, max_connections=1)
        train = StreamingEmbeddingsDataset(client, "train", batch_size=BATCH_SIZE, shuffle=way != "sampler")
        assert train.info.num_samples == 1800
        batches: Any = train
        if way == "sampler":
            batches = loader(train, sampler=RandomSampler(range(1800)), batch_size=BATCH_SIZE)
        elif way != "dataset":
            batches = loader(train, num_workers=int(way == "worker"))
        took, computed, fetched = run(batches, compute_s)
        stats = batches.stats()
    waited_s = stats["exposed_ms"]["total"] / 1e3
    assert stats["steps"] == STEPS
    assert waited_s == pytest.approx(took - sum(computed), rel=0.1)  # all of the loop's time is its compute or its wait
    # As if nothing were fetched ahead it would be all of a batch's time, and 0 if only what is asked for late counted. On a busy
    # machine both take longer than was asked for, and a step in which it stands still says nothing of the others.
    assert 0.6 * (median(fetched) - median(computed)) < stats["exposed_ms"]["p50"] / 1e3 < 0.8 * median(fetched)
    assert stats["exposed_ms"]["p99"] == pytest.approx(stats["exposed_ms"]["max"], rel=0.05)
    assert stats["background_ms"]["fetch"] / 1e3 > 0.8 * STEPS * fetch_s
    assert stats["bytes"] >= 1800 * 620
    assert (stats["connections"], stats["reconnects"], stats["cache"]["misses"]) == (1, 0, 1800)
    assert json.loads(json.dumps(stats)) == stats


def test_a_loop_that_is_slower_than_its_server_does_not_wait(server: Server) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=BATCH_SIZE)
    batches = loader(train)
    waited = [0.0]
    for step, _ in enumerate(batches):
        if step == 0:  # a step that takes longer than all the others' batches
            poll(lambda: batches.stats()["bytes"] >= 1800 * 620)
        waited.append(batches.stats()["exposed_ms"]["total"])
    stats = batches.stats()
    first, *others = [later - sooner for sooner, later in pairwise(waited)]
    assert sum(sorted(others)[: STEPS // 2]) < 0.3 * first  # in the others a busy machine may stand still
    assert stats["exposed_ms"]["p50"] < 10
    assert stats["queue"]["depth"] > 2


def test_batches_that_lay_ready_count_as_steps_without_a_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course_module, "WIRE_BATCH_BYTES", 2**20)
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=7)
    for step, _ in enumerate(train):
        if step == 9:
            break
    assert train.stats()["steps"] == 10
    assert train.stats()["exposed_ms"]["p50"] == 0
    assert train.stats(reset=True)["exposed_ms"]["max"] > 0
    assert train.stats()["steps"] == train.stats()["bytes"] == 0


def test_hits_and_misses_of_the_cache(server: Server) -> None:
    batches = loader(StreamingEmbeddingsDataset(server.url, "train", batch_size=64, shuffle=True))
    for hits, misses in ((0, 1800), (1800, 0)):
        assert len(list(batches)) == 29
        cache = batches.stats(reset=True)["cache"]
        assert (cache["hits"], cache["misses"], cache["hit_rate"]) == (hits, misses, hits / 1800)
        assert (cache["kind"], cache["bytes"]) == ("memory", 1800 * (154 * 4 + 12))
    rank = loader(StreamingEmbeddingsDataset(server.url, "train", batch_size=64, shuffle=True, rank=0, world_size=2))
    seen = []
    for _ in range(3):
        list(rank)
        seen.append(rank.stats(reset=True)["cache"])
    assert [cache["hits"] + cache["misses"] for cache in seen] == [900, 900, 900]
    assert seen[0]["hits"] == 0 < seen[1]["hits"] <= 900 == seen[2]["hits"]


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_workers_add_to_the_same_figures(server: Server, context: str) -> None:
    train = StreamingEmbeddingsDataset(server.url, "train", batch_size=BATCH_SIZE)
    batches = loader(train, num_workers=2, multiprocessing_context=context)
    list(batches)
    stats = batches.stats()
    assert (stats["steps"], stats["cache"]["misses"], stats["connections"]) == (STEPS, 1800, 1)
    assert stats["bytes"] >= 1800 * 620
    assert stats["background_ms"]["fetch"] > 0
    assert stats["cache"]["kind"] is None  # here; in the workers there is none


def test_reconnects_are_counted(server: Server) -> None:
    with FaultProxy(server.url, seed=3, kinds=("cut",), reply_bytes=200_000) as proxy:
        retry = Retry(timeout_s=60, first_delay_s=0.002, max_delay_s=0.02, contact_timeout_s=60)
        train = StreamingEmbeddingsDataset(Client(proxy.url, retry=retry, max_connections=1), "train", batch_size=BATCH_SIZE)
        assert len(train) == STEPS
        before = proxy.counts.total()
        assert len(list(train)) == STEPS
        assert train.stats()["reconnects"] == proxy.counts.total() - before > 0


def test_random_access(server: Server) -> None:
    dev = RemoteEmbeddingsDataset(server.url, "dev")
    for _ in range(6):
        for low in range(0, 300, 50):
            assert len(dev[low : low + 50][1]) == 50
    stats = dev.stats()
    assert (stats["steps"], stats["requests"], stats["cache"]["hits"], stats["cache"]["misses"]) == (36, 6, 1500, 300)
    assert stats["exposed_ms"]["p99"] > 2 * stats["exposed_ms"]["p50"] > 0
    workers = RemoteEmbeddingsDataset(server.url, "dev")
    assert sum(len(cps) for _, cps in DataLoader(workers, 50, num_workers=2)) == 300
    assert (workers.stats()["steps"], workers.stats()["cache"]["misses"]) == (0, 300)


def test_percentiles() -> None:
    tally = Tally()
    waits = torch.linspace(0.001, 1, 10_000, dtype=torch.float64)
    for wait in waits.tolist():
        tally.waited(wait)
    exposed = tally.figures()["exposed_ms"]
    assert exposed["mean"] == pytest.approx(500.5)
    assert exposed["p50"] == pytest.approx(500, rel=0.02)
    assert exposed["p99"] == pytest.approx(990, rel=0.02)
    assert exposed["max"] == 1000
    tally.at_once(90_000)
    exposed = tally.figures()["exposed_ms"]
    assert exposed["p50"] == 0
    assert exposed["p99"] == pytest.approx(900, rel=0.02)
