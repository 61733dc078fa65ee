"""A snapshot that was not written in huge pages is put into such while it is served: nobody sees a difference."""

import os
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from arrays import snapshot_of
from conftest import poll, serving

from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.rewritten import in_huge_pages, is_in_small_pages
from cpstream_service.snapshot.store import EMBEDDINGS, SMALL_PAGES, Snapshot, Split, open_snapshot


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    rng = np.random.default_rng(0)
    snapshot = snapshot_of(tmp_path / "snapshots", {"train": (rng.normal(size=(3000, 16)), rng.uniform(5, 25, 3000))})
    (snapshot.splits["train"].path / SMALL_PAGES).touch()
    return snapshot


def names(split: Split) -> list[str]:
    return sorted(path.name for path in split.path.iterdir() if not path.name.startswith("."))


def test_the_file_in_its_place_is_the_same(snapshot: Snapshot) -> None:
    split = snapshot.splits["train"]
    path, before = split.path / EMBEDDINGS, names(split)
    content, inode = path.read_bytes(), path.stat().st_ino
    huge = in_huge_pages(split, threading.Event())
    np.testing.assert_array_equal(huge, split.embeddings)
    assert (path.read_bytes(), path.stat().st_ino == inode) == (content, False)
    assert names(split) == [name for name in before if name != SMALL_PAGES]
    assert open_snapshot(snapshot.path).fingerprint == snapshot.fingerprint
    inode = path.stat().st_ino
    np.testing.assert_array_equal(in_huge_pages(split, threading.Event()), split.embeddings)  # as another worker does
    assert path.stat().st_ino == inode, "written once"


@pytest.mark.parametrize("why", ["stopped", "altered", "gone"])
def test_what_cannot_be_put_in_its_place_stays_as_it_is(snapshot: Snapshot, why: str) -> None:
    split = snapshot.splits["train"]
    path, stop = split.path / EMBEDDINGS, threading.Event()
    if why == "stopped":
        stop.set()
    elif why == "altered":
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")
    else:
        snapshot.path.rename(snapshot.path.with_name("gone"))
    content = path.read_bytes() if path.exists() else None
    before = names(split) if path.exists() else []
    with pytest.raises(OSError, match=f"{split.path}"):
        in_huge_pages(split, stop)
    if content is not None:
        assert is_in_small_pages(split)
        assert (path.read_bytes(), names(split)) == (content, before)


def test_streams_go_on_while_it_happens_and_after(snapshot: Snapshot) -> None:
    split = snapshot.splits["train"]
    with serving(create_app(snapshot, ServeSettings())) as served:
        url = f"{served}/v1/splits/train/batches?shuffle=true&seed=3"
        first = httpx.get(url).content
        poll(lambda: not is_in_small_pages(split))
        assert [httpx.get(url).content for _ in range(3)] == [first] * 3
        poll(lambda: f"{split.path / EMBEDDINGS}\n" in Path("/proc/self/maps").read_text())
        assert httpx.get(url).content == first
