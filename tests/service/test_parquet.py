"""Parquet as pandas, pyarrow and Hugging Face's datasets write it."""

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data import cps_of, make_rows, write_cps

from cpstream_service.errors import DataError, MissingFileError
from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.sources.parquet import block, read_parquet
from cpstream_service.sources.read import read_source, source_files
from cpstream_service.sources.rows import SourceSplit

SPLITS = {"train": make_rows(5), "dev": make_rows(3, seed=1)}
FLAT = [row | {"split": split} for split, rows in SPLITS.items() for row in rows]


def check(found: dict[str, SourceSplit]) -> None:
    assert set(found) == set(SPLITS)
    for name, rows in SPLITS.items():
        assert found[name].file_paths == [row["file_path"] for row in rows]
        assert found[name].problems == []
        np.testing.assert_array_equal(found[name].embeddings, [row["embedding"] for row in rows])


# Files and folders


def test_a_file_of_pandas(tmp_path: Path) -> None:
    pd.DataFrame(FLAT).to_parquet(tmp_path / "x.parquet")
    check(read_parquet(tmp_path / "x.parquet"))


def test_shards_in_folders(tmp_path: Path) -> None:
    for i, row in enumerate(FLAT):
        folder = tmp_path / f"part-{i // 4}"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row]), folder / f"{i}.parquet")
    (tmp_path / "part-0" / "_SUCCESS").touch()
    (tmp_path / "part-0" / ".0.parquet.crc").touch()
    check(read_parquet(tmp_path))


def test_a_partitioned_dataset(tmp_path: Path) -> None:
    pq.write_to_dataset(pa.Table.from_pylist(FLAT), tmp_path, partition_cols=["split"])
    check(read_parquet(tmp_path))
    pd.DataFrame([row | {"split": "a b/c"} for row in SPLITS["dev"]]).to_parquet(tmp_path / "quoted", partition_cols=["split"])
    assert "a b/c" in read_parquet(tmp_path)


def saved_dict() -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in SPLITS.items()})


def test_a_saved_dataset_dict(tmp_path: Path) -> None:
    saved_dict().save_to_disk(tmp_path, num_shards={"train": 2, "dev": 1})
    assert len(list((tmp_path / "train").glob("*.arrow"))) == 2
    check(read_parquet(tmp_path))
    assert len(source_files(DataSettings(source_type="parquet", source_path=tmp_path))) == 3


def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_list(FLAT).save_to_disk(tmp_path / "flat")
    check(read_parquet(tmp_path / "flat"))
    shuffled = datasets.Dataset.from_list(SPLITS["train"], split="train").shuffle(seed=1)
    shuffled.save_to_disk(tmp_path / "train")
    found = read_parquet(tmp_path / "train")
    assert list(found) == ["train"]
    assert found["train"].file_paths == shuffled["file_path"][:]
    np.testing.assert_array_equal(found["train"].embeddings, np.array(shuffled["embedding"][:], np.float32))


@pytest.mark.parametrize(
    "feature",
    [
        datasets.Sequence(datasets.Value("float32")),
        datasets.Sequence(datasets.Value("float32"), length=8),
        datasets.Sequence(datasets.Value("float64")),
        datasets.Array2D((1, 8), "float32"),
        datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
    ],
)
def test_features_of_datasets(tmp_path: Path, feature: Any) -> None:
    nested = "Array2D" in str(feature) or str(feature).count("List") > 1
    rows = [row | {"embedding": row["embedding"][None] if nested else row["embedding"]} for row in FLAT]
    text = datasets.Value("string")
    features = datasets.Features({"embedding": feature, "file_path": text, "split": text})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    check(read_parquet(tmp_path / "saved"))
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "x.parquet")
    check(read_parquet(tmp_path / "x.parquet"))


def test_files_named_as_on_the_hub(tmp_path: Path) -> None:
    for name, rows in SPLITS.items():
        for i in range(2):
            pd.DataFrame(rows[i::2]).to_parquet(tmp_path / f"{name}-{i:05d}-of-00002.parquet")
    found = read_parquet(tmp_path)
    assert {name: sorted(split.file_paths) for name, split in found.items()} == {
        name: [row["file_path"] for row in rows] for name, rows in SPLITS.items()
    }


