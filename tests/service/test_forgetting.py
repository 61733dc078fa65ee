"""A recording is forgotten while the service runs: real services, of one and of two workers, and a replica beside them."""

import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from command import Service, serve, workers_of
from conftest import poll
from data import make_rows, write_dataset

from cpstream_client import Client, ForgottenError, Retry
from cpstream_client.torch import StreamingEmbeddingsDataset, loader

LAST, SMALL_LAST = "5999.wav", "0039.wav"


@dataclass
class Place:
    """Where the services of a test have their files: one source of their own, one list, one snapshot folder."""

    folder: Path
    source: Path

    @property
    def list(self) -> Path:
        return self.folder / "forget.txt"

    @property
    def snapshots(self) -> Path:
        return self.folder / "snapshots"

    @contextmanager
    def service(self, *arguments: str, name: str = "one") -> Iterator[Service]:
        (self.folder / name).mkdir()
        shared = ["--snapshot-dir", str(self.snapshots), "--forget-list", str(self.list), *arguments]
        with serve(self.folder / name, *shared, source=self.source) as service:
            yield service

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def held(self) -> bytes:
        """All bytes of all snapshots, and of what was made from them."""
        return bytes_in(self.snapshots)


def bytes_in(folder: Path) -> bytes:
    """Those of all files, and their names."""
    found = []
    for path in sorted(folder.rglob("*")):
        found.append(path.name.encode())
        with suppress(FileNotFoundError):
            found.append(path.read_bytes() if path.is_file() else b"")
    return b"".join(found)


@pytest.fixture
def small(tmp_path: Path) -> Place:
    """The same with little data."""
    rows = {"train": make_rows(40, folder="."), "dev": make_rows(5, folder="dev")}
    made = Place(tmp_path, write_dataset(tmp_path / "source", rows))
    made.list.write_text("")
    return made


@pytest.fixture
def place(tmp_path: Path, large: Path) -> Place:
    made = Place(tmp_path, tmp_path / "source")
    shutil.copytree(large, made.source)
    made.list.write_text("")
    return made


def split_of(service: Service) -> dict[str, object]:
    """The split as it is served now; nothing while it is not, or where the connection was cut."""
    try:
        reply = httpx.get(f"{service.url}/v1/splits/train")
    except httpx.TransportError:
        return {}
    return dict(reply.json()) if reply.status_code == 200 else {}


def vector_of(service: Service, path: str) -> bytes:
    """The bytes of a recording's embedding."""
    with Client(service.url) as client:
        index = client.file_paths("train").index(path)
        batch = client.take("train", [index])
    assert batch.embeddings is not None
    return batch.embeddings.tobytes()


def refused(service: Service, fingerprint: object, times: int = 6) -> bool:
    """Whether requests pinned to the data are 410, whichever worker they meet: each on a connection of its own."""
    url = f"{service.url}/v1/splits/train/rows"
    try:
        return {httpx.get(url, params={"fingerprint": str(fingerprint)}).status_code for _ in range(times)} == {410}
    except httpx.TransportError:  # it was cut, too
        return False


def assert_without_pandas(service: Service) -> None:
    """Its import takes seconds of every stream beside it."""
    for process in (service.process.pid, *workers_of(service)):
        assert "/pandas/" not in Path(f"/proc/{process}/maps").read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_later_byte_of_a_recording_leaves(place: Place, workers: str) -> None:
    with place.service("--workers", workers) as service:
        fingerprint = split_of(service)["fingerprint"]
        vector = vector_of(service, LAST)
        assert vector in place.held()
        reply = httpx.get(f"{service.url}/v1/splits/train")
        assert reply.headers["cache-control"] == "no-store, no-transform"
        query = f"batch_size=64&columns=embedding,file_path&fingerprint={fingerprint}"
        streams = [opened(service, f"/v1/splits/train/{rest}") for rest in (f"batches?{query}", "embeddings.npy")]
        assert httpx.get(f"{service.url}/v1/splits/train/batches?{query}&dtype=float16&limit=1").status_code == 200
        place.list.write_text(f"# asked for by the speaker\n{LAST}\n")
        # Each worker, even one that stands still and so leaves all requests to the other.
        poll(lambda: service.log.read_text().count("forgetting: 1 splits are served no more") == int(workers))
        assert refused(service, fingerprint)
        for stream in streams:
            received = rest_of(stream)
            assert len(received) < 24e6, "the stream was whole"
            assert vector not in received
            assert LAST.encode() not in received
        now: dict[str, object] = {}
        poll(lambda: now.update(split_of(service)) or now.get("num_samples") == 5999)  # type: ignore[func-returns-value]
        assert now["fingerprint"] != fingerprint
        assert refused(service, fingerprint)  # and not 409: whoever kept it must hear of it
        poll(lambda: vector not in place.held())
        poll(lambda: LAST.encode() not in place.held())
        with Client(service.url) as client:
            assert LAST not in client.file_paths("train")
        assert_without_pandas(service)
        assert LAST not in service.log.read_text()
    # A service that starts later knows of it, too.
    with place.service(name="later") as later:
        assert refused(later, fingerprint)


