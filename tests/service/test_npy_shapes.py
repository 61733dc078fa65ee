"""The files that the scripts around the seed write: each shape, each protocol, and whatever else stands in a row."""

import datetime
import decimal
import os
import pickle
import re
import uuid
from collections import Counter, OrderedDict, deque
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from data import make_rows, npy_bytes, npy_of, write_npy

from cpstream_service.errors import DataError
from cpstream_service.sources import npy
from cpstream_service.sources.rows import ByteRows

read_npy = partial(npy.read_npy, apart=False)  # test_npy_apart.py has the other way

SPLITS = {"train": make_rows(4), "dev": make_rows(2, seed=1)}
FLAT = [row | {"split": split} for split, rows in SPLITS.items() for row in rows]


def object_array(values: list[Any]) -> "np.ndarray[Any, Any]":
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def as_saved(value: Any) -> Any:
    """A list that np.save would make an array of, kept as it is."""
    array = np.empty((), dtype=object)
    array[()] = value
    return array


SHAPES = {
    "dict": SPLITS,
    "dict in an array of one element": np.array([SPLITS]),
    "the same with two axes": np.array([[SPLITS]]),
    "dict in a list": as_saved([SPLITS]),
    "array of rows": np.array(FLAT),
    "list of rows": FLAT,
    "list of rows as one object": as_saved(FLAT),
    "tuple of rows as one object": as_saved(tuple(FLAT)),
    "arrays of rows": {split: object_array(rows) for split, rows in SPLITS.items()},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_holds_the_same(tmp_path: Path, shape: str) -> None:
    read = read_npy(write_npy(tmp_path, SHAPES[shape]))
    assert list(read) == ["train", "dev"]
    for split, rows in SPLITS.items():
        assert read[split].file_paths == [row["file_path"] for row in rows]
        assert read[split].problems == []
        assert isinstance(read[split].embeddings, ByteRows), "the quick path"
        np.testing.assert_array_equal(read[split].embeddings, [row["embedding"] for row in rows])
    assert list(read_npy(tmp_path / "numpy_embs.npy", ("dev",))) == ["dev"]


def test_one_row_is_a_list_of_rows(tmp_path: Path) -> None:
    read = read_npy(write_npy(tmp_path, [FLAT[0]]))
    assert read["train"].file_paths == [FLAT[0]["file_path"]]


def test_rows_that_name_no_split_are_the_split_all(tmp_path: Path) -> None:
    read = read_npy(write_npy(tmp_path, make_rows(3)))
    assert {name: len(split.file_paths) for name, split in read.items()} == {"all": 3}
    with pytest.raises(DataError, match="has no split 'train'; it has: 'all'; set --splits"):
        read_npy(tmp_path / "numpy_embs.npy", ("train",))


@pytest.mark.parametrize(("split", "said"), [(None, "it names no split"), (7, "its split is 7"), ("", "its split is ''")])
def test_a_row_of_no_split_is_counted_where_others_have_one(tmp_path: Path, split: Any, said: str) -> None:
    lost = make_rows(1, folder="lost")[0] | ({} if split is None else {"split": split})
    read = read_npy(write_npy(tmp_path, [*FLAT, lost]))
    assert {name: len(each.file_paths) for name, each in read.items()} == {"train": 4, "dev": 2}
    (problem,) = read["train"].problems
    assert problem.reason.code == "no-split"
    assert str(problem).startswith("row 6 (lost/0000.wav): " + said)


# Embeddings


@pytest.mark.parametrize("shape", [(1, 8), (1, 1, 8), (8, 1), (1, 8, 1), (8,)], ids=str)
@pytest.mark.parametrize("convert", [np.asarray, lambda x: x.astype("f8"), lambda x: x.astype(object)])
def test_singleton_axes(tmp_path: Path, shape: tuple[int, ...], convert: Any) -> None:
    rows = make_rows(3)
    shaped = [row | {"embedding": convert(row["embedding"].reshape(shape))} for row in rows]
    read = read_npy(write_npy(tmp_path, {"train": [*rows, *shaped]}))["train"]
    np.testing.assert_array_equal(read.embeddings, 2 * [row["embedding"] for row in rows])
    assert read.problems == []


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: [[x]], lambda x: ([x],)])
@pytest.mark.parametrize("as_list", [True, False])
def test_nested_lists(tmp_path: Path, wrap: Any, as_list: bool) -> None:
    rows = make_rows(3, as_list=as_list)
    read = read_npy(write_npy(tmp_path, {"train": [row | {"embedding": wrap(row["embedding"])} for row in rows]}))["train"]
    np.testing.assert_array_equal(read.embeddings, np.array([row["embedding"] for row in rows], np.float32))


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    read = read_npy(write_npy(tmp_path, {"train": [*make_rows(2), {"embedding": endless, "file_path": "a.wav"}]}))["train"]
    assert [problem.reason.code for problem in read.problems] == ["wrong-dimension"]


