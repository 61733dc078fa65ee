import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data import make_rows

from cpstream_service.errors import DataError, MissingFileError
from cpstream_service.settings import DataSettings
from cpstream_service.sources.npy_folder import read_npy_folder
from cpstream_service.sources.read import read_source
from cpstream_service.sources.rows import SourceSplit

ROWS = make_rows(6)


def write_folder(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """One .npy file a recording, at its path without the extension."""
    for row in rows:
        path = folder / Path(row["file_path"]).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, row["embedding"])
    return folder


def read(folder: Path) -> SourceSplit:
    return read_npy_folder(folder)["all"]


def test_keys_are_paths_within_the_folder_without_extension(tmp_path: Path) -> None:
    write_folder(tmp_path, [*ROWS, {"file_path": "b.v2/c/deep é.wav", "embedding": np.ones(8, np.float32)}])
    (tmp_path / "notes.txt").write_text("no array")
    found = read(tmp_path)
    assert found.file_paths == [*(f"audio/{i:04d}" for i in range(6)), "b.v2/c/deep é"]
    assert found.bare_keys
    assert found.problems == []
    np.testing.assert_array_equal(found.embeddings, [*(row["embedding"] for row in ROWS), np.ones(8)])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "f2", "i1", "<i8", "g"])
@pytest.mark.parametrize("shape", [(600,), (1, 600), (1, 1, 600), (600, 1)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_number_type(tmp_path: Path, dtype: str, shape: tuple[int, ...], order: Any) -> None:
    array = np.asarray(np.arange(600).astype(dtype).reshape(shape), order=order)
    np.save(tmp_path / "a.npy", array)
    with (tmp_path / "b.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))
    found = read(tmp_path)
    np.testing.assert_array_equal(found.embeddings, 2 * [np.arange(600).astype(dtype).astype("f4")])


def test_hidden_files_are_left_out_and_links_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "real")
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "audio").symlink_to(tmp_path / "real" / "audio")
    (folder / "audio" / "._0000.npy").write_bytes(b"\0\5\x16\7")  # as macOS leaves them
    (folder / ".cache").mkdir()
    np.save(folder / ".cache" / "x.npy", np.zeros(8))
    (tmp_path / "real" / "audio" / "round").symlink_to(tmp_path / "real")
    assert [path for path in read(folder).file_paths if "round" not in path] == [f"audio/{i:04d}" for i in range(6)]


def test_files_that_are_no_vector_are_left_out_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    np.save(tmp_path / "frames.npy", np.zeros((57, 8), np.float32))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    np.save(tmp_path / "none.npy", np.zeros(0, np.float32))
    np.save(tmp_path / "text.npy", np.array(["a"] * 8))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "other.npy", np.zeros(7, np.float32))
    np.save(tmp_path / "torn.npy", np.zeros(8, np.float32))
    os.truncate(tmp_path / "torn.npy", 140)
    torch.save(torch.zeros(8), tmp_path / "torch.npy")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "pointer.npy").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\1\0\x10\0{'descr': 'f4', ")
    os.mkfifo(tmp_path / "pipe.npy")
    found = read(tmp_path)
    assert found.embeddings.shape == (6, 8)
    said = {problem.file_path: problem.detail for problem in found.problems}
    assert all(str(tmp_path) not in detail and "\n" not in detail for detail in said.values()), said
    expected = {
        "frames": "the embedding has shape (57, 8); it must have one dimension",
        "scalar": "the embedding has shape ()",
        "none": "the embedding is empty",
        "text": "the embedding is an array of <U1, not of numbers",
        "objects": "holds Python objects, not numbers; if it is {split: rows}, set --source-type npy",
        "other": "the embedding has 7 numbers; most rows of 'all' have 8",
        "torn": "it is truncated: 3 of 8 numbers are there",
        "torch": "is a file of torch.save",
        "empty": "is empty",
        "pointer": "is a pointer of Git LFS, not the data; fetch it: git lfs pull",
        "header": "its .npy header is damaged",
        "pipe": "is a pipe, not a file",
    }
    assert said.keys() == expected.keys()
    assert {key: text for key, text in expected.items() if text not in said[key]} == {}
    assert str(found.problems[0]).startswith("file empty.npy (empty): is empty")


def test_a_header_that_asks_for_more_than_there_is(tmp_path: Path) -> None:
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
    with (tmp_path / "negative.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (-1,)})
    found = read(tmp_path)
    assert [problem.detail.split(";")[0] for problem in found.problems] == [
        "it is truncated: 0 of 1000000000000000 numbers are there",
        "the embedding has shape (-1,)",
    ]


def test_split_in_the_path(tmp_path: Path) -> None:
    write_folder(tmp_path / "feats" / "train")
    write_folder(tmp_path / "feats" / "dev", ROWS[:2])
    settings = DataSettings(source_type="npy-folder", source_path=tmp_path / "feats" / "{split}")
    assert {name: len(split.file_paths) for name, split in read_source(settings).items()} == {"dev": 2, "train": 6}
    only = DataSettings(source_type="npy-folder", source_path=tmp_path / "feats" / "{split}", splits=("dev",))
    (name, split), *rest = read_source(only).items()
    assert (name, split.name, split.file_paths, rest) == ("dev", "dev", ["audio/0000", "audio/0001"], [])


@pytest.mark.parametrize(
    ("path", "splits", "error", "said"),
    [
        ("none", (), MissingFileError, "none: there is no such folder; set --source-path to the folder of the .npy files"),
        ("empty", (), DataError, "empty holds no .npy file; set --source-path"),
        ("file", (), DataError, "file is not a folder; set --source-path"),
        (
            "full",
            ("dev",),
            DataError,
            "has no split 'dev'; it has: 'all'; write a split in each row, or put {split} into --source-path",
        ),
        ("{split}/none", (), MissingFileError, "{split}/none: nothing is there for any split; set --source-path to the folder"),
        ("full/{split}", ("dev",), MissingFileError, "full/dev: there is no such folder"),
    ],
)
def test_no_such_folder(tmp_path: Path, path: str, splits: tuple[str, ...], error: type[Exception], said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write_folder(tmp_path / "full")
    with pytest.raises(error) as caught:
        read_source(DataSettings(source_type="npy-folder", source_path=tmp_path / path, splits=splits))
    assert said in str(caught.value)
