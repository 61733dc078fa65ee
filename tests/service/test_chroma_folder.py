"""Chroma folders: reading one changes nothing in it, whatever version made it and whoever writes to it meanwhile."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import chromadb
import numpy as np
import pytest
from conftest import poll
from data import make_settings, write_cps

from cpstream_service.cli.check import check
from cpstream_service.dataset import RegressionEmbeddingsDataset
from cpstream_service.errors import DataError, SourceUnavailableError
from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.sources.chroma import folder as chroma_folder
from cpstream_service.sources.chroma.folder import DATABASE_FILE
from cpstream_service.sources.chroma.read import read_chroma

OLD = Path(__file__).parents[1] / "files" / "chroma-0.4.14.zip"
"""A folder made by chromadb 0.4.14 with this program:

    collection = chromadb.PersistentClient("chroma-0.4.14").create_collection(
        "speed_embeddings", metadata={"hnsw:batch_size": 5, "hnsw:sync_threshold": 10}
    )
    for low in range(0, 32, 8):
        rows = range(low, low + 8)
        collection.add(
            ids=[f"id{i}" for i in rows],
            embeddings=[[i + 0.5, -i, 1, i * i] for i in rows],
            metadatas=[{"split": "train" if i % 4 else "dev", "file_path": f"audio/{i:02d}.wav"} for i in rows],
        )
"""
VECTORS = np.array([[i + 0.5, -i, 1, i * i] for i in range(32)], np.float32)


def old_folder(path: Path) -> Path:
    with zipfile.ZipFile(OLD) as archive:
        archive.extractall(path)
    return path / "chroma-0.4.14"


def new_folder(path: Path) -> Path:
    """The same by the chromadb of today, its index written out."""
    client = chromadb.PersistentClient(str(path / "chroma"), chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection(
        "speed_embeddings", embedding_function=None, configuration={"hnsw": {"sync_threshold": 10}}
    )
    collection.add(
        ids=[f"id{i}" for i in range(32)],
        embeddings=list(VECTORS),
        metadatas=[{"split": "train" if i % 4 else "dev", "file_path": f"audio/{i:02d}.wav"} for i in range(32)],
    )
    client.close()  # type: ignore[attr-defined]
    return path / "chroma"


def settings_of(folder: Path) -> DataSettings:
    for split, rest in (("train", (1, 2, 3)), ("dev", (0,))):
        write_cps(folder.parent / f"{split}.csv", [(f"audio/{i:02d}.wav", 5 + i) for i in range(32) if i % 4 in rest])
    return make_settings(folder, source_type="chromadb", cps_csv=str(folder.parent / "{split}.csv"))


def state(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


@pytest.mark.parametrize("make", [old_folder, new_folder])
def test_reading_changes_nothing(make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path)
    settings = settings_of(folder)
    for path in (*folder.rglob("*"), folder):  # as a mount that is read-only; root may write nevertheless
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    before = state(folder)
    loaded = load(settings).snapshot
    np.testing.assert_array_equal(loaded.splits["dev"].embeddings, VECTORS[::4])
    np.testing.assert_array_equal(loaded.splits["train"].embeddings, VECTORS[np.arange(32) % 4 > 0])
    assert check(data=settings) == 0
    assert len(RegressionEmbeddingsDataset(folder, "dev", "chromadb", settings.cps_csv, progress=False)) == 8
    assert state(folder) == before
    assert not [path.name for path in settings.snapshot_dir.iterdir() if "chroma" in path.name]
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)


@pytest.mark.parametrize("missing", ["", "index_metadata.pickle", "data_level0.bin", "header.bin", "length.bin", "link_lists.bin"])
def test_missing_index_files_are_named(tmp_path: Path, missing: str) -> None:
    folder = new_folder(tmp_path)
    (index,) = (path for path in folder.iterdir() if path.is_dir())
    if missing:
        (index / missing).unlink()
    else:
        shutil.rmtree(index)  # only chroma.sqlite3 was copied
    with pytest.raises(DataError) as raised:
        load(settings_of(folder))
    name = missing or "index_metadata.pickle"
    assert str(raised.value).startswith(
        f"{folder}: the index of collection 'speed_embeddings' is not whole: {index.name}/{name} is missing; copy the database's"
    )


def test_an_index_of_another_collection_does_not_matter(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    (index,) = (path for path in folder.iterdir() if path.is_dir())
    shutil.rmtree(index)
    with pytest.raises(DataError, match="there is no collection 'other'; collections: 'speed_embeddings'; set --collection-name"):
        load(replace(settings_of(folder), collection_name="other"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database " * 500, "chroma.sqlite3: the database is damaged (file is not a database); copy the database's folder"),
        (b"", "chroma: there is no collection 'speed_embeddings'; it is empty; fill it: cpstream ingest"),
        (None, "the database is damaged (database disk image is malformed)"),
    ],
)
def test_a_damaged_database(tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = new_folder(tmp_path)
    whole = (folder / DATABASE_FILE).read_bytes()
    (folder / DATABASE_FILE).write_bytes(whole[:40_000] if content is None else content)
    with pytest.raises(DataError) as raised:
        load(settings_of(folder))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_truncated_file_is_an_error_in_one_line_or_harmless(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    settings = settings_of(folder)
    said: list[str] = []
    expected = {name: split.embeddings.tobytes() for name, split in read_chroma(settings).items()}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for size in {0, len(whole) // 2, max(0, len(whole) - 1)} - {len(whole)}:
            path.write_bytes(whole[:size])
            try:
                read = {name: split.embeddings.tobytes() for name, split in read_chroma(settings).items()}
            except DataError as error:
                read = {}
                said.append(str(error))
            assert read in ({}, expected), f"{path} at {size}"
        path.write_bytes(whole)
    assert len(said) > 5
    assert not any("\n" in text for text in said)


def test_where_the_copy_cannot_be(tmp_path: Path) -> None:
    settings = settings_of(new_folder(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=rf"is read from a copy in {tmp_path}/file/snapshots: .* or set --snapshot-dir"):
        read_chroma(replace(settings, snapshot_dir=tmp_path / "file" / "snapshots"))


def test_copies_of_killed_processes_are_removed_and_others_left(tmp_path: Path) -> None:
    settings = settings_of(new_folder(tmp_path))
    for name in (".chroma-killed", ".chroma-alive"):
        (settings.snapshot_dir / name).mkdir(parents=True)
    (settings.snapshot_dir / ".chroma-link").symlink_to(tmp_path / "chroma")
    alive = os.open(settings.snapshot_dir / ".chroma-alive", os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    read_chroma(settings)
    os.close(alive)
    assert sorted(path.name for path in settings.snapshot_dir.iterdir()) == [".chroma-alive", ".chroma-link"]
    assert (tmp_path / "chroma" / DATABASE_FILE).exists()


# Beside a writer

WRITER = """
import sys, chromadb
collection = chromadb.PersistentClient(sys.argv[1], chromadb.Settings(anonymized_telemetry=False)).get_collection(
    "speed_embeddings", embedding_function=None
)
low = 32
while True:
    rows = range(low, low + 8)
    collection.add(
        ids=[f"id{i}" for i in rows],
        embeddings=[[i + 0.5, -i, 1, i * i] for i in rows],
        metadatas=[{"split": "train" if i % 4 else "dev", "file_path": f"audio/{i:02d}.wav"} for i in rows],
    )
    low += 8
    print(low, flush=True)
    if len(sys.argv) > 2:
        sys.stdin.readline()
