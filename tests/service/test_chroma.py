import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import bound
from data import chroma_port, cps_of, make_rows, make_settings, running_chroma, write_cps, write_dataset  # noqa: F401

from cpstream_service.errors import AlignmentError, DataError, SourceUnavailableError
from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.sources.chroma import pages
from cpstream_service.sources.chroma.client import open_client
from cpstream_service.sources.chroma.read import read_chroma

ROWS = {"train": make_rows(30), "dev": make_rows(7, seed=1)}
Fill = Callable[..., DataSettings]


def records(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Arguments of `Collection.add`, the splits mixed and in another order than the source's."""
    flat = [(name, row) for name in rows for row in rows[name]]
    flat = flat[::-2] + flat[-2::-2]
    return {
        "ids": [f"id{i}" for i in range(len(flat))],
        "embeddings": [row["embedding"] for _, row in flat],
        "metadatas": [{"split": name, "file_path": row["file_path"]} for name, row in flat],
    }


@pytest.fixture(params=["folder", "server"])
def fill(request: pytest.FixtureRequest, tmp_path: Path) -> Fill:
    """fill(records) -> settings of a collection with these, in a folder or on a server."""
    name = f"c{abs(hash(request.node.nodeid))}"

    def fill_it(added: dict[str, Any], **changes: Any) -> DataSettings:
        if request.param == "folder":
            settings = make_settings(tmp_path / "chroma", source_type="chromadb", collection_name=name)
        else:
            port = request.getfixturevalue("chroma_port")
            settings = make_settings(tmp_path / "source", source_type="chromadb", collection_name=name)
            settings = replace(settings, source_path=None, chroma_host="127.0.0.1", chroma_port=port)
        with open_client(settings, create=True) as client:
            collection = client.get_or_create_collection(name, embedding_function=None)
            if added["ids"]:
                collection.add(**added)
        return replace(settings, cps_csv=str(tmp_path / "tables" / "{split}_cps.csv"), **changes)

    (tmp_path / "tables").mkdir()
    for split, rows in ROWS.items():
        write_cps(tmp_path / "tables" / f"{split}_cps.csv", cps_of(rows))
    return fill_it


def test_the_same_data_has_the_same_fingerprint_wherever_it_lies(fill: Fill, tmp_path: Path) -> None:
    npy = load(make_settings(write_dataset(tmp_path / "npy", ROWS))).snapshot
    settings = fill(records(ROWS))
    loaded = load(settings)
    assert loaded.snapshot.fingerprint == npy.fingerprint
    assert {name: split.fingerprint for name, split in loaded.snapshot.splits.items()} == {
        name: split.fingerprint for name, split in npy.splits.items()
    }
    assert loaded.snapshot.reports == npy.reports
    assert loaded.snapshot.splits["dev"].info.source == f"chromadb, collection {settings.collection_name}"
    again = load(settings)
    assert again.notes[0].endswith("is up to date")
    assert load(replace(settings, splits=("dev",))).snapshot.splits["dev"].fingerprint == npy.splits["dev"].fingerprint


@pytest.mark.parametrize("page_rows", [1, 7, 30, 37, 38])
def test_pages(fill: Fill, page_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", page_rows)
    settings = fill(records(ROWS))
    for splits in ((), ("dev",), ("train", "dev")):
        read = read_chroma(replace(settings, splits=splits))
        assert set(read) == (set(splits) or {"train", "dev"})
        for name, split in read.items():
            order = np.argsort(split.file_paths)
            assert [split.file_paths[i] for i in order] == [row["file_path"] for row in ROWS[name]]
            np.testing.assert_array_equal(split.embeddings[order], [row["embedding"] for row in ROWS[name]])
            assert split.embeddings.dtype == np.float32


def test_records_without_a_path(fill: Fill) -> None:
    added = records(ROWS)
    at = [i for i, metadata in enumerate(added["metadatas"]) if metadata["split"] == "dev"]
    del added["metadatas"][at[0]]["file_path"]
    added["metadatas"][at[1]]["file_path"] = 3
    added["metadatas"][at[2]] = {"other": 1}
    settings = fill(added)
    dev = read_chroma(settings)["dev"]
    assert len(dev.file_paths) == len(dev.embeddings) == 4
    assert sorted(map(str, dev.problems)) == sorted(
        [
            f"record 'id{at[0]}': it has no metadata 'file_path'",
            f"record 'id{at[1]}': file_path is int, not a string",
            f"record 'id{at[2]}': it has no metadata 'split'",
        ]
    )


def test_no_record_with_a_path(fill: Fill) -> None:
    added = records({"train": ROWS["train"]})
    for metadata in added["metadatas"]:
        del metadata["file_path"]
    with pytest.raises(
        AlignmentError, match=r"split 'train' aligns nothing: .*30 unreadable-row \(first: record 'id0': it has no metadata"
    ):
        load(fill(added))


def test_missing_collection_and_split(fill: Fill) -> None:
    settings = fill(records(ROWS))
    with pytest.raises(
        DataError, match=rf"there is no collection 'nope'; collections: .*{settings.collection_name}.*; set --collection-name"
    ):
        load(replace(settings, collection_name="nope"))
    with pytest.raises(DataError, match="has no record of split 'nope'; it has: 'dev', 'train'; set --splits to some of those"):
        read_chroma(replace(settings, splits=("train", "nope")))


def test_records_without_a_split(fill: Fill) -> None:
    added = records({"train": ROWS["train"]})
    for metadata in added["metadatas"]:
        metadata["part"] = metadata.pop("split")
    with pytest.raises(DataError, match="has no record of any split; its records need metadata 'split'"):
        load(fill(added))
    with pytest.raises(DataError, match="its records need metadata 'split'"):
        load(fill({"ids": []}, splits=("train",)))


def test_records_of_no_split_are_counted(fill: Fill) -> None:
    added = records(ROWS)
    at = [i for i, metadata in enumerate(added["metadatas"]) if metadata["split"] == "train"]
    del added["metadatas"][at[0]]["split"]
    added["metadatas"][at[1]]["split"] = 3
    added["metadatas"][at[2]]["split"] = ""
    added["metadatas"][at[3]] = None
    settings = fill(added)
    for splits in ((), ("train", "dev"), ("train",)):
        read = read_chroma(replace(settings, splits=splits))
        by_name = {name: [str(problem) for problem in split.problems] for name, split in read.items()}
        first = next(iter(read))
        assert sorted(by_name.pop(first)) == sorted(
            [
                f"record 'id{at[0]}' ({added['metadatas'][at[0]]['file_path']}): it has no metadata 'split'",
                f"record 'id{at[1]}' ({added['metadatas'][at[1]]['file_path']}): its metadata 'split' is int, not a string",
                f"record 'id{at[2]}' ({added['metadatas'][at[2]]['file_path']}): its metadata 'split' is empty",
                f"record 'id{at[3]}': it has no metadata 'split'",
            ]
        )
        assert not any(by_name.values())
        assert len(read["train"].file_paths) == 26
    reports = load(settings).snapshot.reports.values()
    dropped = [(entry.reason, entry.count) for report in reports for entry in report.dropped if entry.side == "embedding"]
    assert dropped == [("no-split", 4)]
    with pytest.raises(AlignmentError, match="4 no-split"):
        load(replace(settings, strict=True))


def test_a_folder_that_holds_no_database(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "chroma", source_type="chromadb")
    with pytest.raises(
        DataError, match=r"chroma: there is no such folder; set --source-path to the folder of one, or make it: cpstream ingest"
    ):
        load(settings)
    (tmp_path / "chroma").mkdir()
    with pytest.raises(DataError, match=r"chroma: the folder holds no Chroma database \(chroma.sqlite3\)"):
        load(settings)
    assert list((tmp_path / "chroma").iterdir()) == []
    with pytest.raises(DataError, match="no Chroma database named: set --source-path"):
        load(replace(settings, source_path=None))


# A server that is not there


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Port of a server that closes every connection."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=_close_connections, args=(sock,))
        thread.start()
        yield sock.getsockname()[1]
        sock.shutdown(socket.SHUT_RDWR)
        thread.join()


def _close_connections(sock: socket.socket) -> None:
    while True:
        try:
            sock.accept()[0].close()
        except OSError:
            return


def test_no_server(tmp_path: Path, silent_server: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = taken.getsockname()[1]
        settings = make_settings(tmp_path / "x", source_type="chromadb", chroma_host="127.0.0.1", chroma_port=port)
        with pytest.raises(
            SourceUnavailableError, match=rf"no Chroma server answers at http://127.0.0.1:{port} .* set --chroma-host"
        ):
            load(settings)
    with pytest.raises(SourceUnavailableError, match="no Chroma server answers at"):
        load(replace(settings, chroma_port=silent_server))
    with pytest.raises(SourceUnavailableError, match="no Chroma server answers at"):
        load(replace(settings, chroma_host="no host"))


def test_the_last_good_snapshot_serves_while_the_server_is_away(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", ROWS)
    with running_chroma(tmp_path / "chroma") as port:
        settings = make_settings(source, source_type="chromadb", chroma_host="127.0.0.1", chroma_port=port)
        with open_client(settings) as client:
            collection = client.create_collection("speed_embeddings", embedding_function=None)
            collection.add(**records(ROWS))
            first = load(settings)
            assert first.stale_reason is None
            collection.add(ids=["late"], embeddings=[[1.0] * 8], metadatas=[{"split": "dev", "file_path": "late.wav"}])
            write_cps(source / "dev_cps.csv", [*cps_of(ROWS["dev"]), ("late.wav", 9)])
            second = load(settings)
            assert second.snapshot.splits["dev"].info.num_samples == 8
            old = first.snapshot.path
    del first  # nobody has it open any more
    with bound(port):  # so that no other process listens there
        stale = load(settings)
        assert stale.stale_reason is not None
        assert f"no Chroma server answers at http://127.0.0.1:{port}" in stale.stale_reason
        assert "serving the snapshot of 20" in stale.stale_reason
        assert stale.snapshot.fingerprint == second.snapshot.fingerprint
        assert not old.exists()
        with pytest.raises(SourceUnavailableError):
            load(replace(settings, collection_name="other"))
        (second.snapshot.path / "dev" / "cps.npy").write_bytes(b"")
        with pytest.raises(SourceUnavailableError):
            load(settings)
