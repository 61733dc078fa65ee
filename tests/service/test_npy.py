import copyreg
import gc
import os
import pickle
import re
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import make_rows, npy_bytes, npy_of, write_npy

from cpstream_service.errors import DataError
from cpstream_service.sources import npy, pickled
from cpstream_service.sources.rows import ByteRows

read_npy = partial(npy.read_npy, apart=False)  # test_npy_apart.py has the other way


def vectors(dtype: str = "f4", count: int = 5, dimension: int = 6) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(1).standard_normal((count, dimension)) * 50).astype(dtype)


def rows_of(embeddings: Any) -> list[dict[str, Any]]:
    return [{"embedding": embedding, "file_path": f"a/{i}.wav"} for i, embedding in enumerate(embeddings)]


def read_one(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return read_npy(path)


# Sound files


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "f2", "i1", "u1", "<i2", ">i4", "i8", "u8", "g"])
def test_arrays_of_any_number_type(tmp_path: Path, protocol: int, dtype: str) -> None:
    expected = vectors(dtype)
    read = read_one(tmp_path / "x.npy", npy_of({"train": rows_of(list(expected))}, protocol))
    assert list(read) == ["train"]
    assert np.asarray(read["train"].embeddings).dtype == np.float32
    np.testing.assert_array_equal(read["train"].embeddings, expected.astype("f4"))
    assert read["train"].file_paths == [f"a/{i}.wav" for i in range(5)]
    assert read["train"].problems == []


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.tolist(),
        lambda x: tuple(x.tolist()),
        list,
        lambda x: list(x.astype(">f8")),
        lambda x: list(x.astype("i4")),
        lambda x: x.astype(object),
        lambda x: [float(x[0]), int(x[1]), *x[2:]],
    ],
    ids=["list", "tuple", "numpy-scalars", "big-endian-scalars", "int-scalars", "object-array", "mixed"],
)
def test_sequences_of_numbers(tmp_path: Path, convert: Any) -> None:
    embeddings = [convert(vector) for vector in vectors()]
    path = write_npy(tmp_path, {"train": rows_of(embeddings)})
    expected = np.array([[float(x) for x in embedding] for embedding in embeddings], np.float32)
    np.testing.assert_array_equal(read_npy(path)["train"].embeddings, expected)


