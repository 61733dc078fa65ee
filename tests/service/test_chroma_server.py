"""Chroma servers as they are met: hosted ones that cap what they give, gateways in front, and writers at work meanwhile."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromaproxy import chroma_proxy
from data import chroma_port, cps_of, make_rows, make_settings, write_cps  # noqa: F401

from cpstream_service.cli.ingest import ingest
from cpstream_service.errors import SourceUnavailableError
from cpstream_service.settings import ChromaSettings, DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.sources.chroma import pages
from cpstream_service.sources.chroma.client import open_client
from cpstream_service.sources.chroma.read import read_chroma

ROWS = make_rows(650)


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> DataSettings:
    """Settings of a collection of 650 records of the split train, on a real server."""
    port = request.getfixturevalue("chroma_port")
    made = make_settings(tmp_path / "source", source_type="chromadb", collection_name=f"c{abs(hash(request.node.nodeid))}")
    made = replace(made, source_path=None, chroma_url=f"http://127.0.0.1:{port}", cps_csv=str(tmp_path / "{split}.csv"))
    write_cps(tmp_path / "train.csv", cps_of(ROWS))
    with open_client(made) as client:
        client.create_collection(made.collection_name, embedding_function=None).add(
            ids=[f"id{i}" for i in range(len(ROWS))],
            embeddings=[row["embedding"] for row in ROWS],
            metadatas=[{"split": "train", "file_path": row["file_path"]} for row in ROWS],
        )
    return made


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAUSE_S", 0)


def port_of(settings: DataSettings) -> int:
    return int(str(settings.chroma_url).rpartition(":")[2])


def held(settings: DataSettings) -> dict[str, bytes]:
    """What is read: the bytes of each embedding, by path."""
    read = read_chroma(settings)["train"]
    assert len(set(read.file_paths)) == len(read.file_paths) == len(read.embeddings)
    return dict(zip(read.file_paths, (vector.tobytes() for vector in np.asarray(read.embeddings)), strict=True))


WHOLE = {row["file_path"]: row["embedding"].tobytes() for row in ROWS}


@pytest.mark.parametrize("splits", [(), ("train",)])
@pytest.mark.parametrize("limits", [{"cap": 300}, {"cap": 100}, {"refuse": 300}, {"cap": 250, "refuse": 300}], ids=str)
def test_a_server_that_caps_pages_is_read_whole(settings: DataSettings, limits: dict[str, int], splits: tuple[str, ...]) -> None:
    with chroma_proxy(port_of(settings), **limits) as url:
        assert held(replace(settings, chroma_url=url, splits=splits)) == WHOLE


def test_ingest_behind_a_cap(settings: DataSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "numpy_embs.npy", {"more": make_rows(800, seed=2)}, allow_pickle=True)
    with chroma_proxy(port_of(settings), cap=300, refuse=300) as url:
        server = ChromaSettings(chroma_url=url, collection_name=settings.collection_name)
        ingest(tmp_path, server=server)
        assert capsys.readouterr().out == "more: 800 rows, 800 written, 0 were there\n"
        ingest(tmp_path, server=server)
        assert capsys.readouterr().out == "more: 800 rows, 0 written, 800 were there\n"


# Beside a writer


@pytest.fixture
def writer(settings: DataSettings) -> Iterator[Any]:
    with open_client(settings) as client:
        yield client.get_collection(settings.collection_name, embedding_function=None)


def replace_one(writer: Any, number: int) -> None:
    """Delete a record and add another, so that their number stays."""
    writer.delete(ids=[f"id{number}"])
    metadata = {"split": "train", "file_path": f"new/{number}.wav"}
    writer.add(ids=[f"new{number}"], embeddings=[[float(number)] * 8], metadatas=[metadata])


@pytest.mark.parametrize("at", range(11))
def test_one_record_deleted_and_one_added_between_two_pages(settings: DataSettings, writer: Any, at: int) -> None:
    after = {path: vector for path, vector in WHOLE.items() if path != ROWS[5]["file_path"]}
    after["new/5.wav"] = np.full(8, 5, np.float32).tobytes()

    def write(number: int) -> None:
        if number == at:
            replace_one(writer, 5)

    with chroma_proxy(port_of(settings), cap=300, on_get=write) as url:
        assert held(replace(settings, chroma_url=url)) in (WHOLE, after)  # never a part of one and a part of the other


def test_a_writer_that_never_rests(settings: DataSettings, writer: Any) -> None:
    writing = False

    def write(number: int) -> None:
        if writing:
            replace_one(writer, number)

    with chroma_proxy(port_of(settings), cap=300, on_get=write) as url:
        settings = replace(settings, chroma_url=url)
        first = load(settings)
        assert first.stale_reason is None
        writing = True
        expected = rf"^{url}: collection '{settings.collection_name}' changed while it was read; start again after the writing"
        with pytest.raises(SourceUnavailableError, match=expected):
            read_chroma(settings)
        second = load(settings)
    assert "changed while it was read" in str(second.stale_reason)
    assert second.snapshot.fingerprint == first.snapshot.fingerprint


def test_a_record_that_moves_to_another_split(settings: DataSettings, writer: Any) -> None:
    def write(number: int) -> None:
        if number == 5:
            writer.update(ids=["id649"], metadatas=[{"split": "dev"}])

    with chroma_proxy(port_of(settings), cap=300, on_get=write) as url:
        read = held(replace(settings, chroma_url=url, splits=("train",)))
    assert read == {path: vector for path, vector in WHOLE.items() if path != ROWS[649]["file_path"]}
