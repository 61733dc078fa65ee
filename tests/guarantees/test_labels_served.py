"""Further labels over the wire: by name in columns=, rows, the client's batches and the datasets of torch, cached or not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import serving
from data import make_rows, make_settings, write_cps, write_npy

from cpstream_client import BatchQuery, Client
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Split

ROWS = make_rows(50)
COLUMNS: Any = ("file_path", "rate", "embedding", "pitch", "cps")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Split]]:
    folder = tmp_path_factory.mktemp("labels") / "source"
    write_npy(folder, {"train": ROWS})
    table = [(row["file_path"], 5 + i / 8, "" if i % 7 == 3 else 100 + i, -i) for i, row in enumerate(ROWS)]
    write_cps(folder / "train_cps.csv", table, ("audio_path", "cps", "pitch", "rate"))
    snapshot = load(make_settings(folder, labels=("rate", "pitch"))).snapshot
    with serving(create_app(snapshot, ServeSettings())) as url:
        yield url, snapshot.splits["train"]


def check(split: Split, index: Any, labels: Any) -> None:
    assert list(labels) == ["pitch", "rate"] or set(labels) == {"pitch", "rate"}
    for name, values in labels.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, split.labels[name][index])


def test_columns_of_an_arrow_stream(served: tuple[str, Split]) -> None:
    url, split = served
    query = "batch_size=8&shuffle=true&columns=rate,file_path,index,pitch"
    reply = httpx.get(f"{url}/v1/splits/train/batches?{query}", headers={"Accept": "application/vnd.apache.arrow.stream"})
    with pa.ipc.open_stream(reply.content) as reader:
        assert reader.schema.names == ["index", "pitch", "rate", "file_path"]
        assert reader.schema.field("pitch").type == pa.float32()
        for batch in reader:
            index = batch["index"].to_numpy()
            check(split, index, {name: batch[name].to_numpy() for name in ("pitch", "rate")})
            assert batch["file_path"].to_pylist() == split.file_paths.take(index).to_pylist()


def test_json_and_rows(served: tuple[str, Split]) -> None:
    url, _ = served
    assert httpx.get(f"{url}/v1/splits/train").json()["labels"] == ["rate", "pitch"]
    reply = httpx.post(
        f"{url}/v1/splits/train/take?columns=cps,pitch", json={"indices": [3, 4]}, headers={"Accept": "application/json"}
    )
    assert reply.json()["batches"][0]["samples"] == [
        {"cps": 5.375, "labels": {"pitch": None}},
        {"cps": 5.5, "labels": {"pitch": 104.0}},
    ]
    with Client(url) as client:
        rows = client.rows("train", offset=3, length=1).rows
    assert rows[0].labels == {"rate": -3.0, "pitch": None}


@pytest.mark.parametrize("path", ["batches?columns=cps,pich", "take?columns=cps,pich"])
@pytest.mark.parametrize("accept", ["application/json", "application/vnd.apache.arrow.stream"])
def test_a_label_that_the_split_does_not_have(served: tuple[str, Split], path: str, accept: str) -> None:
    url, _ = served
    method = "POST" if "take" in path else "GET"
    body = {"json": {"indices": [0]}} if "take" in path else {}
    reply = httpx.request(method, f"{url}/v1/splits/train/{path}", headers={"Accept": accept}, **body)  # type: ignore[arg-type]
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-parameter")
    assert "'pich' is no column; columns: embedding, cps, index, pitch, rate, file_path" in reply.json()["detail"]
    with (
        Client(url) as client,
        pytest.raises(ValueError, match="columns has 'pich'; it must name some of emb"),
    ):
        next(client.batches("train", BatchQuery(columns=("cps", "pich"))))


def test_batches_and_take_of_the_client(served: tuple[str, Split]) -> None:
    url, split = served
    with Client(url) as client:
        for batch in client.batches("train", BatchQuery(batch_size=8, shuffle="uniform", columns=(*COLUMNS, "index"))):
            check(split, batch.index, batch.labels)
            np.testing.assert_array_equal(batch.embeddings, split.embeddings[batch.index])
            assert batch.file_paths == [split.file_paths[int(i)].as_py() for i in batch.index]  # type: ignore[union-attr]
        taken = client.take("train", [7, 0, 7], columns=("pitch", "rate"))
        check(split, [7, 0, 7], taken.labels)
        assert (taken.embeddings, taken.cps, taken.index) == (None, None, None)
        (table,) = client.record_batches("train", BatchQuery(batch_size=50, columns=("rate",)))
        np.testing.assert_array_equal(table["rate"].to_numpy(), split.labels["rate"])
        assert dict(next(client.batches("train")).labels) == {}
        frame = client.frame("train", columns=("pitch", "file_path", "rate", "cps"))
        assert list(frame.columns) == ["pitch", "file_path", "rate", "cps"]
        check(split, frame.index, {name: frame[name].to_numpy() for name in ("pitch", "rate")})
        np.testing.assert_array_equal(frame["cps"], split.cps)


@pytest.mark.parametrize("cache", [None, "auto", "memory", "directory", "device"])
@pytest.mark.parametrize("batch_size", [8, 3])
def test_datasets(served: tuple[str, Split], cache: str | None, batch_size: int, tmp_path: Path) -> None:
    url, split = served
    options: Any = {"cache": str(tmp_path) if cache == "directory" else cache, "device": "cpu" if cache == "device" else None}
    dataset = StreamingEmbeddingsDataset(
        url, "train", batch_size=batch_size, shuffle=True, seed=3, columns=(*COLUMNS, "index"), remainder="exact", **options
    )
    for epoch in range(3):
        dataset.set_epoch(epoch)
        seen = []
        for file_path, rate, embedding, pitch, cps, index in dataset:
            assert {value.dtype for value in (rate, pitch, cps)} == {torch.float32}
            check(split, index.numpy(), {"rate": rate.numpy(), "pitch": pitch.numpy()})
            np.testing.assert_array_equal(embedding, split.embeddings[index.numpy()])
            np.testing.assert_array_equal(cps, split.cps[index.numpy()])
            assert len(file_path) == len(index)
            seen += index.tolist()
        assert sorted(seen) == list(range(50))


def test_a_short_rank_has_them_in_its_empty_batch(served: tuple[str, Split]) -> None:
    url, _ = served
    options: Any = {"batch_size": 1, "remainder": "exact", "rank": 2, "world_size": 3, "columns": ("rate", "cps")}
    batches = list(StreamingEmbeddingsDataset(url, "train", **options))
    assert [(len(rate), len(cps)) for rate, cps in batches] == [(1, 1)] * 16 + [(0, 0)]


def test_a_dataset_refuses_what_the_split_lacks(served: tuple[str, Split]) -> None:
    url, _ = served
    dataset = StreamingEmbeddingsDataset(url, "train", batch_size=8, columns=("embedding", "pich"))
    with pytest.raises(ValueError, match="columns has 'pich'; it must name some of embedding, cps, index, pitch, rate, file_path"):
        next(iter(dataset))
