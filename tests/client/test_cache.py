"""Caches: what they hold is what the service sent, in the plan's order, whoever fills them and however that ends."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Server
from torch.utils.data import DataLoader

from cpstream_client import BatchQuery, Client
from cpstream_client.buffers import BufferPool
from cpstream_client.contract.bodies import SplitInfo
from cpstream_client.contract.wire import Dtype
from cpstream_client.epochs.cache import MemoryCache, SplitCache
from cpstream_client.epochs.epochs import Epochs
from cpstream_client.epochs.file_cache import FileCache
from cpstream_client.stream.course import cut
from cpstream_client.stream.reader import Batch
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader
from cpstream_client.torch.device import DeviceCache, to_device

QUERY = BatchQuery(batch_size=32, shuffle="uniform", seed=3, columns=("embedding", "cps", "index"))


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url)


@pytest.fixture
def info(client: Client) -> SplitInfo:
    return client.split("train")


def make(kind: str, info: SplitInfo, tmp_path: Path, dtype: Dtype = "float32") -> SplitCache:
    if kind == "memory":
        return MemoryCache(info, dtype)
    if kind == "device":
        return DeviceCache(info, dtype, torch.device("cpu"))
    return FileCache(tmp_path / "cache", info, dtype)


def assert_same(got: list[Batch], expected: list[Batch]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one.embeddings), other.embeddings)
        np.testing.assert_array_equal(np.asarray(one.cps), other.cps)
        np.testing.assert_array_equal(one.index, other.index)


def batches_of(epochs: Epochs, query: BatchQuery) -> list[Batch]:
    return list(cut(epochs.records(query), query.batch_size))


class Counting(MemoryCache):
    """A cache that counts the samples that were fetched for it."""

    fetched = 0

    def put(self, batch: Batch) -> None:
        self.fetched += batch.num_rows
        super().put(batch)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["memory", "file", "device"])
def test_later_epochs_come_from_the_cache_in_the_plans_order(
    kind: str, dtype: Dtype, client: Client, info: SplitInfo, tmp_path: Path
) -> None:
    epochs = Epochs(client, info, 2**20, make(kind, info, tmp_path, dtype))
    for epoch in range(3):
        query = replace(QUERY, epoch=epoch, dtype=dtype)
        streamed = batches_of(Epochs(client, info, 2**20), query)
        assert_same(batches_of(epochs, query), streamed)
    away = Client("http://127.0.0.1:9", timeout_s=0.2)  # port 9: nobody there
    epochs._client = away
    query = replace(QUERY, epoch=3, dtype=dtype)
    assert_same(batches_of(epochs, query), batches_of(Epochs(client, info, 2**20), query))


def test_an_epoch_that_was_left_is_completed_by_taking_what_is_missing(client: Client, info: SplitInfo, tmp_path: Path) -> None:
    cache = Counting(info, "float32")
    cache.put(client.take("train", np.arange(info.num_samples - 100)))
    cache.fetched = 0
    got = batches_of(Epochs(client, info, 2**20, cache), QUERY)
    assert cache.fetched == 100
    assert len(cache.missing()) == 0
    assert_same(got, batches_of(Epochs(client, info, 2**20), QUERY))


def test_several_ranks_workers_and_policies(client: Client, info: SplitInfo) -> None:
    cache = MemoryCache(info, "float32")
    cache.put(client.take("train", np.arange(info.num_samples)))
    for rank in range(3):
        for options in ({"remainder": "exact"}, {"remainder": "drop"}, {"drop_last": True}, {"worker": 1, "num_workers": 2}):
            query = replace(QUERY, rank=rank, world_size=7, start=5, **options)
            assert_same(batches_of(Epochs(client, info, 2**20, cache), query), batches_of(Epochs(client, info, 2**20), query))


def test_file_paths_beside_a_cache(client: Client, info: SplitInfo) -> None:
    query = replace(QUERY, columns=("cps", "index", "file_path"))
    epochs = Epochs(client, info, 2**20, MemoryCache(info, "float32"))
    first, second = batches_of(epochs, query), batches_of(epochs, query)
    assert [batch.file_paths for batch in first] == [batch.file_paths for batch in second]
    assert second[0].file_paths == [client.file_paths("train")[i] for i in second[0].index]


def test_a_file_cache_outlives_its_process(client: Client, info: SplitInfo, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    batches_of(Epochs(client, info, 2**20, FileCache(directory, info, "float32")), QUERY)
    assert sorted(each.name for each in directory.iterdir()) == [f"{info.fingerprint}-float32"]
    later = FileCache(directory, info, "float32")
    assert len(later.missing()) == 0
    assert_same([later.gather(np.arange(50))], [client.take("train", np.arange(50))])


@pytest.mark.parametrize("harm", ["flip", "truncate", "manifest"])
def test_a_damaged_file_cache_is_not_believed(harm: str, client: Client, info: SplitInfo, tmp_path: Path) -> None:
    batches_of(Epochs(client, info, 2**20, FileCache(tmp_path, info, "float32")), QUERY)
    folder = tmp_path / f"{info.fingerprint}-float32"
    if harm == "flip":
        with open(folder / "embeddings", "r+b") as file:
            file.seek(1000)
            byte = file.read(1)
            file.seek(1000)
            file.write(bytes([byte[0] ^ 1]))
    elif harm == "truncate":
        os.truncate(folder / "embeddings", 1000)
    else:
        (folder / "manifest.json").write_text("{")
    again = FileCache(tmp_path, info, "float32")
    assert len(again.missing()) == info.num_samples
    epochs = Epochs(client, info, 2**20, again)
    batches_of(epochs, QUERY)
    assert_same([again.gather(np.arange(9))], [client.take("train", np.arange(9))])
    assert len(FileCache(tmp_path, info, "float32").missing()) == 0


FILL = """
import json, os, signal, sys
import numpy as np
from cpstream_client import Client
from cpstream_client.buffers import BufferPool
from cpstream_client.epochs.file_cache import FileCache
url, directory, low, high, die = sys.argv[1:]
client = Client(url); info = client.split("train")
cache = FileCache(directory, info, "float32")
print("open", flush=True); sys.stdin.readline()
for at in range(int(low), int(high), 50):
    cache.put(client.take("train", np.arange(at, min(at + 50, int(high))), info=info))
