"""Splits as one process hands them to another: in a file in memory, of which the reader maps the embeddings without a copy.

For each split, its embeddings, (M, D) float32, or where they lie in the source, (M,) int64; then JSON of the rest; then its length,
8 bytes.
"""

import json
import mmap
import os
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .file_rows import FileRows, Stamp
from .rows import ByteRows, Embeddings, Reason, RowProblem, SourceSplit, rows_per_chunk

_LENGTH_BYTES = 8
_PIECE_BYTES = 64 << 20
_REASONS = {reason.code: reason for reason in Reason}


def hand_over(file: IO[bytes], splits: Iterable[SourceSplit]) -> None:
    """Write splits, and let go of their rows on the way: both sides of a large file would hardly fit."""
    entries = []
    for split in splits:
        shape = tuple(split.embeddings.shape)
        _write_rows(file, split)
        entries.append(
            {
                "name": split.name,
                "shape": shape,
                "file_paths": split.file_paths,
                "problems": [(p.reason.code, p.where, p.detail, p.file_path) for p in split.problems],
                "in_file": isinstance(split.embeddings, FileRows),
                "columns": {name: list(map(_plain, values)) for name, values in split.columns.items()},
            }
        )
    _finish(file, {"splits": entries})


def refuse(file: IO[bytes], error: str) -> None:
    """Write why there is nothing, in place of splits."""
    _finish(file, {"error": error})


def take_over(descriptor: int, source: int, name: str, stamp: Stamp) -> dict[str, SourceSplit] | str:
    """What hand_over wrote, or refuse. source: the file of that name, in which FileRows lie; stamp: as it was found.

    Raises ValueError, LookupError or OSError where neither came to its end.
    """
    size = os.fstat(descriptor).st_size
    if size < _LENGTH_BYTES:
        raise ValueError("nothing was written")
    memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    end = size - _LENGTH_BYTES
    start = end - int.from_bytes(memory[end:], "little")
    content = json.loads(memory[start:end])
    if "error" in content:
        return str(content["error"])
    found, offset = {}, 0
    for entry in content["splits"]:
        count, dimension = entry["shape"]
        embeddings: Embeddings
        if entry["in_file"]:
            offsets = np.frombuffer(memory, np.int64, count, offset).copy()
            offset += offsets.nbytes
            embeddings = FileRows(os.dup(source), offsets, dimension, name, stamp)
        else:
            embeddings = np.frombuffer(memory, np.float32, count * dimension, offset).reshape(count, dimension)
            offset += embeddings.nbytes
        problems = [RowProblem(_REASONS[code], *rest) for code, *rest in entry["problems"]]
        columns = {name: list(map(_given, values)) for name, values in entry["columns"].items()}
        found[entry["name"]] = SourceSplit(entry["name"], entry["file_paths"], embeddings, problems, columns=columns)
    return found


def _write_rows(file: IO[bytes], split: SourceSplit) -> None:
    embeddings = split.embeddings
    if isinstance(embeddings, ByteRows):
        rows = embeddings.rows
        step = rows_per_chunk(embeddings.dimension)
        for low in range(0, len(rows), step):
            _write(file, b"".join(rows[low : low + step]))
            rows[low : low + step] = [b""] * len(rows[low : low + step])
    else:
        _write(file, _bytes_of(embeddings.offsets if isinstance(embeddings, FileRows) else embeddings))


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write(file: IO[bytes], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view[:_PIECE_BYTES]) :]


def _finish(file: IO[bytes], content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    _write(file, data)
    _write(file, len(data).to_bytes(_LENGTH_BYTES, "little"))


# Further values of rows. Numbers and text are what rates are made of; of anything else only its type counts, for messages.


def _plain(value: object) -> Any:
    if value is None or isinstance(value, (str, bool, float)) or (isinstance(value, int) and value.bit_length() <= 1024):
        return value
    return [type(value).__name__]


def _given(value: Any) -> Any:
    return _type_named(value[0]) if isinstance(value, list) else value


def _type_named(name: str) -> object:
    """Something of no use whose type has this name."""
    return type(name, (), {"__slots__": ()})()
