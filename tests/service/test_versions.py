"""Several versions of the data in one service: which of them answers, and what is left of one that is dropped."""

import gc
import io
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import poll, serving, stalled_stream
from data import make_rows, make_settings, write_dataset
from fastapi import FastAPI

from cpstream_service.api.versions import Version
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.last_use import last_used
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot

EMBEDDINGS = "/v1/splits/train/embeddings.npy"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("old"), seed=1)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("new"), seed=2)


def snapshot_of(folder: Path, seed: int) -> Snapshot:
    """A large train split, of this seed, and a dev split that is always the same."""
    rows = {"train": make_rows(3000, 1024, seed=seed), "dev": make_rows(5, seed=0, folder="dev")}
    return load(make_settings(write_dataset(folder / "source", rows))).snapshot


@pytest.fixture
def app(old: Snapshot) -> FastAPI:
    return create_app(old, ServeSettings())


@pytest.fixture
def http(app: FastAPI, new: Snapshot) -> Iterator[httpx.Client]:
    """Of a service that has moved on from old to new."""
    with serving(app) as url, httpx.Client(base_url=url) as client:
        versions = app.state.service.versions
        versions.open(Version.of(new, ServeSettings()))
        versions.make_current(new.path.name)
        yield client


def print_of(snapshot: Snapshot, split: str = "train") -> dict[str, str]:
    return {"fingerprint": snapshot.splits[split].fingerprint}


def test_a_pinned_request_is_answered_from_the_version_that_has_it(http: httpx.Client, old: Snapshot, new: Snapshot) -> None:
    for snapshot in (old, new):
        reply = http.get(EMBEDDINGS, params=print_of(snapshot))
        assert np.array_equal(np.load(io.BytesIO(reply.content)), snapshot.splits["train"].embeddings)
        query = {"limit": "1", "columns": "embedding,cps", **print_of(snapshot)}
        batch = http.get("/v1/splits/train/batches", params=query, headers={"Accept": "application/json"}).json()["batches"][0]
        rows = np.array([sample["embedding"] for sample in batch["samples"]], np.float32)
        assert np.array_equal(rows, snapshot.splits["train"].embeddings[:256])
        halves = http.post("/v1/splits/train/take", params={"dtype": "float16", **print_of(snapshot)}, json={"indices": [7]})
        assert snapshot.splits["train"].embeddings[7].astype(np.float16).tobytes() in halves.content
        assert http.get("/v1/splits/train", params=print_of(snapshot)).json()["fingerprint"] == print_of(snapshot)["fingerprint"]
    unpinned = http.get("/v1/splits/train").json()["fingerprint"]
    assert unpinned == new.splits["train"].fingerprint
    assert f'fingerprint="{unpinned}"' in http.get("/metrics").text
    assert old.splits["train"].fingerprint not in http.get("/metrics").text


def test_a_use_is_noted_where_replicas_see_it(http: httpx.Client, old: Snapshot, new: Snapshot) -> None:
    for snapshot in (old, new):
        (snapshot.path / ".used").unlink(missing_ok=True)
        http.get("/v1/splits/train")
        assert last_used(snapshot.path) is None
    http.get("/v1/splits/train", params=print_of(old))
    assert last_used(old.path) is not None
    http.get("/v1/splits/dev", params=print_of(old, "dev"))  # new has the same
    assert last_used(new.path) is not None


def test_a_version_that_is_dropped_leaves_nothing_behind(
    app: FastAPI, http: httpx.Client, old: Snapshot, new: Snapshot, tmp_path: Path
) -> None:
    def files() -> list[str]:
        """Of the third version, that are open or mapped."""
        gc.collect()
        opened = []
        for descriptor in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # of the list itself, or closed meanwhile
                opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return [name for name in (*opened, *Path("/proc/self/maps").read_text().split()) if str(tmp_path) in name]

    third = snapshot_of(tmp_path, seed=3)
    service, prints = app.state.service, print_of(third)
    service.versions.open(Version.of(third, ServeSettings()))
    assert http.get("/v1/splits/train", params=prints).status_code == 200
    with http.stream("GET", EMBEDDINGS, params=prints) as download, stalled_stream(str(http.base_url), f"{EMBEDDINGS}") as _:
        service.versions.drop(third.path.name)
        whole = b"".join(download.iter_raw())
    assert np.array_equal(np.load(io.BytesIO(whole)), third.splits["train"].embeddings)
    refused = http.get("/v1/splits/train", params=prints)
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset-changed")
    assert refused.json()["held"] == [new.splits["train"].fingerprint, old.splits["train"].fingerprint]
    assert http.get("/v1/splits/dev", params=print_of(third, "dev")).status_code == 200  # the others have it, too
    del third
    poll(lambda: not files())


def test_nothing_is_served_while_no_version_is_current(app: FastAPI, http: httpx.Client, new: Snapshot) -> None:
    app.state.service.versions.drop(new.path.name)
    for path in ("/v1/splits", "/v1/splits/train", "/v1/splits/train/batches", EMBEDDINGS, "/readyz"):
        reply = http.get(path)
        assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "not-ready", "1"), path
    assert http.get("/livez").status_code == http.get("/metrics").status_code == http.get("/openapi.json").status_code == 200
