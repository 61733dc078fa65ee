import pickle
from pathlib import Path
from typing import Any, Literal

import chromadb
import numpy as np
import pytest
import torch
from chromadb.config import Settings
from data import cps_of, make_rows, make_settings, write_cps, write_dataset
from torch.utils.data import DataLoader, Dataset

from cpstream_service.dataset import BaseDataset, RegressionEmbeddingsDataset
from cpstream_service.errors import AlignmentError, DataError
from cpstream_service.snapshot.load import load

ROWS = {"train": make_rows(50, 8), "dev": make_rows(9, 8, seed=1)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data" / "processed" / "embeddings", ROWS)


def test_the_usage_of_the_readme(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "train_cps.csv").rename(source.parent / "train_cps.csv")
    monkeypatch.chdir(tmp_path)
    dataset = RegressionEmbeddingsDataset(
        source_path="data/processed/embeddings", split="train", source_type="npy", cps_csv="data/processed/train_cps.csv"
    )
    dataloader = DataLoader(dataset, batch_size=32, shuffle=True)
    batches = list(dataloader)
    assert [(x.shape, y.shape) for x, y in batches] == [((32, 8), (32,)), ((18, 8), (18,))]
    assert all(x.dtype == y.dtype == torch.float32 for x, y in batches)
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == sorted(cps for _, cps in cps_of(ROWS["train"]))


def test_samples(source: Path) -> None:
    dataset = RegressionEmbeddingsDataset(source, "dev")
    assert isinstance(dataset, BaseDataset)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 9
    assert dataset.filenames == [row["file_path"] for row in ROWS["dev"]]
    np.testing.assert_array_equal(dataset.audio_data, [row["embedding"] for row in ROWS["dev"]])
    np.testing.assert_array_equal(dataset.labels, [5 + i / 8 for i in range(9)])
    assert (dataset.audio_data.dtype, dataset.labels.dtype) == (torch.float32, torch.float32)
    embedding, cps = dataset[3]
    assert (embedding.dtype, embedding.shape, cps.dtype, cps.shape) == (torch.float32, (8,), torch.float32, ())
    torch.testing.assert_close(dataset[-1], dataset[8], rtol=0, atol=0)
    torch.testing.assert_close(dataset[np.int64(2)], dataset[2], rtol=0, atol=0)
    with pytest.raises(IndexError):
        dataset[9]
    assert repr(dataset) == "RegressionEmbeddingsDataset(split='dev', num_samples=9, embedding_dim=8)"
    assert dataset.report.num_aligned == 9


def test_it_holds_what_the_service_serves(source: Path) -> None:
    snapshot = load(make_settings(source)).snapshot
    for name, split in snapshot.splits.items():
        dataset = RegressionEmbeddingsDataset(source, name)
        assert dataset.audio_data.numpy().tobytes() == np.asarray(split.embeddings).tobytes()
        assert dataset.labels.numpy().tobytes() == np.asarray(split.cps).tobytes()
        assert dataset.filenames == split.file_paths.to_pylist()
        assert dataset.report.dropped == split.report.dropped


def test_from_chroma(source: Path, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "chroma"), Settings(anonymized_telemetry=False))
    client.create_collection("speed_embeddings", embedding_function=None).add(
        ids=[row["file_path"] for row in ROWS["dev"]],
        embeddings=[row["embedding"] for row in ROWS["dev"]],
        metadatas=[{"split": "dev", "file_path": row["file_path"]} for row in ROWS["dev"]],
    )
    client.close()  # type: ignore[attr-defined]
    npy = RegressionEmbeddingsDataset(source, "dev")
    dataset = RegressionEmbeddingsDataset(tmp_path / "chroma", "dev", "chromadb", source / "dev_cps.csv")
    assert torch.equal(dataset.audio_data, npy.audio_data)
    assert torch.equal(dataset.labels, npy.labels)
    assert dataset.filenames == npy.filenames


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_loader_workers(source: Path, context: Literal["fork", "spawn"]) -> None:
    dataset = RegressionEmbeddingsDataset(source, "train")
    options: Any = {"batch_size": 16, "num_workers": 2 if context == "fork" else 1, "multiprocessing_context": context}
    got = [(x.clone(), y.clone()) for x, y in DataLoader(dataset, **options)]
    assert torch.equal(torch.cat([x for x, _ in got]), dataset.audio_data)
    assert torch.equal(torch.cat([y for _, y in got]), dataset.labels)


def test_it_pickles(source: Path) -> None:
    dataset = RegressionEmbeddingsDataset(source, "dev")
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.audio_data, dataset.audio_data)
    assert again.filenames == dataset.filenames
    assert again.report == dataset.report