def test_files_of_other_names_are_one_split(tmp_path: Path) -> None:
    for i in range(2):
        pd.DataFrame(SPLITS["train"][i::2]).to_parquet(tmp_path / f"part-{i:05d}-of-00002.parquet")
    assert list(read_parquet(tmp_path)) == ["all"]


def test_split_in_the_path(tmp_path: Path) -> None:
    for name, rows in SPLITS.items():
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")
    settings = DataSettings(source_type="parquet", source_path=tmp_path / "{split}.parquet")
    check(read_source(settings))
    for name in SPLITS:
        pd.DataFrame(FLAT).to_parquet(tmp_path / f"{name}.parquet")
    check(read_source(settings))  # the rows of the split, where they name it
    pd.DataFrame(SPLITS["dev"]).assign(split="x").to_parquet(tmp_path / "dev.parquet")
    with pytest.raises(DataError, match=r"dev.parquet is to hold split 'dev', and has: 'x'; leave \{split\} out of --source-path"):
        read_source(settings)


def test_it_is_served_as_the_same_data_from_npy_is(tmp_path: Path) -> None:
    pd.DataFrame(FLAT).to_parquet(tmp_path / "x.parquet")
    for name, rows in SPLITS.items():
        write_cps(tmp_path / f"{name}_cps.csv", cps_of(rows))
    np.save(tmp_path / "numpy_embs.npy", SPLITS, allow_pickle=True)
    npy = load(DataSettings(source_path=tmp_path, snapshot_dir=tmp_path / "snapshots"))
    settings = DataSettings(source_type="parquet", source_path=tmp_path / "x.parquet", snapshot_dir=tmp_path / "snapshots")
    first = load(settings)
    assert first.snapshot.fingerprint == npy.snapshot.fingerprint
    assert first.snapshot.splits["dev"].info.source == "parquet"
    assert load(settings).notes[0].endswith("is up to date")
    changed = [row | {"embedding": row["embedding"] + 1} for row in FLAT]
    pd.DataFrame(changed).to_parquet(tmp_path / "x.parquet")
    assert load(settings).snapshot.fingerprint != first.snapshot.fingerprint


# Columns


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), 8),
        pa.large_list(pa.float64()),
        pa.list_(pa.float16()),
        pa.list_(pa.int16()),
        pa.list_(pa.list_(pa.float32())),
        pa.list_(pa.list_(pa.float32(), 8), 1),
        pa.list_(pa.list_(pa.float32(), 1)),
    ],
    ids=str,
)
def test_lists_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = np.arange(40).reshape(5, 8)
    shape = (
        {1: (5, 8), 2: (5, 1, 8)}[str(kind).count("list")] if "size: 1" not in str(kind) and "[1]" not in str(kind) else (5, 8, 1)
    )
    if kind == pa.list_(pa.list_(pa.float32(), 8), 1):
        shape = (5, 1, 8)
    column = pa.array(numbers.reshape(shape).astype("f2" if "half" in str(kind) else "i8").tolist(), kind)
    table = pa.table({"embedding": column, "file_path": pa.array([f"{i}.wav" for i in range(5)]).dictionary_encode()})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    assert block(column[1:4]).shape == (3, 8)  # the quick path
    found = read_parquet(tmp_path / "x.parquet")["all"]
    np.testing.assert_array_equal(found.embeddings, numbers)
    assert found.file_paths == [f"{i}.wav" for i in range(5)]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    odd = [
        {"embedding": None, "file_path": "null.wav", "split": "train"},
        {"embedding": [], "file_path": "empty.wav", "split": "train"},
        {"embedding": [1.0] * 7, "file_path": "short.wav", "split": "train"},
        {"embedding": [1.0] * 7 + [None], "file_path": "hole.wav", "split": "train"},
        {"embedding": [1.0] * 8, "file_path": None, "split": "train"},
        {"embedding": [1.0] * 8, "file_path": "lost.wav", "split": None},
    ]
    plain = [row | {"embedding": row["embedding"].tolist()} for row in FLAT]
    pq.write_table(pa.Table.from_pylist([*plain[:5], *odd, *plain[5:]]), tmp_path / "x.parquet")
    found = read_parquet(tmp_path / "x.parquet")
    assert [str(problem) for problem in found["train"].problems] == [
        "row 5 (null.wav): the embedding is null",
        "row 6 (empty.wav): the embedding is empty",
        "row 8 (hole.wav): the embedding is an array of object, not of numbers",
        "row 9: file_path is NoneType, not a string",
        "row 10 (lost.wav): it names no split",
        "row 7 (short.wav): the embedding has 7 numbers; most rows of 'train' have 8",
    ]
    found["train"].problems.clear()
    check(found)