if die == "die":
    os.kill(os.getpid(), signal.SIGKILL)
print(len(cache.missing()), flush=True); sys.stdin.readline()
"""


def fill(server: Server, directory: Path, low: int, high: int, die: str = "") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", FILL, server.url, str(directory), str(low), str(high), die],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_processes_fill_one_file_cache_together(server: Server, client: Client, info: SplitInfo, tmp_path: Path) -> None:
    half = info.num_samples // 2
    one, two = fill(server, tmp_path, 0, half + 25), fill(server, tmp_path, half - 25, info.num_samples)
    assert one.stdin
    assert two.stdin
    assert one.stdout
    assert two.stdout
    one.stdin.write("\n")
    one.stdin.flush()
    assert int(one.stdout.readline()) == half - 25
    two.communicate("\n\n", timeout=60)
    one.communicate("\n", timeout=60)
    whole = FileCache(tmp_path, info, "float32")
    assert len(whole.missing()) == 0
    everything = np.arange(info.num_samples)
    assert_same([whole.gather(everything)], [client.take("train", everything)])
    assert [each.name for each in tmp_path.iterdir()] == [f"{info.fingerprint}-float32"]


def test_what_a_killed_process_left_is_begun_anew(server: Server, info: SplitInfo, tmp_path: Path) -> None:
    killed = fill(server, tmp_path, 0, 500, "die")
    killed.communicate("\n", timeout=60)
    assert killed.returncode == -9
    assert len(FileCache(tmp_path, info, "float32").missing()) == info.num_samples


def test_an_incomplete_file_cache_has_no_manifest(client: Client, info: SplitInfo, tmp_path: Path) -> None:
    cache = FileCache(tmp_path, info, "float32")
    cache.put(client.take("train", np.arange(10)))
    assert not list(tmp_path.rglob("manifest.json"))
    cache.put(client.take("train", np.arange(10, info.num_samples)))
    (manifest,) = tmp_path.rglob("manifest.json")
    assert json.loads(manifest.read_text())["num_samples"] == info.num_samples


def test_whoever_completes_a_file_cache_second_goes_on(client: Client, info: SplitInfo, tmp_path: Path) -> None:
    first, second = (FileCache(tmp_path, info, "float32") for _ in range(2))
    everything = client.take("train", np.arange(info.num_samples))
    first.put(everything)
    second.put(everything)
    assert_same([second.gather(np.arange(9))], [client.take("train", np.arange(9))])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["cps", "embeddings", "manifest.json"]


def test_a_full_disk_is_an_error_that_names_it(server: Server, tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        dataset = StreamingEmbeddingsDataset(server.url, "train", cache=str(tmp_path))
        with pytest.raises(OSError, match=r"No space left on device: . MB are needed and 0 MB are free; choose another cache="):
            next(iter(dataset))
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_planted_link_keeps_its_target(info: SplitInfo, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    partial = tmp_path / "cache" / f"{info.fingerprint}-float32.partial"
    partial.mkdir(parents=True)
    for name in ("embeddings", "lock"):
        (partial / name).symlink_to(target)
        with pytest.raises(OSError, match="symbolic links"):
            FileCache(tmp_path / "cache", info, "float32")
        assert target.read_text() == "precious"
        partial.mkdir(exist_ok=True)


def test_a_file_system_without_locks_is_named(info: SplitInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OSError, match=r"no file locks \(No locks available\).* choose another cache=DIRECTORY on a local disk"):
        FileCache(tmp_path, info, "float32")


@pytest.mark.parametrize("cache", ["memory", "device", "directory"])
def test_datasets_deliver_the_same_with_a_cache(cache: str, server: Server, tmp_path: Path) -> None:
    chosen = str(tmp_path) if cache == "directory" else cache
    options = {"batch_size": 100, "shuffle": True, "seed": 1, "rank": 1, "world_size": 2}
    plain = StreamingEmbeddingsDataset(server.url, "train", **options)
    cached = StreamingEmbeddingsDataset(server.url, "train", cache=chosen, **options)
    for epoch in range(3):
        plain.set_epoch(epoch)
        cached.set_epoch(epoch)
        for one, other in zip(loader(plain), loader(cached), strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    remote, remote_cached = RemoteEmbeddingsDataset(server.url, "train"), RemoteEmbeddingsDataset(server.url, "train", cache=chosen)
    for index in ([5, 3, 3], [3, 1700], slice(0, 100)):
        for one, other in zip(remote[index], remote_cached[index], strict=True):
            assert torch.equal(one, other)


def test_workers_share_a_directory_and_no_memory(server: Server, tmp_path: Path) -> None:
    dataset = StreamingEmbeddingsDataset(server.url, "train", batch_size=100, cache=str(tmp_path))
    plain = [cps for _, cps in DataLoader(StreamingEmbeddingsDataset(server.url, "train", batch_size=100), batch_size=None)]
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in zip([cps for _, cps in loader(dataset, num_workers=2)], plain, strict=True))
    assert [each.name for each in tmp_path.iterdir()] == [f"{dataset.info.fingerprint}-float32"]
    in_memory = StreamingEmbeddingsDataset(server.url, "train", cache="memory")
    with pytest.raises(ValueError, match="use num_workers=0"):
        next(iter(loader(in_memory, num_workers=2)))


class FakeStreams:
    """What torch.cuda offers to_device, with copies that end when the test says so."""

    def __init__(self) -> None:
        self.events: list[FakeEvent] = []

    def Stream(self, device: object) -> "FakeStreams":
        return self

    def stream(self, side: object) -> "FakeStreams":
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def record_event(self) -> "FakeEvent":
        self.events.append(FakeEvent())
        return self.events[-1]

    def current_stream(self, device: object) -> "FakeStreams":
        return self

    def wait_event(self, event: "FakeEvent") -> None:
        event.waited_for = True


class FakeEvent:
    done = waited_for = False

    def query(self) -> bool:
        return self.done


def test_to_device_runs_one_ahead_and_keeps_the_source_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = FakeStreams()
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    made: list[int] = []
    pool = BufferPool(max_idle=8)

    def items():  # type: ignore[no-untyped-def]
        for step in range(12):
            lease = pool.lease(256)
            made.append(lease.ctypes.data)
            lease[:] = step
            yield (torch.from_numpy(lease), f"file {step}")
            del lease

    seen = []
    for step, (tensor, name) in enumerate(to_device(items(), torch.device("cpu"))):
        assert len(made) == min(step + 2, 12), "one batch ahead, and no more"
        assert streams.events[step].waited_for
        assert name == f"file {step}"
        seen.append(int(tensor[0]))
        if step == 3:
            assert len(set(made)) == len(made), "no copy has ended, so no buffer may be used again"
            for event in streams.events:
                event.done = True
    assert seen == list(range(12))
    assert len(set(made)) < 12, "and afterwards they are"
