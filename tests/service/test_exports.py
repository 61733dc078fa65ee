"""The float16 copy of a split: made once, beside the snapshot; a disk without room for it is a 503 that passes."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import serving
from data import make_rows, make_settings, write_dataset

from cpstream_service.app import create_app
from cpstream_service.errors import InvalidParameter
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot import half
from cpstream_service.snapshot.background import NICENESS
from cpstream_service.snapshot.half import half_precision
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Split

NAME, NOTE = "embeddings.float16.npy", "embeddings.float16.json"


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return load(make_settings(write_dataset(tmp_path / "source", {"train": make_rows(50)}))).snapshot.splits["train"]


def test_it_is_made_once_and_shared(split: Split) -> None:
    first = half_precision(split)
    np.testing.assert_array_equal(first, split.embeddings.astype(np.float16))
    np.testing.assert_array_equal(np.load(split.path / NAME), first)
    made = (split.path / NAME).stat()
    np.testing.assert_array_equal(half_precision(split), first)
    again = (split.path / NAME).stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert sorted(path.name for path in split.path.glob("*float16*")) == [".embeddings.float16.lock", NOTE, NAME]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities of their own")
def test_copies_are_made_at_a_low_priority(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a trainer on few processors, they would take a third of its speed."""

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    seen, before, allocate = [], priority(), half.allocate
    monkeypatch.setattr(half, "allocate", lambda *args: seen.append(priority()) or allocate(*args))  # type: ignore[func-returns-value]
    half_precision(split)
    assert seen == [NICENESS]
    assert priority() == before


@pytest.mark.parametrize("harm", ["flip", "cut", "no note", "other note", "left half done"])
def test_a_damaged_copy_is_made_anew(harm: str, split: Split) -> None:
    expected = np.array(half_precision(split))
    content = bytearray((split.path / NAME).read_bytes())
    (split.path / NAME).unlink()
    match harm:
        case "flip":
            content[300] ^= 1
        case "cut":
            del content[-10:]
        case "no note":
            (split.path / NOTE).unlink()
        case "other note":
            (split.path / NOTE).write_text("[]")
        case _:
            (split.path / "embeddings.float16.writing").write_bytes(content[:100])
    (split.path / NAME).write_bytes(content)
    np.testing.assert_array_equal(half_precision(split), expected)
    np.testing.assert_array_equal(np.load(split.path / NAME), expected)


def test_what_float16_cannot_hold_leaves_nothing_behind(split: Split) -> None:
    large = replace(split, embeddings=split.embeddings * np.float32(1e6))
    with pytest.raises(InvalidParameter, match="some exceed 65504; ask for float32"):
        half_precision(large)
    assert list(split.path.glob("embeddings.float16*")) == []


def test_a_folder_that_cannot_be_written_to_is_no_hindrance(split: Split) -> None:
    if os.getuid() == 0:
        attributes = subprocess.run(["chattr", "+i", str(split.path)], capture_output=True)
        if attributes.returncode:
            pytest.skip(f"the file system keeps no folder from root: {attributes.stderr.decode().strip()}")
    else:
        split.path.chmod(0o555)
    try:
        np.testing.assert_array_equal(half_precision(split), split.embeddings.astype(np.float16))
        assert list(split.path.glob("*float16*")) == []
    finally:
        subprocess.run(["chattr", "-i", str(split.path)], capture_output=True)
        split.path.chmod(0o755)


def test_a_full_disk_is_a_503_until_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_dataset(tmp_path / "source", {"train": make_rows(2000)})
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        snapshot = load(make_settings(source, snapshot_dir=disk)).snapshot
        filler = disk / "filler"
        filler.write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))
        with serving(create_app(snapshot, ServeSettings())) as url:
            ask = f"{url}/v1/splits/train/batches?dtype=float16&limit=1"
            for _ in range(2):
                refused = httpx.get(ask)
                assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "storage-failed", "1")
                assert str(disk) not in refused.text
            assert (
                "0 MB are needed and 0 MB are free; free space beside the snapshot (--snapshot-dir), or ask for float32"
                in caplog.text
            )
            assert str(disk) in caplog.text
            filler.unlink()
            assert httpx.get(ask).status_code == 200
        del snapshot
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