@pytest.mark.parametrize("shape", [(2, 4), (0,), (8, 0), ()], ids=str)
def test_other_shapes_are_no_embedding(tmp_path: Path, shape: tuple[int, ...]) -> None:
    odd = {"embedding": np.ones(shape, np.float32), "file_path": "odd.wav"}
    read = read_npy(write_npy(tmp_path, {"train": [*make_rows(2), odd]}))["train"]
    assert (len(read.file_paths), len(read.problems)) == (2, 1)
    assert "array" not in type(read.problems[0].detail).__name__
    assert "Array" not in str(read.problems[0])


def test_rows_of_a_mapped_file(tmp_path: Path) -> None:
    stored = np.random.default_rng(2).standard_normal((5, 8), dtype=np.float32)
    np.save(tmp_path / "stored.npy", stored)
    mapped = np.load(tmp_path / "stored.npy", mmap_mode="r")
    rows = [{"embedding": row, "file_path": f"{i}.wav"} for i, row in enumerate(mapped)]
    assert isinstance(rows[0]["embedding"], np.memmap)
    for protocol in range(6):
        (tmp_path / "numpy_embs.npy").write_bytes(npy_of({"train": rows}, protocol))
        np.testing.assert_array_equal(read_npy(tmp_path / "numpy_embs.npy")["train"].embeddings, stored)


def test_rows_of_a_matrix(tmp_path: Path) -> None:
    with pytest.warns(PendingDeprecationWarning):
        rows = [row | {"embedding": np.matrix(row["embedding"])} for row in make_rows(3)]
    read = read_npy(write_npy(tmp_path, {"train": rows}))["train"]
    np.testing.assert_array_equal(read.embeddings, np.concatenate([row["embedding"] for row in rows]))


# Pickles


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("names", ["numpy 1", "numpy 2"])
@pytest.mark.parametrize("as_list", [True, False])
def test_every_protocol(tmp_path: Path, protocol: int, names: str, as_list: bool) -> None:
    rows = [*make_rows(3, as_list=as_list), {"embedding": [np.float32(i) for i in range(8)], "file_path": "é/ü.wav"}]
    data = npy_of({"train": rows, "dev": []}, protocol)
    if names == "numpy 1":
        data = re.sub(
            rb"(\x80[\x04\x05])\x95.{8}", rb"\1", data, flags=re.DOTALL
        )  # the length of what follows, which may be left out
        data = re.sub(rb"\x8c(.)numpy\._core", lambda found: b"\x8c%cnumpy.core" % (found[1][0] - 1), data, flags=re.DOTALL)
        data = data.replace(b"numpy._core", b"numpy.core")
        assert b"numpy.core" in data
    (tmp_path / "numpy_embs.npy").write_bytes(data)
    read = read_npy(tmp_path / "numpy_embs.npy")
    np.testing.assert_array_equal(read["train"].embeddings, np.array([row["embedding"] for row in rows], np.float32))
    assert read["train"].file_paths == [row["file_path"] for row in rows]


