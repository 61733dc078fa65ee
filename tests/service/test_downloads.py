"""Whole-split downloads: numpy reads them, ranges add up, and a copy that is current is not sent again."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree, rmtree

import httpx
import numpy as np
import pytest
from conftest import Server, poll, serving

from cpstream_client.contract import wire
from cpstream_service.api.files import PIECE_BYTES
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot, Split, open_snapshot

URL = "/v1/splits/train/embeddings.npy"


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture
def train(server: Server) -> Split:
    return server.snapshot.splits["train"]


@pytest.fixture
def whole(train: Split) -> bytes:
    body = (train.path / "embeddings.npy").read_bytes()
    assert len(body) > PIECE_BYTES  # or the replies below would all be of one piece
    return body


def test_numpy_and_json_read_the_files(http: httpx.Client, train: Split) -> None:
    embeddings = http.get(URL)
    assert np.array_equal(np.load(io.BytesIO(embeddings.content)), train.embeddings)
    assert embeddings.headers["content-type"] == wire.OCTET_STREAM
    assert embeddings.headers["content-disposition"] == 'attachment; filename="train-embeddings.npy"'
    assert np.array_equal(np.load(io.BytesIO(http.get("/v1/splits/train/cps.npy").content)), train.cps)
    paths = http.get("/v1/splits/train/file_paths.json")
    assert paths.headers["content-type"] == wire.JSON
    assert paths.json() == train.file_paths.to_pylist()
    assert http.get("/v1/splits/train/file_paths.json").headers["etag"] == paths.headers["etag"] != embeddings.headers["etag"]


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=1000-", 1000, None),
        ("bytes=-200", -200, None),
        ("bytes=0-999999999999", 0, None),
        ("bytes=-999999999999", 0, None),
        ("Bytes = 5-9", 5, 10),
        (f"bytes={PIECE_BYTES - 10}-{PIECE_BYTES + 10}", PIECE_BYTES - 10, PIECE_BYTES + 11),
    ],
)
def test_a_range_is_a_slice(http: httpx.Client, whole: bytes, asked: str, low: int, high: int | None) -> None:
    reply = http.get(URL, headers={"Range": asked})
    expected = whole[low:high]
    assert (reply.status_code, reply.content) == (206, expected)
    start = low % len(whole)
    assert reply.headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/{len(whole)}"
    assert reply.headers["content-length"] == str(len(expected))


@pytest.mark.parametrize(
    "asked", ["bytes=9-5", "bytes=a-b", "bytes=0-1,5-6", "lines=0-1", "bytes", "", "bytes=-", "bytes=" + "9" * 30 + "-"]
)
def test_a_range_that_says_nothing_is_ignored(http: httpx.Client, whole: bytes, asked: str) -> None:
    reply = http.get(URL, headers={"Range": asked})
    assert (reply.status_code, reply.content) == (200, whole)
    assert reply.headers["accept-ranges"] == "bytes"


def test_a_range_past_the_end_is_a_problem(http: httpx.Client, whole: bytes) -> None:
    for asked in (f"bytes={len(whole)}-", f"bytes={len(whole) + 5}-{len(whole) + 9}", "bytes=-0"):
        reply = http.get(URL, headers={"Range": asked})
        assert (reply.status_code, reply.json()["code"]) == (416, "range-not-satisfiable")
        assert reply.headers["content-range"] == f"bytes */{len(whole)}"
        assert str(len(whole)) in reply.json()["detail"]


def test_a_broken_download_goes_on_where_it_stopped(http: httpx.Client, whole: bytes) -> None:
    etag = http.head(URL).headers["etag"]
    first = http.get(URL, headers={"Range": "bytes=0-99999"})
    rest = http.get(URL, headers={"Range": "bytes=100000-", "If-Range": etag})
    assert rest.status_code == 206
    assert first.content + rest.content == whole
    of_other_data = http.get(URL, headers={"Range": "bytes=100000-", "If-Range": '"another"'})
    assert (of_other_data.status_code, of_other_data.content) == (200, whole)


def test_head_ignores_a_range(http: httpx.Client, whole: bytes) -> None:
    """RFC 9110 defines Range for GET alone; curl and wget ask HEAD for the whole size, and resume by it."""
    for asked in ("bytes=0-9", f"bytes={len(whole)}-"):
        reply = http.head(URL, headers={"Range": asked})
        assert (reply.status_code, reply.headers["content-length"], reply.content) == (200, str(len(whole)), b"")
        assert "content-range" not in reply.headers


def test_a_snapshot_removed_from_disk_is_still_served(
    run_server: Callable[..., Server], snapshot: Snapshot, tmp_path: Path
) -> None:
    copied = Path(copytree(snapshot.path, tmp_path / snapshot.path.name))
    server = run_server(snapshot=open_snapshot(copied))
    rmtree(copied)
    reply = httpx.get(f"{server.url}/v1/splits/dev/embeddings.npy")
    assert np.array_equal(np.load(io.BytesIO(reply.content)), snapshot.splits["dev"].embeddings)


def test_nothing_stays_open_after_a_download_was_broken_off(snapshot: Snapshot) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with serving(create_app(snapshot, ServeSettings())) as url:
        with httpx.Client(base_url=url) as http:
            http.get("/livez")
            with http.stream("GET", URL) as reply:
                next(reply.iter_raw(1000))  # and leave the rest
        running = descriptors()
    poll(lambda: descriptors() <= running - 2 * len(snapshot.splits))