def test_the_table_of_another_split_serves_nothing(source: Path) -> None:
    """The usage of the README, with another split and the table left as it was."""
    rows = {name: make_rows(50, folder=f"audio/{name}") for name in ("train", "dev")}
    write_dataset(source, rows)
    with pytest.raises(AlignmentError, match=r"split 'dev' aligns nothing: .* all rows of the table are of other splits: set "):
        RegressionEmbeddingsDataset(source, "dev", "npy", source / "train_cps.csv")


def test_the_arguments_are_attributes(source: Path) -> None:
    dataset = RegressionEmbeddingsDataset(str(source), "dev", "npy", "{split}_cps.csv", "other")
    given = (dataset.source_path, dataset.split, dataset.source_type, dataset.cps_csv, dataset.collection_name)
    assert given == (str(source), "dev", "npy", "{split}_cps.csv", "other")


@pytest.mark.parametrize("source_type", ["zarr", "", "NPY", None])
def test_an_unknown_source_type(source: Path, source_type: Any) -> None:
    with pytest.raises(ValueError, match=r"source_type is .*; it must be one of npy, chromadb, npy-folder, parquet, kaldi"):
        RegressionEmbeddingsDataset(source, "dev", source_type)


def test_an_unknown_argument(source: Path) -> None:
    with pytest.raises((TypeError, ValueError), match="cps_colum"):
        RegressionEmbeddingsDataset(source, "dev", cps_colum="cps")


@pytest.mark.parametrize(
    ("source_type", "path"),
    [
        ("npy", ""),
        ("npy", "gone"),
        ("chromadb", ""),
        ("chromadb", "gone"),
        ("npy-folder", "gone"),
        ("parquet", "gone"),
        ("kaldi", "gone"),
    ],
)
def test_what_is_missing_is_a_file_not_found_error_as_well(source: Path, tmp_path: Path, source_type: str, path: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        RegressionEmbeddingsDataset(tmp_path / path, "dev", source_type, cps_csv=source / "dev_cps.csv")
    assert isinstance(caught.value, DataError)
    assert str(caught.value).startswith(str(tmp_path / path))
    with pytest.raises(FileNotFoundError, match="there is no such CPS table"):
        RegressionEmbeddingsDataset(source, "dev", cps_csv="nope.csv")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_bad_data(source: Path) -> None:
    with pytest.raises(DataError, match=r"nope_cps.csv: there is no such CPS table"):
        RegressionEmbeddingsDataset(source, "nope")
    with pytest.raises(DataError, match=r"numpy_embs.npy has no split 'nope'; it has: 'train', 'dev'"):
        RegressionEmbeddingsDataset(source, "nope", cps_csv="dev_cps.csv")
    write_cps(source / "dev_cps.csv", [*cps_of(ROWS["dev"])[1:]])
    assert len(RegressionEmbeddingsDataset(source, "dev")) == 8
    with pytest.raises(AlignmentError, match=r"^strict=True, and alignment dropped 1 row:.* or leave strict=True out"):
        RegressionEmbeddingsDataset(source, "dev", strict=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"split": "nope"}, "set cps_csv= to where it lies, or split= to some that have one: 'dev', 'train'"),
        ({"source_path": "/no/such"}, "/no/such/numpy_embs.npy: there is no such file; set source_path= to"),
        ({"source_path": None}, "no source path: set source_path= to the folder"),
        ({"cps_csv": "{spilt}.csv"}, "{spilt} stands for nothing; only {split} does"),
        (
            {"cps_column": "rate"},
            "column 'rate' is missing; the header has: 'audio_path', 'cps'; rename the column or set cps_column=",
        ),
        ({"cps_csv": "moved.csv"}, "map_root=('audio/a/=/x/one/', 'audio/b/=/y/two/') matches 8 rows"),
    ],
)
def test_errors_name_arguments_and_no_options(source: Path, arguments: dict[str, Any], says: str) -> None:
    rows = [row | {"file_path": f"audio/{'ab'[i % 2]}/{i}.wav"} for i, row in enumerate(make_rows(8))]
    write_dataset(source, {"train": make_rows(2), "dev": rows})
    write_cps(source / "moved.csv", [(f"{('/x/one', '/y/two')[i % 2]}/{i}.wav", 5) for i in range(8)])
    with pytest.raises((DataError, ValueError)) as caught:
        RegressionEmbeddingsDataset(**{"source_path": source, "split": "dev", **arguments})
    assert says in str(caught.value)
    assert "--" not in str(caught.value)
    assert "CPSTREAM_" not in str(caught.value)