def test_a_file_of_python_2(tmp_path: Path) -> None:
    """As its np.save wrote it: text and the bytes of arrays alike as str, by protocol 2."""
    numbers = np.array([1.5, -2.0, 3e38], "<f4").tobytes()
    vector = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x0c"
        + numbers
        + b"tb"
    )
    row = b"}(U\x09embedding" + vector + b"U\x09file_pathU\x05a.wavu"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01)cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]}U\x05train]"
        + row
        + b"asatb."
    )
    np.testing.assert_array_equal(pickle.loads(b"\x80\x02" + array, encoding="latin1").item()["train"][0]["embedding"][0], 1.5)
    (tmp_path / "numpy_embs.npy").write_bytes(npy_bytes(b"\x80\x02" + array))
    read = read_npy(tmp_path / "numpy_embs.npy")["train"]
    assert read.file_paths == ["a.wav"]
    np.testing.assert_array_equal(read.embeddings, np.array([[1.5, -2.0, 3e38]], np.float32))


EXTRAS = {
    "dates": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.date(2026, 1, 2), datetime.timedelta(1)],
    "numpy dates": [np.datetime64("2026-01-02"), np.timedelta64(1, "s"), np.arange(3).astype("M8[s]")],
    "structured": [np.zeros(2, "i4,f4"), np.zeros((), "i4,f4")[()], np.rec.array([(1, 2.0)])],
    "complex": [1j, np.complex64(1j), np.zeros(2, "c16")],
    "text and bytes": [np.array(["ä", "b"]), np.str_("ä"), np.array([b"a"]), b"", b"\xff\x00", bytearray(b"\xff")],
    "variable text": [np.array(["a", "long"], np.dtypes.StringDType())],
    "numbers": [True, None, 10**30, 1.5, np.bool_(True), np.longdouble(1), decimal.Decimal("1.5")],
    "containers": [{1, 2}, frozenset("ab"), (1, (2,)), OrderedDict(a=1), Counter("ab"), deque([1])],
    "objects": [np.array([{"a": 1}, None]), uuid.UUID(int=7), slice(1, 2), range(3)],
    "masked": [np.ma.masked_array([1.0, 2.0], [True, False])],
    "paths": [Path("a/b"), PurePosixPath("/a")],
    "tensors": [torch.zeros(3), torch.zeros(2, 2, dtype=torch.bfloat16), torch.float32, torch.Size([1]), torch.device("cpu")],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", EXTRAS)
def test_other_keys_of_a_row_are_ignored(tmp_path: Path, kind: str, protocol: int) -> None:
    rows = [row | {"extra": EXTRAS[kind], "more": EXTRAS[kind][-1]} for row in make_rows(3)]
    (tmp_path / "numpy_embs.npy").write_bytes(npy_of({"train": rows}, protocol))
    read = read_npy(tmp_path / "numpy_embs.npy")["train"]
    assert isinstance(read.embeddings, ByteRows)
    np.testing.assert_array_equal(read.embeddings, [row["embedding"] for row in rows])


def test_a_path_object_is_a_path(tmp_path: Path) -> None:
    rows = [row | {"file_path": Path(row["file_path"])} for row in make_rows(3)]
    rows.append(rows[0] | {"file_path": Path("/data/b.wav")})
    read = read_npy(write_npy(tmp_path, {"train": rows}))["train"]
    assert read.file_paths == [str(row["file_path"]) for row in rows]


@pytest.mark.parametrize(
    ("embedding", "said"),
    [
        (torch.zeros(8), "the embedding is a value of torch._utils._rebuild_tensor_v2, not numbers"),
        (np.ma.masked_array(np.zeros(8), False), "the embedding is a value of numpy.ma.core._mareconstruct, not numbers"),
        (np.zeros(8, "c8"), "the embedding is an array of c8, not of numbers"),
        (np.zeros(8, "M8[s]"), "the embedding is an array of M8, not of numbers"),
        ({"mean": np.zeros(8)}, "the embedding is a value of type dict, not numbers"),
    ],
)
def test_what_is_no_embedding_is_named(tmp_path: Path, embedding: Any, said: str) -> None:
    read = read_npy(write_npy(tmp_path, {"train": [*make_rows(2), {"embedding": embedding, "file_path": "a.wav"}]}))["train"]
    assert [str(problem) for problem in read.problems] == [f"row 2 (a.wav): {said}"]


def test_a_class_of_the_users_own_is_refused(tmp_path: Path) -> None:
    rows = [row | {"speaker": Speaker()} for row in make_rows(2)]
    with pytest.raises(
        DataError, match=r"its pickle names test_npy_shapes.Speaker, which embeddings do not need, so it was not run"
    ):
        read_npy(write_npy(tmp_path, {"train": rows}))