def test_further_columns_go_with_their_rows(tmp_path: Path) -> None:
    rows = [row | {"cps": float(i)} for i, row in enumerate(FLAT)]
    rows[1]["embedding"] = rows[1]["embedding"][:3]
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    found = read_parquet(tmp_path / "x.parquet", ("cps", "pitch"))
    assert found["train"].columns == {"cps": [0.0, 2.0, 3.0, 4.0], "pitch": [None] * 4}
    assert found["dev"].columns["cps"] == [5.0, 6.0, 7.0]


# What is no source


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.parquet", b"audio_path,cps\n", "x.parquet: cannot read it as Parquet (Parquet magic bytes not found"),
        ("x.parquet", b"", "x.parquet: cannot read it as Parquet (Parquet file size is 0 bytes"),
        (
            "x.parquet",
            b"version https://git-lfs.github.com/spec/v1\n",
            "x.parquet is a pointer of Git LFS, not the data; fetch it: git lfs",
        ),
        ("x.arrow", b"no arrow at all", "x.arrow: cannot read it as Arrow ("),
        ("folder/notes.txt", b"", "folder holds no .parquet file and no saved dataset; set --source-path"),
        ("folder/state.json", b"{", "state.json is not JSON"),
        ("folder/state.json", b"[]", "state.json is no JSON object"),
        ("folder/state.json", b"{}", "state.json names no data files"),
        ("folder/state.json", b'{"_data_files": [{"filename": "../../etc/passwd"}]}', "state.json names no data files"),
        ("folder/state.json", b'{"_data_files": [{"filename": "gone.arrow"}]}', "gone.arrow: there is no such file"),
        (
            "folder/state.json",
            b'{"_indices_data_files": [1]}',
            "was saved with indices over its rows; save it again after flatten_indices()",
        ),
    ],
)
def test_no_source(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_parquet(path if path.parent == tmp_path else path.parent)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"x.parquet: there is no such file or folder; set --source-path to a Parquet file"):
        read_parquet(tmp_path / "x.parquet")
    os.mkfifo(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet is a pipe, not a file"):
        read_parquet(tmp_path / "x.parquet")


@pytest.mark.parametrize(("name", "other"), [("embedding", "emb"), ("file_path", "path")])
def test_a_missing_column(tmp_path: Path, name: str, other: str) -> None:
    pd.DataFrame(FLAT).rename(columns={name: other}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=rf"x.parquet: column '{name}' is missing; it has: .*'{other}'.*; rename the column"):
        read_parquet(tmp_path / "x.parquet")


def test_an_empty_table(tmp_path: Path) -> None:
    pd.DataFrame(FLAT).iloc[:0].to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet holds no row that belongs to a split"):
        read_parquet(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, name: str) -> None:
    """4,858 bytes took 1.4 GB: a value that is repeated takes no space."""
    count, dimension = 100_000, 768
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(count * dimension, np.float32)), dimension)
    table = pa.table({"embedding": numbers, "file_path": [f"{i % 10}.wav" for i in range(count)]})
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd")
    else:
        with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table, 4096)
    assert path.stat().st_size < 300_000
    del numbers, table
    before = pa.default_memory_pool().bytes_allocated()
    with pytest.raises(DataError, match=rf"{name}: its \d+ bytes unpack to more than \d+ MB: it is damaged, or made to"):
        read_parquet(path)
    assert pa.default_memory_pool().bytes_allocated() - before < 300 << 20