def test_names_of_numpy_1(tmp_path: Path) -> None:
    data = npy_of({"train": rows_of([list(x) for x in vectors()] + list(vectors()))}, protocol=3)
    assert b"cnumpy._core.multiarray\n" in data
    read = read_one(tmp_path / "x.npy", data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    np.testing.assert_array_equal(read["train"].embeddings, np.concatenate([vectors(), vectors()]))


@pytest.mark.parametrize(
    "container", [dict, OrderedDict, lambda pairs: defaultdict(list, pairs)], ids=["dict", "OrderedDict", "defaultdict"]
)
def test_containers(tmp_path: Path, container: Any) -> None:
    splits = container([("train", tuple(rows_of(vectors()))), ("dev", np.array(rows_of(vectors(count=2)), dtype=object))])
    read = read_npy(write_npy(tmp_path, splits))
    assert {name: len(split.file_paths) for name, split in read.items()} == {"train": 5, "dev": 2}


def test_only_the_splits_asked_for(tmp_path: Path) -> None:
    path = write_npy(tmp_path, {"train": make_rows(3), "dev": make_rows(2), "test": make_rows(1)})
    assert list(read_npy(path, ("test", "train"))) == ["test", "train"]
    with pytest.raises(DataError, match=r"numpy_embs.npy has no split 'trian'; it has: 'train', 'dev', 'test'; set --splits"):
        read_npy(path, ("trian",))


def test_float32_arrays_are_kept_as_they_were_read(tmp_path: Path) -> None:
    rows = make_rows(4)
    embeddings = read_npy(write_npy(tmp_path, {"train": rows}))["train"].embeddings
    assert isinstance(embeddings, ByteRows)
    assert (embeddings.shape, len(embeddings)) == ((4, 8), 4)
    np.testing.assert_array_equal(embeddings[2], rows[2]["embedding"])
    np.testing.assert_array_equal(embeddings[1:3], [row["embedding"] for row in rows[1:3]])
    np.testing.assert_array_equal(embeddings[np.array([3, 0, 3])], [rows[i]["embedding"] for i in (3, 0, 3)])
    assert embeddings[np.array([], np.int64)].shape == (0, 8)


def test_the_same_array_in_two_rows(tmp_path: Path) -> None:
    one = vectors()[0]
    read = read_npy(write_npy(tmp_path, {"train": rows_of([one, vectors()[1], one])}))
    np.testing.assert_array_equal(read["train"].embeddings, [one, vectors()[1], one])


def test_garbage_collection_goes_on_after_a_failure(tmp_path: Path) -> None:
    assert gc.isenabled()
    with pytest.raises(DataError):
        read_one(tmp_path / "x.npy", npy_of({"train": rows_of(vectors())})[:-20])
    assert gc.isenabled()


# Rows that cannot be used


@pytest.mark.parametrize(
    ("row", "where", "said"),
    [
        ({"file_path": "b.wav"}, "row 2 (b.wav)", "no key 'embedding'; its keys: 'file_path'"),
        ({"embedding": [1.0] * 8}, "row 2", "no key 'file_path'; its keys: 'embedding'"),
        ({}, "row 2", "no key 'embedding'; its keys: none"),
        ("b.wav", "row 2", "it is a value of type str, not a dict"),
        (None, "row 2", "it is a value of type NoneType, not a dict"),
        (np.zeros(8, np.float32), "row 2", "it is an array, not a dict"),
        ({"embedding": "1.0 2.0", "file_path": "b.wav"}, "row 2 (b.wav)", "the embedding is a value of type str, not numbers"),
        ({"embedding": None, "file_path": "b.wav"}, "row 2 (b.wav)", "the embedding is a value of type NoneType, not numbers"),
        ({"embedding": ["1.0"] * 8, "file_path": "b.wav"}, "row 2 (b.wav)", "the embedding is not 8 numbers"),
        ({"embedding": [[1.0]] * 8, "file_path": "b.wav"}, "row 2 (b.wav)", "the embedding is not 8 numbers"),
        ({"embedding": np.array(["1.0"] * 8), "file_path": "b.wav"}, "row 2 (b.wav)", "the embedding is an array of <U3"),
        (
            {"embedding": np.zeros((2, 4), np.float32), "file_path": "b.wav"},
            "row 2 (b.wav)",
            "has shape (2, 4); it must have one dimension",
        ),
        (
            {"embedding": np.float32(1), "file_path": "b.wav"},
            "row 2 (b.wav)",
            "the embedding is a value of type float, not numbers",
        ),
        ({"embedding": [1.0] * 8, "file_path": ""}, "row 2", "file_path is empty"),
        ({"embedding": [1.0] * 8, "file_path": "./"}, "row 2", "file_path './' names no file"),
        ({"embedding": [1.0] * 8, "file_path": b"b.wav"}, "row 2", "file_path is bytes, not a string"),
        ({"embedding": [1.0] * 8, "file_path": "\ud800.wav"}, "row 2", "file_path is not valid Unicode"),
    ],
)
def test_an_unreadable_row_is_left_out_and_named(tmp_path: Path, row: Any, where: str, said: str) -> None:
    rows = [*make_rows(2), row, *make_rows(2, seed=3)]
    read = read_npy(write_npy(tmp_path, {"train": rows}))["train"]
    assert read.embeddings.shape == (4, 8)
    np.testing.assert_array_equal(read.embeddings[3], rows[4]["embedding"])
    assert len(read.file_paths) == 4
    (problem,) = read.problems
    assert problem.reason.code == "unreadable-row"
    assert str(problem).startswith(where + ": ")
    assert said in problem.detail


@pytest.mark.parametrize("as_list", [True, False])
def test_ragged_embeddings_keep_the_most_common_dimension(tmp_path: Path, as_list: bool) -> None:
    rows = [*make_rows(2, 7, as_list=as_list), *make_rows(3, 8, as_list=as_list), {"embedding": [], "file_path": "e.wav"}]
    read = read_npy(write_npy(tmp_path, {"train": rows}))["train"]
    np.testing.assert_array_equal(read.embeddings, np.array([row["embedding"] for row in rows[2:5]], np.float32))
    assert [problem.reason.code for problem in read.problems] == ["wrong-dimension"] * 3
    assert str(read.problems[0]) == "row 0 (audio/0000.wav): the embedding has 7 numbers; most rows of 'train' have 8"


def test_empty_embeddings_only(tmp_path: Path) -> None:
    read = read_npy(write_npy(tmp_path, {"train": [{"embedding": [], "file_path": "a.wav"}], "dev": []}))
    assert read["train"].embeddings.shape == (0, 0)
    assert read["train"].problems[0].detail == "the embedding is empty"
    assert read["dev"].embeddings.shape == (0, 0)


# Files that are no source


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty; write it with np.save"),
        (
            npy_of({"train": make_rows(50)})[:-700],
            r"is truncated: it ends after \d+ bytes, within the data; copy or write it again",
        ),
        (npy_of({"train": make_rows(5)})[:60], r"is truncated: it ends after 60 bytes"),
        (b"\x93NU", r"is truncated: it ends after 3 bytes"),
        (b"PK\x03\x04....", "is an archive as np.savez writes it"),
        (pickle.dumps({"train": []}), "is a bare pickle, not an .npy file"),
        (b"audio_path,cps\n", r"is not an .npy file \(it starts with b'audio_'\)"),
        (npy_of([1, 2]), "holds a value of type list, not a dict of splits"),
        (npy_of("train"), "holds a value of type str, not a dict of splits"),
        (npy_of({}), "holds an empty dict"),
        (npy_of({1: []}), "its key 1 is not the name of a split"),
        (npy_of({"train": {"embedding": [1.0]}}), "split 'train' holds a value of type dict, not a list of rows"),
        (npy_of({"train": np.zeros((3, 4))}), "split 'train' holds an array, not a list of rows"),
        (npy_bytes(b"\xffgarbage"), "its pickle is damaged"),
        (npy_bytes(pickle.dumps({"train": []})), "its pickle is damaged"),
    ],
)
def test_a_file_that_is_no_source(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_one(tmp_path / "numpy_embs.npy", data)
    assert str(caught.value).startswith(str(tmp_path / "numpy_embs.npy"))
    assert "np.save(path" in str(caught.value) or "write it again" in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"numpy_embs.npy: there is no such file; set --source-path to the folder that holds"):
        read_npy(tmp_path / "numpy_embs.npy")
    with pytest.raises(DataError, match="cannot read it: Is a directory"):
        read_npy(tmp_path)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 4)), r"plain array of float64 with shape \(3, 4\)"),
        (np.array([{}, {}]), r"array of objects with shape \(2,\), not one dict"),
    ],
)
def test_another_array(tmp_path: Path, array: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_npy(write_npy(tmp_path, array))


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    data = npy_of({"train": [*make_rows(2), *make_rows(1, as_list=True)]})
    for length in range(0, len(data), 3):
        with pytest.raises(DataError, match=r"truncated|empty|damaged"):
            read_one(tmp_path / "x.npy", data[:length])


# Hostile files


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def hostile_calls(marker: Path) -> dict[str, Any]:
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, f"touch {marker}"),
        "builtins.eval": Call(eval, touch),
        "builtins.exec": Call(exec, touch),
        "io.open": Call(open, str(marker), "w"),
        "builtins.getattr": Call(getattr, Call(__import__, "os"), "system"),
        "subprocess.Popen": Call(__import__("subprocess").Popen, ["touch", str(marker)]),
        "pathlib.Path.touch": Call(Path.touch, marker),
        "numpy.load": Call(np.load, str(marker), None, True),
        "numpy.lib": Call(np.save, str(marker), [1]),
        "numpy._core.memmap": Call(np.memmap, str(marker), "u1", "w+", 0, (1,)),
        "numpy.testing": Call(np.testing.measure, touch),
        "copyreg": Call(copyreg._reconstructor, object, object, None),  # type: ignore[attr-defined]
    }