class Speaker:
    pass


# What is no such file


def saved(kind: str, folder: Path) -> Path:
    """A file as the tool of that name writes it, under the name that is looked for."""
    path = folder / "numpy_embs.npy"
    if kind.startswith("torch"):
        torch.save({"train": torch.zeros(3)}, path, _use_new_zipfile_serialization=kind == "torch")
    elif kind.startswith("pickle"):
        with path.open("wb") as file:
            pickle.dump(SPLITS, file, protocol=int(kind[-1]))
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, train=np.zeros(3))
    elif kind == "git lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    elif kind == "git annex":
        path.write_text("/annex/objects/SHA256E-s31390--f50d7ac4c6b9031379986bc362fcefb65f1e52621ce1708d537e740fefc59cc0.npy\n")
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("torch", "is a file of torch.save, not an .npy file; load it with torch.load and write its numbers with np.save"),
        ("torch legacy", "is a file of torch.save, not an .npy file"),
        *((f"pickle {protocol}", "is a bare pickle, not an .npy file; write it with np.save") for protocol in range(6)),
        ("npz", "is an archive as np.savez writes it, not an .npy file; write it with np.save"),
        ("git lfs", "is a pointer of Git LFS, not the data; fetch it: git lfs pull"),
        ("git annex", "is a pointer of git-annex, not the data; fetch it: git annex get"),
    ],
)
def test_other_files_are_recognised(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_npy(saved(kind, tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / 'numpy_embs.npy'} {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"train": []}), "it holds a value of type dict where the array of the .npy file belongs"),
        (pickle.dumps([1, 2]), "it holds a value of type list where the array"),
        (pickle.dumps(np.zeros(3)), "its array holds no objects"),
        (pickle.dumps(np.float32(1)), "it holds a value of type float"),
        (b"\x80\x04cnumpy\nndarray\n(K\x03tR.", "its parts do not fit together"),
        (b"\x80\x04cnumpy\ndtype\n(K\x03tR.", "dtype a value of type int"),
        (b"\x80\x04N(K\x01tb.", "state is not a dictionary"),
        (b"\x80\x04\xff.", "invalid load key"),
    ],
)
def test_a_damaged_pickle_says_what_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "numpy_embs.npy").write_bytes(npy_bytes(content))
    with pytest.raises(DataError, match=r"numpy_embs.npy: its pickle is damaged \(.*\); write it again: np.save") as caught:
        read_npy(tmp_path / "numpy_embs.npy")
    assert said in str(caught.value)
    assert not any(name in str(caught.value) for name in ("attribute", "_Name", "_Dtype", "Array", "_Scalar"))


RECONSTRUCTED = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


@pytest.mark.parametrize(
    "content",
    [
        RECONSTRUCTED + b".",
        RECONSTRUCTED + b"(K\x01)cnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntRI00\n]NatbN0.",
        RECONSTRUCTED + b"(K\x01(X\x01\x00\x00\x00atcnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntRI00\n]Natb.",
    ],
    ids=["without state", "of None", "of a shape that is text"],
)
def test_an_array_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "numpy_embs.npy").write_bytes(npy_bytes(b"\x80\x03" + content))
    with pytest.raises(DataError, match=r"numpy_embs.npy(: its pickle is damaged \(| holds a value of type NoneType)") as caught:
        read_npy(tmp_path / "numpy_embs.npy")
    assert "Array" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "numpy_embs.npy")
    with pytest.raises(DataError, match=r"numpy_embs.npy is a pipe, not a file; set --source-path to the folder that holds"):
        read_npy(tmp_path / "numpy_embs.npy")
    with pytest.raises(DataError, match="/dev/zero is a device, not a file"):
        read_npy(Path("/dev/zero"))
    with pytest.raises(DataError, match="cannot read it: embedded null byte"):
        read_npy(tmp_path / "a\0b")


def test_a_path_that_is_an_array(tmp_path: Path) -> None:
    read = read_npy(write_npy(tmp_path, {"train": [*make_rows(2), {"embedding": [1.0] * 8, "file_path": np.zeros(2)}]}))["train"]
    assert str(read.problems[0]) == "row 2: file_path is an array, not a string"
