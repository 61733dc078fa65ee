"""The neighbours of a sample are those of scikit-learn, and whatever is asked in another way is refused in words."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from arrays import snapshot_of
from conftest import Server, serving
from sklearn.neighbors import NearestNeighbors

from cpstream_client.contract import figures
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.statistics import neighbours
from cpstream_service.statistics.neighbours import Searches

URL = "/v1/splits/train/neighbours"


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize(("index", "k"), [(0, 1), (1799, 10), (900, 1000)])
def test_they_are_scikit_learns(http: httpx.Client, server: Server, index: int, k: int) -> None:
    split = server.snapshot.splits["train"]
    rows = split.embeddings.astype(np.float64)
    distances, indices = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(rows).kneighbors(rows[index : index + 1])
    found = figures.Neighbours.model_validate_json(http.get(URL, params={"index": index, "k": k}).content)
    assert [each.index for each in found.neighbours] == indices[0][1:].tolist()
    assert [each.cosine for each in found.neighbours] == pytest.approx(1 - distances[0][1:], abs=1e-8)
    for each in found.neighbours[:3]:
        assert each.index is not None
        assert (each.file_path, each.cps) == (split.file_paths[each.index].as_py(), split.cps[each.index])
    by_path = http.get(URL, params={"file_path": split.file_paths[index].as_py(), "k": k}).json()
    assert by_path["neighbours"] == http.get(URL, params={"index": index, "k": k}).json()["neighbours"]
    assert by_path["of"]["index"] == index


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_hardly_different_cosines_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """By more than float32 can tell, and in numbers whose squares it cannot hold; equal ones come by index."""
    monkeypatch.setattr(neighbours, "_CHUNK_BYTES", 1 << 12)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal(64) + 1e-5 * rng.standard_normal((300, 64))
    rows[7] = rows[250] = rows[20]
    rows[30] = 0
    snapshot = snapshot_of(tmp_path / "s", {"train": ((rows * scale).astype(np.float32), np.arange(300) + 1.0)})
    served = snapshot.splits["train"].embeddings.astype(np.float64) / scale
    units = served[np.arange(300) != 30] / np.linalg.norm(served[np.arange(300) != 30], axis=1, keepdims=True)
    expected = units @ units[20]
    indices, cosines = Searches().nearest(snapshot.splits["train"], 20, 12)
    assert indices[:2].tolist() == [7, 250]
    assert cosines == pytest.approx(np.sort(expected)[::-1][1:13], abs=1e-12)
    assert 30 not in Searches().nearest(snapshot.splits["train"], 20, 300)[0]
    assert len(Searches().nearest(snapshot.splits["train"], 20, 300)[0]) == 298


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({}, 422, "give either index or file_path"),
        ({"index": 0, "file_path": "a.wav"}, 422, "give either index or file_path"),
        ({"index": 1800}, 422, "index is 1800; it must be from 0 to 1799"),
        ({"file_path": "none.wav"}, 404, "file_path is 'none.wav', which split 'train' does not have"),
        ({"index": 0, "k": 0}, 422, "k is '0'; it must be 1 or more"),
        ({"index": 0, "k": 1001}, 422, "k is '1001'; it must be 1000 or less"),
    ],
)
def test_what_is_refused(http: httpx.Client, asked: dict[str, Any], status: int, words: str) -> None:
    reply = http.get(URL, params=asked)
    assert (reply.status_code, words in reply.json()["detail"]) == (status, True), reply.text


def test_of_an_all_zero_embedding_and_of_one_sample(tmp_path: Path) -> None:
    snapshot = snapshot_of(
        tmp_path / "s", {"train": (np.array([[0.0, 0], [1, 2]]), np.ones(2)), "dev": (np.ones((1, 2)), np.ones(1))}
    )
    with serving(create_app(snapshot, ServeSettings())) as url:
        reply = httpx.get(url + URL, params={"index": 0})
        assert (reply.status_code, "all-zero" in reply.json()["detail"]) == (422, True)
        assert httpx.get(url + URL, params={"index": 1}).json()["neighbours"] == []
        assert httpx.get(f"{url}/v1/splits/dev/neighbours", params={"index": 0}).json()["neighbours"] == []


def test_one_at_a_time(run_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[Searches] = []
    make = Searches.__init__
    monkeypatch.setattr(Searches, "__init__", lambda self: (make(self), searches.append(self))[0])
    server = run_server()
    with searches[-1].alone():
        reply = httpx.get(server.url + URL, params={"index": 0})
        assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "overloaded", "1")
    assert httpx.get(server.url + URL, params={"index": 0}).status_code == 200