PLACES: dict[str, Any] = {
    "whole": lambda payload: payload,
    "split": lambda payload: {"train": payload},
    "row": lambda payload: {"train": [payload]},
    "embedding": lambda payload: {"train": [{"embedding": payload, "file_path": "a.wav"}]},
    "number": lambda payload: {"train": [{"embedding": [1.0, payload], "file_path": "a.wav"}]},
    "element": lambda payload: {"train": [{"embedding": np.array([1.0, payload], dtype=object), "file_path": "a.wav"}]},
    "path": lambda payload: {"train": [{"embedding": [1.0], "file_path": payload}]},
    "unused": lambda payload: {"train": make_rows(2), "other": [[[payload]]]},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", hostile_calls(Path("marker")))
def test_a_hostile_pickle_executes_nothing(tmp_path: Path, name: str, place: str) -> None:
    marker = tmp_path / "executed"
    data = npy_of(PLACES[place](hostile_calls(marker)[name]))
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"its pickle names .*, which embeddings do not need, so it was not run") as caught:
        read_npy(tmp_path / "x.npy", ("train",))
    assert not marker.exists()
    assert re.search(r"names (posix|builtins|_?io|subprocess|pathlib|numpy|copyreg)\b", str(caught.value))


def test_a_control_the_same_pickle_does_execute(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "x.npy").write_bytes(npy_of(hostile_calls(marker)["posix.system"]))
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert marker.exists()