"""


def test_beside_a_writer_that_rests_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(new_folder(tmp_path))
    monkeypatch.setattr(chroma_folder, "PAUSE_S", 0)
    command = [sys.executable, "-c", WRITER, str(settings.source_path), "rests"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for _ in range(5):
            written = int(writer.stdout.readline())
            read = read_chroma(settings)
            found = {
                path: vector for split in read.values() for path, vector in zip(split.file_paths, split.embeddings, strict=True)
            }
            assert sorted(found) == sorted(f"audio/{i:02d}.wav" for i in range(written))
            for path, vector in found.items():
                i = int(Path(path).stem)
                assert vector.tolist() == [i + 0.5, -i, 1, i * i]
            writer.stdin.write("\n")
            writer.stdin.flush()
        writer.kill()


def test_beside_a_writer_that_never_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(new_folder(tmp_path))
    first = load(settings)
    monkeypatch.setattr(chroma_folder, "PAUSE_S", 0)
    copied = chroma_folder._copy

    def slow(folder: Path, copy: Path, collection: str) -> None:
        """Copy as from a disk so slow that something is written meanwhile."""
        copied(folder, copy, collection)
        before = (folder / DATABASE_FILE).stat().st_mtime_ns
        poll(lambda: (folder / DATABASE_FILE).stat().st_mtime_ns != before)

    monkeypatch.setattr(chroma_folder, "_copy", slow)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(settings.source_path)], stdout=subprocess.DEVNULL) as writer:
        with pytest.raises(SourceUnavailableError, match="it changed while it was read; start again after the writing"):
            read_chroma(settings)
        stale = load(settings)
        writer.kill()
    assert stale.snapshot.fingerprint == first.snapshot.fingerprint
    assert "changed while it was read" in str(stale.stale_reason)
