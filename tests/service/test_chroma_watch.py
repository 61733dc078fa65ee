"""`--watch` over Chroma: records come and go in a real database, folder or server, under a real service."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import chromadb
import httpx
import numpy as np
import pytest
from command import serve
from data import chroma_port, cps_of, make_rows, write_cps  # noqa: F401
from reloading import last_reload

from cpstream_client import Client
from cpstream_service.settings import DataSettings
from cpstream_service.sources.chroma.client import open_client

ROWS = make_rows(41)
OPTIONS = ("--source-type", "chromadb", "--collection-name", "watched", "--watch", "--watch-interval-s", "0.2")
Opened = Callable[[], AbstractContextManager[Any]]


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Opened, list[str]]:
    """What opens the database to write to it, and the options that name it."""
    if request.param == "server":
        url = f"http://127.0.0.1:{request.getfixturevalue('chroma_port')}"
        return lambda: open_client(DataSettings(source_type="chromadb", chroma_url=url)), ["--chroma-url", url]
    settings = chromadb.Settings(anonymized_telemetry=False)
    return lambda: closing(chromadb.PersistentClient(str(tmp_path / "source"), settings)), []


@contextmanager
def collection(opened: Opened) -> Iterator[Any]:
    with opened() as client:
        yield client.get_or_create_collection("watched", embedding_function=None)


def add(into: Any, low: int, high: int) -> None:
    rows = range(low, high)
    into.add(
        ids=[f"id{i}" for i in rows],
        embeddings=[ROWS[i]["embedding"] for i in rows],
        metadatas=[{"split": "train", "file_path": ROWS[i]["file_path"]} for i in rows],
    )


def test_records_that_come_and_go(place: tuple[Opened, list[str]], tmp_path: Path) -> None:
    opened, options = place
    (tmp_path / "source").mkdir()
    write_cps(tmp_path / "train.csv", cps_of(ROWS))
    with collection(opened) as records:
        add(records, 0, 40)
    options += ["--cps-csv", str(tmp_path / "{split}.csv"), *OPTIONS]
    with serve(tmp_path, *options, source=tmp_path / "source") as service, Client(service.url) as client:
        assert len(client.file_paths("train")) == 40
        old = client.split("train")
        held = {row["file_path"] for row in ROWS}

        def changed(number: int) -> dict[str, Any]:
            return last_reload(service.url, lambda last: last["outcome"] == "succeeded" and last["number"] >= number)

        with collection(opened) as records:  # one change at a time: it may be looked at between two
            add(records, 40, 41)
            last = changed(1)
        assert (last["number"], last["reason"]) == (1, "the source changed")
        paths = client.file_paths("train")
        assert set(paths) == held
        came = client.take("train", [paths.index(ROWS[40]["file_path"])])
        assert np.array_equal(came.embeddings, np.asarray([ROWS[40]["embedding"]], np.float32))
        assert set(client.file_paths("train", info=old)) == {row["file_path"] for row in ROWS[:40]}
        assert httpx.get(f"{service.url}/v1/versions").json()["last_reload"]["number"] == 1  # reading it was no change
        with collection(opened) as records:
            records.delete(ids=["id3"])
        changed(2)
        assert set(client.file_paths("train")) == held - {ROWS[3]["file_path"]}
