"""data.parquet: whole, of the same bytes wherever it is made, in ranges, and given up where the disk has no room for another."""

import hashlib
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Server, serving
from data import make_rows, make_settings, write_dataset

from cpstream_client.contract import wire
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot import parquet
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.parquet import open_parquet
from cpstream_service.snapshot.store import Snapshot, Split, open_snapshot

URL = "/v1/splits/train/data.parquet"


def content(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts small disks, each of so many KB."""
    made: list[Path] = []

    def mount(kilobytes: int) -> Path:
        path = tmp_path / f"disk{len(made)}"
        path.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)], capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_it_holds_the_split(server: Server) -> None:
    train = server.snapshot.splits["train"]
    reply = httpx.get(server.url + URL)
    assert reply.headers["content-type"] == wire.PARQUET
    assert reply.headers["content-disposition"] == 'attachment; filename="train-data.parquet"'
    table = pq.read_table(io.BytesIO(reply.content))
    assert table.column_names == ["index", "file_path", "cps", "embedding"]
    assert table["index"].to_pylist() == list(range(1800))
    assert table["file_path"].to_pylist() == train.file_paths.to_pylist()
    assert np.array_equal(table["cps"].to_numpy(), train.cps)
    embeddings = table["embedding"].combine_chunks().flatten().to_numpy().reshape(1800, -1)
    assert embeddings.tobytes() == train.embeddings.tobytes()
    assert table.schema.metadata[b"fingerprint"].decode() == train.fingerprint


def test_parts_add_up_and_a_current_copy_is_not_sent_again(server: Server) -> None:
    whole = httpx.get(server.url + URL)
    assert httpx.head(server.url + URL).headers["content-length"] == str(len(whole.content))
    half = len(whole.content) // 2
    parts = [httpx.get(server.url + URL, headers={"Range": part}) for part in (f"bytes=0-{half - 1}", f"bytes={half}-")]
    assert [part.status_code for part in parts] == [206, 206]
    assert b"".join(part.content for part in parts) == whole.content
    assert httpx.get(server.url + URL, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304


def test_several_row_groups_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MOST_ROWS", 7)
    split = load(make_settings(write_dataset(tmp_path / "source", {"train": make_rows(50)}))).snapshot.splits["train"]
    file = pq.ParquetFile(io.BytesIO(content(open_parquet(split))))
    assert file.metadata.num_row_groups == 8
    assert np.array_equal(file.read(["cps"])["cps"].to_numpy(), split.cps)


def test_every_replica_sends_the_same_bytes_and_makes_them_once(snapshot: Snapshot, tmp_path: Path) -> None:
    etags, hashes, made = set(), set(), []
    for replica in ("one", "other"):
        copied = shutil.copytree(snapshot.path, tmp_path / replica / snapshot.path.name)
        opened = open_snapshot(copied)
        (copied / "train" / parquet.NAME).unlink(missing_ok=True)
        for _ in range(2):  # after a restart, too
            with serving(create_app(opened, ServeSettings())) as url:
                reply = httpx.get(url + URL)
                etags.add(reply.headers["etag"])
                hashes.add(hashlib.sha256(reply.content).digest())
            made.append((opened.splits["train"].path / parquet.NAME).stat().st_ino)
        del opened
    assert (len(etags), len(hashes)) == (1, 1)
    assert (made[0], made[2]) == (made[1], made[3])


def test_another_version_of_the_software_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load(make_settings(write_dataset(tmp_path / "source", {"train": make_rows(50)}))).snapshot.splits["train"]
    os.close(open_parquet(split))
    before = (split.path / parquet.NAME).stat().st_ino
    monkeypatch.setattr(parquet, "MADE_BY", {**parquet.MADE_BY, "pyarrow": "99"})
    os.close(open_parquet(split))
    assert (split.path / parquet.NAME).stat().st_ino != before


def test_room_for_one_is_made_by_giving_up_another(disk: Callable[[int], Path], tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", {"train": make_rows(2000), "dev": make_rows(2000)})
    folder = disk(1024)
    snapshot = load(make_settings(source, snapshot_dir=folder)).snapshot
    train, dev = snapshot.splits["train"], snapshot.splits["dev"]
    size = len(content(open_parquet(train)))
    free = os.statvfs(folder).f_bavail * 4096
    filler = folder / "filler"
    filler.write_bytes(bytes(free - size // 2))
    assert len(content(open_parquet(dev))) > size // 2
    assert not (train.path / parquet.NAME).exists()
    assert len(content(open_parquet(train))) == size  # and back: it is made again
    assert [path.name for path in train.path.glob("*.writing")] == []


def test_no_room_at_all_is_a_503_until_there_is_some(
    disk: Callable[[int], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_dataset(tmp_path / "source", {"train": make_rows(2000)})
    folder = disk(256)
    snapshot = load(make_settings(source, snapshot_dir=folder)).snapshot
    filler = folder / "filler"
    filler.write_bytes(bytes(os.statvfs(folder).f_bavail * 4096))
    with serving(create_app(snapshot, ServeSettings())) as url:
        refused = httpx.get(url + URL)
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "storage-failed", "1")
        assert str(folder) not in refused.text
        assert f"free space beside the snapshot (--snapshot-dir), or take embeddings.npy: '{folder}" in caplog.text
        filler.unlink()
        assert httpx.get(url + URL).status_code == 200
    del snapshot


def test_batches_have_a_name_with_a_suffix(server: Server) -> None:
    query = "shuffle=true&seed=3&batch_size=64"
    one, other = (httpx.get(f"{server.url}/v1/splits/dev/{name}?{query}") for name in ("batches", "batches.arrows"))
    assert one.content == other.content
    assert one.headers["etag"] == other.headers["etag"]


def test_a_read_only_folder_is_no_hindrance(tmp_path: Path) -> None:
    split: Split = load(make_settings(write_dataset(tmp_path / "source", {"train": make_rows(50)}))).snapshot.splits["train"]
    if os.geteuid() == 0:
        mounted = subprocess.run(["mount", "--bind", "-o", "ro", str(split.path), str(split.path)], capture_output=True).returncode
        if mounted:
            pytest.skip("root writes everywhere, and cannot mount here")
    else:
        split.path.chmod(0o555)
    try:
        assert pq.read_table(io.BytesIO(content(open_parquet(split)))).num_rows == 50
        assert not (split.path / parquet.NAME).exists()
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(split.path)], check=True)
        else:
            split.path.chmod(0o755)