def object_pointers(count: int = 4) -> bytes:
    """A pickle of an array whose dtype is object, but whose flags say plain bytes: numpy would follow them as pointers."""
    multiarray = b"cnumpy._core.multiarray\n"
    dtype = b"cnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntR(I3\nX\x01\x00\x00\x00|NNNI-1\nI-1\nI0\ntb"
    data = b"C" + bytes([8 * count]) + b"\x41" * (8 * count)
    inner = multiarray + b"_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR(I1\n(I%d\nt" % count + dtype + b"I00\n" + data + b"tb"
    row = b"(X\x09\x00\x00\x00embedding" + inner + b"X\x09\x00\x00\x00file_pathX\x05\x00\x00\x00a.wavd"
    content = b"(X\x05\x00\x00\x00train(" + row + b"ld"
    plain_dtype = b"cnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntR"
    return (
        b"\x80\x03"
        + multiarray
        + b"_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR(I1\n(t"
        + plain_dtype
        + b"I00\n("
        + content
        + b"ltb."
    )


def test_bytes_of_the_file_are_never_taken_for_pointers(tmp_path: Path) -> None:
    read = read_one(tmp_path / "x.npy", npy_bytes(object_pointers()))["train"]
    assert len(read.embeddings) == 0
    assert "row 0 (a.wav)" in str(read.problems[0])


@pytest.mark.parametrize(
    "name", ["numpy dtype", "numpy ndarray", "numpy._core.multiarray _reconstruct", "numpy._core.multiarray scalar"]
)
def test_a_pickle_cannot_write_into_what_it_may_name(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    before = {key: dict(vars(value)) for key, value in vars(pickled).items() if isinstance(value, type)}
    state = b"(N(X\x0c\x00\x00\x00__setstate__I1\ndt"  # (None, {"__setstate__": 1}): attributes to set
    with pytest.raises(DataError, match="its pickle is damaged"):
        read_one(tmp_path / "x.npy", npy_bytes(b"\x80\x03c%s\n%s\n" % (module.encode(), attribute.encode()) + state + b"b."))
    assert before == {key: dict(vars(value)) for key, value in vars(pickled).items() if isinstance(value, type)}


@pytest.mark.parametrize("code", ["O", "V8", "M8[s]", "f4,f4", "(2,2)f4", "U99999999999", "nonsense"])
def test_other_dtypes_are_refused(tmp_path: Path, code: str) -> None:
    scalar = b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X%s%sI00\nI01\ntRC\x08AAAAAAAAtR." % (
        len(code).to_bytes(4, "little"),
        code.encode(),
    )
    with pytest.raises(DataError, match="its pickle is damaged"):
        read_one(tmp_path / "x.npy", npy_bytes(b"\x80\x03" + scalar))
