import errno
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pytest
from data import cps_of, make_rows, write_cps, write_npy

from cpstream_service.align.align import AlignedSplit, align
from cpstream_service.snapshot.locks import remove_outdated, writing
from cpstream_service.snapshot.store import (
    CPS,
    EMBEDDINGS,
    FILE_PATHS,
    MANIFEST,
    SnapshotInvalid,
    open_snapshot,
    write_snapshot,
)
from cpstream_service.snapshot.synced import synced, written_back
from cpstream_service.sources.cps_table import read_cps_table
from cpstream_service.sources.npy import read_npy


@pytest.fixture
def splits(tmp_path: Path) -> list[AlignedSplit]:
    rows = {"train": make_rows(20), "dev": make_rows(6, seed=1, folder="größe")}
    source = read_npy(write_npy(tmp_path / "source", rows))
    tables = {name: write_cps(tmp_path / f"{name}.csv", cps_of(rows[name])) for name in rows}
    return [align(source[name], read_cps_table(tables[name])) for name in rows]


def write(folder: Path, splits: list[AlignedSplit], key: str = "key", identity: str = "same") -> Path:
    with writing(folder, key):
        return write_snapshot(folder, key, splits, source="npy", identity=identity)


def test_what_is_written_is_what_opens(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    path = write(tmp_path / "snapshots", splits)
    snapshot = open_snapshot(path)
    assert list(snapshot.splits) == ["train", "dev"]
    for aligned in splits:
        split = snapshot.splits[aligned.name]
        np.testing.assert_array_equal(split.embeddings, aligned.embeddings)
        np.testing.assert_array_equal(split.cps, aligned.cps)
        assert isinstance(split.file_paths, pa.StringArray)
        assert split.file_paths.to_pylist() == aligned.file_paths
        assert split.report == aligned.report == snapshot.reports[aligned.name]
        assert (split.info.num_samples, split.info.embedding_dim, split.info.dtype) == (len(aligned), 8, "float32")
        assert split.info.cps.mean == pytest.approx(float(np.mean(aligned.cps, dtype=np.float64)))
        assert split.info.cps.std == pytest.approx(float(np.std(aligned.cps, dtype=np.float64)))
        np.testing.assert_array_equal(np.load(split.path / EMBEDDINGS), aligned.embeddings)
        for array in (split.embeddings, split.cps):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["key"]


def test_the_fingerprint_is_of_the_content(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    train, dev = splits
    first = open_snapshot(write(tmp_path / "1", splits))
    same = open_snapshot(write(tmp_path / "2", [dev, train], "other key", "other identity"))
    assert same.fingerprint == first.fingerprint
    assert len(first.fingerprint) == 32
    changed_source = np.array(train.source)
    changed_source[3, 2] = np.nextafter(changed_source[3, 2], np.inf)
    changed_cps = train.cps.copy()
    changed_cps[3] = np.nextafter(changed_cps[3], np.float32(np.inf))
    changes = [
        AlignedSplit("train", train.file_paths, train.cps, changed_source, train.rows, train.report),
        AlignedSplit("train", train.file_paths, changed_cps, train.source, train.rows, train.report),
        AlignedSplit("train", [*train.file_paths[:-1], "z.wav"], train.cps, train.source, train.rows, train.report),
    ]
    seen = {first.splits["train"].fingerprint}
    for i, change in enumerate(changes):
        seen.add(open_snapshot(write(tmp_path / f"change{i}", [change, dev])).splits["train"].fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["a/b", "..", ".", ".hidden", "größe", "a b", "%2E", "x" * 60])
def test_any_split_name_is_a_folder_of_its_own(tmp_path: Path, splits: list[AlignedSplit], name: str) -> None:
    train, _ = splits
    named = AlignedSplit(name, train.file_paths, train.cps, train.source, train.rows, train.report)
    path = write(tmp_path / "snapshots", [named, train])
    snapshot = open_snapshot(path)
    assert set(snapshot.splits) == {name, "train"}
    assert snapshot.splits[name].path.parent == path


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage", [flip_a_byte, cut, lambda path: os.truncate(path, 0), Path.unlink], ids=["flip", "cut", "empty", "gone"]
)
@pytest.mark.parametrize("name", [f"train/{EMBEDDINGS}", f"dev/{CPS}", f"train/{FILE_PATHS}", MANIFEST])
def test_damage_is_found(tmp_path: Path, splits: list[AlignedSplit], name: str, damage: object) -> None:
    path = write(tmp_path / "snapshots", splits)
    damage(path / name)  # type: ignore[operator]
    with pytest.raises(SnapshotInvalid, match="key"):
        open_snapshot(path)


def test_files_of_another_snapshot_are_found(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    path = write(tmp_path / "1", splits)
    train, dev = splits
    other = write(
        tmp_path / "2", [AlignedSplit("train", train.file_paths, train.cps + 1, train.source, train.rows, train.report), dev]
    )
    shutil.copy(other / "train" / CPS, path / "train" / CPS)
    with pytest.raises(SnapshotInvalid, match="altered"):
        open_snapshot(path)
    shutil.copytree(other / "train", path / "train", dirs_exist_ok=True)
    with pytest.raises(SnapshotInvalid, match="altered"):
        open_snapshot(path)


def test_an_edited_manifest_is_found(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    path = write(tmp_path / "snapshots", splits)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["snapshot"]["splits"][0]["report"]["num_cps"] += 1
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SnapshotInvalid, match="manifest"):
        open_snapshot(path)


def test_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(SnapshotInvalid, match="no manifest"):
        open_snapshot(tmp_path / "none")


def test_an_open_snapshot_outlives_its_replacement(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    path = write(tmp_path / "snapshots", splits)
    old = open_snapshot(path)
    (path / "train" / CPS).unlink()
    write(tmp_path / "snapshots", splits)
    new = open_snapshot(path)
    assert new.fingerprint == old.fingerprint
    np.testing.assert_array_equal(old.splits["train"].embeddings, new.splits["train"].embeddings)
    assert old.splits["train"].file_paths.equals(new.splits["train"].file_paths)


def test_outdated_snapshots_are_removed_unless_open(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    folder = tmp_path / "snapshots"
    kept = write(folder, splits, "kept")
    write(folder, splits, "outdated")
    write(folder, splits, "other", identity="other")
    in_use = open_snapshot(write(folder, splits, "open"), verify=False)
    remove_outdated(folder, "same", kept)
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["kept", "open", "other"]
    assert open_snapshot(in_use.path).fingerprint == in_use.fingerprint
    del in_use
    remove_outdated(folder, "same", kept)
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["kept", "other"]


def test_leftovers_of_killed_writers_are_removed_but_not_of_live_ones(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    folder = tmp_path / "snapshots"
    kept = write(folder, splits)
    for name in (".writing-dead-0001", ".writing-live-0002", ".writing-key-0003"):
        (folder / name / "train").mkdir(parents=True)
    for key in ("dead", "live"):
        (folder / f".lock-{key}").touch()
    with (folder / ".lock-live").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_outdated(folder, "same", kept)
        assert sorted(path.name for path in folder.glob(".writing-*")) == [".writing-live-0002"]
    with writing(folder, "live"):
        assert list(folder.glob(".writing-*")) == []


def test_locks_are_taken_away_and_never_through_a_link(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    folder = tmp_path / "snapshots"
    write(folder, splits)
    assert [path.name for path in folder.iterdir()] == ["key"]
    target = tmp_path / "target"
    target.write_text("precious")
    (folder / ".lock-other").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        write(folder, splits, "other")
    assert target.read_text() == "precious"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            write(tmp_path, splits)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_paths_that_are_said_to_be_null_are_damage(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    """Their bytes and offsets, which the hash is of, are what was written."""
    path = write(tmp_path / "snapshots", splits)
    (file, *_) = sorted(path.rglob("file_paths.arrow"))
    with pa.ipc.open_file(file.read_bytes()) as reader:
        paths = reader.get_batch(0).column(0)
    masked = pa.StringArray.from_buffers(len(paths), *paths.buffers()[1:], pa.py_buffer(b"\xfe" + b"\xff" * len(paths)), 1)
    batch = pa.record_batch([masked], names=["file_path"])
    file.unlink()
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(SnapshotInvalid, match="its paths are 1 nulls of string"):
        open_snapshot(path)


def test_no_damage_is_more_than_invalid(tmp_path: Path, splits: list[AlignedSplit]) -> None:
    """Bytes flipped, cut off, repeated or added anywhere: it opens as it was, or is to be rebuilt."""
    path = write(tmp_path / "snapshots", splits)
    fingerprint = open_snapshot(path).fingerprint
    files = {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        file = list(files)[rng.integers(len(files))]
        content = bytearray(files[file])
        at = int(rng.integers(len(content) // 4 if rng.random() < 0.5 else len(content)))  # half of them near the beginning
        match rng.integers(4):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                del content[at:]
            case 2:
                content[at:at] = content[at : at + 100]
            case _:
                content[at : at + 8] = rng.bytes(8)
        file.unlink()  # what is mapped of the old one stays as it is
        file.write_bytes(content)
        try:
            assert open_snapshot(path).fingerprint == fingerprint
        except SnapshotInvalid:
            found += 1
        file.write_bytes(files[file])
    assert found > 200
    assert open_snapshot(path).fingerprint == fingerprint


def test_a_disk_that_fails_while_a_file_grows_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel tells whoever syncs early, it does not tell again."""
    told = Event()

    def failing(descriptor: int) -> None:
        told.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write() -> None:
        with synced(tmp_path / "file") as file, written_back(file):
            file.write(b"1")
            assert told.wait(60)

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write()