def opened(service: Service, target: str) -> socket.socket:
    """A connection that has asked, and has taken the first bytes of the reply."""
    host, port = service.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.settimeout(60)
    sock.connect((host, int(port)))
    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert sock.recv(12) == b"HTTP/1.1 200"
    return sock


def rest_of(stream: socket.socket) -> bytes:
    """What still comes, until the other side ends it."""
    received = bytearray()
    with stream:
        try:
            while piece := stream.recv(1 << 20):
                received += piece
        except ConnectionResetError:
            pass
    return bytes(received)


def test_a_loop_stops_with_the_typed_error_and_goes_on_with_the_next_epoch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.create_connection

    def with_little_room(*where: Any, **options: Any) -> socket.socket:
        """The kernel would take all of an epoch ahead for a loop that stands still."""
        sock = connect(*where, **options)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        return sock

    monkeypatch.setattr(socket, "create_connection", with_little_room)
    with place.service() as service:
        retry = Retry(timeout_s=120, first_delay_s=0.01, max_delay_s=0.1)
        train = StreamingEmbeddingsDataset(
            service.url, "train", batch_size=64, columns=("index",), shuffle=True, retry=retry, prefetch_bytes=1 << 20
        )
        vectors = StreamingEmbeddingsDataset(
            service.url, "train", batch_size=64, retry=retry, prefetch_bytes=1 << 20, cache="memory"
        )
        iterator = iter(vectors)
        next(iterator)
        batches = loader(train)
        list(batches)
        place.list.write_text(f"{LAST}\n")
        poll(lambda: refused(service, train.info.fingerprint))
        with pytest.raises(ForgottenError):
            list(iterator)
        with pytest.raises(ForgottenError):
            list(batches)
        batches.load_state_dict(batches.state_dict(), accept_version=True)  # waits for the new version: 503 reloading until then
        assert len(np.unique(np.concatenate([index.numpy() for (index,) in batches]))) == 5999
        assert batches.state_dict()["epoch"] == 2


def test_replicas_of_one_snapshot_folder(small: Place) -> None:
    with small.service("--workers", "2") as one, small.service(name="another") as another:
        fingerprint = split_of(one)["fingerprint"]
        vector = vector_of(one, SMALL_LAST)
        small.list.write_text(SMALL_LAST)
        for service in (one, another):
            poll(lambda: refused(service, fingerprint))  # noqa: B023
        for service in (one, another):
            poll(lambda: split_of(service).get("num_samples") == 39)  # noqa: B023
        poll(lambda: split_of(one) | {"workers": None} == split_of(another) | {"workers": None})
        poll(lambda: vector not in small.held())
        # A path that was listed by mistake comes back.
        small.list.write_text("")
        for service in (one, another):
            poll(lambda: split_of(service).get("fingerprint") == fingerprint)  # noqa: B023


def test_kept_predictions_of_a_recording_are_deleted(small: Place) -> None:
    state = ["--state-dir", str(small.state)]
    with (
        small.service("--workers", "2", *state) as one,
        small.service(*state, name="another") as another,
        Client(one.url) as client,
        Client(another.url) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        info, paths = client.split("train"), client.file_paths("train")
        run = {"file_path": paths, "predicted": [12.0] * 40}
        client.publish("train", "mlp", run)
        client.publish("dev", "mlp", {"index": [0, 1], "predicted": [12.0, 12.0]})
        kept = small.state / "predictions" / info.fingerprint
        shutil.copytree(kept, kept.with_name("0" * 32))  # of a version that is long gone
        (kept.parent / ".writing-killed").write_text(SMALL_LAST)
        assert {entry.name for entry in other.runs("train").runs} == {"mlp"}

        def publish_on() -> None:
            while True:
                other.publish("train", "late", run, info=info)

        publishing = thread.submit(publish_on)
        small.list.write_text(SMALL_LAST)
        with pytest.raises(ForgottenError):
            publishing.result(90)
        for service in (one, another):
            poll(lambda: split_of(service).get("num_samples") == 39)  # noqa: B023
        poll(lambda: SMALL_LAST.encode() not in bytes_in(small.state))
        poll(lambda: not list(kept.glob("*")))
        assert {entry.name for entry in other.runs("dev").runs} == {"mlp"}
        # Who still has its path may send it, and nobody else hears of it.
        again = other.publish("train", "mlp", run)
        assert (again.num_predicted, again.unknown.count, again.unknown.examples) == (39, 1, ())
        assert_without_pandas(one)
        assert SMALL_LAST.encode() not in bytes_in(small.state)


def test_a_list_that_was_damaged_or_is_gone_brings_nothing_back(small: Place) -> None:
    small.list.write_text(SMALL_LAST)
    with small.service() as service:
        assert split_of(service)["num_samples"] == 39
        small.list.write_bytes(b"\xff\n")
        poll(lambda: "line 1 is not UTF-8" in service.log.read_text())
        small.list.unlink()
        poll(lambda: "forget.txt: there is no such file" in service.log.read_text())
        assert split_of(service)["num_samples"] == 39
        small.list.write_text(f"{SMALL_LAST}\n0000.wav\n")
        poll(lambda: split_of(service).get("num_samples") == 38)
