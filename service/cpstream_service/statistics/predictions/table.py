"""A table of predictions, joined to the samples of a split. Runs in a process of its own: reading.py starts it."""

import json
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from cpstream_client.contract.wire import ARROW_FILE, ARROW_STREAM, CSV, FILE_PATH, INDEX, PARQUET, PREDICTED

from ...arrow import numbers
from ...orphans import die_with
from ...sources.limits import limit_process

_EXAMPLES, _EXAMPLE_CHARS = 5, 200
_FORM = f"it needs a column {PREDICTED!r} and one of {FILE_PATH!r} and {INDEX!r}"

Doubles = npt.NDArray[np.float64]


class Unreadable(Exception):
    """The table is none. The message says why."""


def main(task: dict[str, Any]) -> None:
    """Read the table open as task["source"] and write what it says to that open as task["target"]; never returns."""
    die_with(task["parent"])
    limit_process(task["memory_bytes"], task["cpu_s"])
    with open(task["target"], "wb", closefd=False) as target:
        try:
            with open(task["source"], "rb", closefd=False) as source:
                table = read(source.read(), task["media_type"])
            with pa.memory_map(task["paths"]) as file, pa.ipc.open_file(file) as reader:
                predicted, found = joined(table, reader.get_batch(0).column(0))
            _write(target, found, predicted.tobytes())
        except Unreadable as error:
            _write(target, {"refused": str(error)})
        except (MemoryError, pa.ArrowMemoryError):
            _write(target, {"refused": "the table takes far more memory than bytes to be read; send it as CSV"})
        except (pa.ArrowException, ValueError, OSError) as error:
            _write(
                target, {"refused": f"the body is no {task['media_type']} that can be read ({' '.join(str(error).split())[:300]})"}
            )
    os._exit(0)


def _write(target: Any, head: dict[str, object], body: bytes = b"") -> None:
    target.write(json.dumps(head).encode() + b"\n" + body)


def read(body: bytes, media_type: str) -> pa.Table:
    """The columns that count, key first. Raises Unreadable, ArrowException."""
    match media_type:
        case _ if media_type == CSV:
            as_text = pyarrow.csv.ConvertOptions(column_types={FILE_PATH: pa.string()}, strings_can_be_null=True)
            one_thread = pyarrow.csv.ReadOptions(use_threads=False)
            table = pyarrow.csv.read_csv(pa.BufferReader(body), one_thread, convert_options=as_text)
        case _ if media_type == PARQUET:
            import pyarrow.parquet as pq

            names = pq.read_schema(pa.BufferReader(body)).names
            wanted = [name for name in (INDEX, FILE_PATH, PREDICTED) if name in names]
            table = pq.read_table(pa.BufferReader(body), columns=wanted, use_threads=False)
        case _ if media_type == ARROW_STREAM:
            table = pa.ipc.open_stream(body).read_all()
        case _ if media_type == ARROW_FILE:
            table = pa.ipc.open_file(pa.BufferReader(body)).read_all()
        case _:
            raise Unreadable(f"{media_type} is no table of predictions")
    names = table.column_names
    keys = [name for name in (FILE_PATH, INDEX) if name in names]
    if PREDICTED not in names or not keys:
        raise Unreadable(f"the table has the columns {', '.join(map(repr, names))[:300]}; {_FORM}")
    for name in (keys[0], PREDICTED):
        if names.count(name) > 1:
            raise Unreadable(f"the table has several columns {name!r}; send one")
    return table.select([keys[0], PREDICTED])


def joined(table: pa.Table, paths: pa.StringArray) -> tuple[Doubles, dict[str, object]]:
    """What is predicted of each sample, (N,) float64, NaN where nothing; and what did not match. Raises Unreadable."""
    key, values = table.column_names[0], _numbers(table.column(1))
    at = _samples_of_paths(table.column(0), paths) if key == FILE_PATH else _samples_of_indices(table.column(0), len(paths))
    finite = np.isfinite(values)
    known = at >= 0
    usable = finite & known
    predicted = np.full(len(paths), np.nan)
    predicted[at[usable]] = values[usable]
    differing = np.unique(at[usable][predicted[at[usable]] != values[usable]])
    predicted[differing] = np.nan
    if not np.isfinite(predicted).any():
        rows = f"none of its {len(values)} rows" if len(values) else "it has no rows, so that none"
        examples = f": {_said(table.column(0), ~known)[0]!r}" if (~known).any() else ""
        raise Unreadable(f"{rows} predicts a finite number for a sample of this split{examples}; {_FORM} as this service has them")
    missing = np.flatnonzero(np.isnan(predicted) & ~np.isin(np.arange(len(paths)), differing))
    return predicted, {
        "unknown": {"count": int((~known).sum()), "examples": _said(table.column(0), ~known)},
        "not_finite": {"count": int((~finite & known).sum()), "examples": _said(table.column(0), ~finite & known)},
        "conflicting": {"count": len(differing), "examples": _paths(paths, differing)},
        "missing": {"count": len(missing), "examples": _paths(paths, missing)},
    }


def _numbers(column: pa.ChunkedArray) -> Doubles:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        if not pa.types.is_null(column.type):
            raise Unreadable(f"{PREDICTED!r} is of {column.type}; it must be of numbers")
        return np.full(len(column), np.nan)
    numbers: Doubles = pc.cast(column, pa.float64(), safe=False).combine_chunks().to_numpy(zero_copy_only=False)
    return numbers


def _samples_of_indices(column: pa.ChunkedArray, num_samples: int) -> npt.NDArray[np.int64]:
    """The sample of each row, -1 where it is of none."""
    if not (pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise Unreadable(f"{INDEX!r} is of {column.type}; it must be of whole numbers")
    at = pc.fill_null(pc.cast(column, pa.int64()), -1).combine_chunks().to_numpy(zero_copy_only=False)
    return np.where((at >= 0) & (at < num_samples), at, -1)


def _samples_of_paths(column: pa.ChunkedArray, paths: pa.StringArray) -> npt.NDArray[np.int64]:
    if pa.types.is_dictionary(column.type):  # of pandas' categories, say
        column = pc.cast(column, column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type)):
        raise Unreadable(f"{FILE_PATH!r} is of {column.type}; it must be of text")
    found = pc.index_in(pc.cast(column, pa.string()), value_set=paths, skip_nulls=True)
    at: npt.NDArray[np.int64] = pc.fill_null(pc.cast(found, pa.int64()), -1).combine_chunks().to_numpy(zero_copy_only=False)
    return at


def _said(column: pa.ChunkedArray, mask: npt.NDArray[np.bool_]) -> list[str]:
    """The first few of the keys where the mask is."""
    first = np.flatnonzero(mask)[:_EXAMPLES]
    return [str(value)[:_EXAMPLE_CHARS] for value in column.take(numbers(first)).to_pylist()]


def _paths(paths: pa.StringArray, at: npt.NDArray[np.int64]) -> list[str]:
    return [path[:_EXAMPLE_CHARS] for path in paths.take(numbers(at[:_EXAMPLES])).to_pylist()]
