"""Embeddings from Parquet: a file, a folder of shards, or a folder of the Hugging Face library `datasets` (save_to_disk).

Columns `embedding` (lists of numbers) and `file_path`, optionally `split` and others. Where there is no column `split`, the splits
are those of a saved DatasetDict, of folders split=NAME, or of files NAME-00000-of-00001.parquet; or else all is one split ALL.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DataError, MissingFileError
from ..progress import Bar
from ..text import listed
from .collect import Collector
from .formats import HEAD_BYTES, check_pointer
from .limits import memory_limit
from .regular import files_under, open_regular
from .rows import ALL, LONGEST_NO_NAME, NO_NAME, Reason, SourceSplit, path_problem

WHAT = "a Parquet file, a folder of them, or a folder written by datasets' save_to_disk"
EMBEDDING, FILE_PATH, SPLIT = "embedding", "file_path", "split"
_NUMBER_BYTES = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}
BATCH_ROWS = 4096
_HUB_NAME = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.parquet")
_HUB_SPLITS = frozenset({"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"})


@dataclass(frozen=True)
class Shard:
    """One file. split: of all its rows, where its place says so."""

    path: Path
    split: str | None = None


def parquet_files(path: Path) -> list[Path]:
    """The files that are read. Raises DataError."""
    return [shard.path for shard in shards(path)]


def shards(path: Path) -> list[Shard]:
    """The files of a source, in order. Raises DataError where there is none."""
    if not path.exists():
        raise MissingFileError(f"{path}: there is no such file or folder; set --source-path to {WHAT}")
    if not path.is_dir():
        return [Shard(path)]
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json").get("splits", [])
        return [shard for name in names for shard in _saved(path / str(name), str(name))]
    if (path / "state.json").is_file():
        return _saved(path, None)
    files = list(files_under(path, ".parquet"))
    if not files:
        raise DataError(f"{path} holds no .parquet file and no saved dataset; set --source-path to {WHAT}")
    hub = [_HUB_NAME.fullmatch(file.name) for file in files]
    of_hub = [match["split"] if match and match["split"] in _HUB_SPLITS else None for match in hub]
    if None in of_hub:
        of_hub = [None] * len(files)
    return [Shard(file, _of_folder(file.relative_to(path)) or split) for file, split in zip(files, of_hub, strict=True)]


def _saved(folder: Path, split: str | None) -> list[Shard]:
    """The files of a Dataset that save_to_disk wrote."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder} was saved with indices over its rows; save it again after flatten_indices()")
    names = [str(file.get("filename")) for file in state.get("_data_files", [])]
    if not names or any("/" in name for name in names):
        raise DataError(f"{folder / 'state.json'} names no data files; save the dataset again by save_to_disk")
    return [Shard(folder / name, split or (str(state["_split"]) if state.get("_split") else None)) for name in names]


def _json(path: Path) -> dict[str, Any]:
    with open_regular(path, WHAT) as file:
        try:
            body = json.load(file)
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); save the dataset again by save_to_disk") from None
    if not isinstance(body, dict):
        raise DataError(f"{path} is no JSON object; save the dataset again by save_to_disk")
    return body


def _of_folder(path: Path) -> str | None:
    """The split that a folder split=NAME says, as partitioned datasets are written."""
    names = [part.removeprefix(f"{SPLIT}=") for part in path.parts[:-1] if part.startswith(f"{SPLIT}=")]
    return unquote(names[-1]) if names else None


def read_parquet(path: Path, columns: Sequence[str] = (), *, progress: bool = False) -> dict[str, SourceSplit]:
    """All splits of a source. columns: further ones to keep, as far as they are there. Raises DataError."""
    found: dict[str, Collector] = {}
    lost: list[tuple[str, object, object]] = []
    several = len(files := shards(path)) > 1
    with Bar(None, path.name, disable=None if progress else True, delay=2, unit=" rows") as bar:
        for shard in files:
            first = 0
            for batch in _one_ahead(_batches(shard.path, (EMBEDDING, FILE_PATH, SPLIT, *columns))):
                _add_batch(found, lost, shard, f"{shard.path.name}, row" if several else "row", first, batch, columns)
                first += len(batch)
                bar.update(len(batch))
    if not found:
        raise DataError(
            f"{path} holds no row that belongs to a split; write {EMBEDDING!r}, {FILE_PATH!r} and {SPLIT!r} in each row"
        )
    for where, value, file_path in lost:
        detail = "it names no split" if value is None else f"its split is {str(value)[:40]!r}, not the name of one"
        next(iter(found.values())).refuse(where, detail, file_path, Reason.NO_SPLIT)
    return {name: found.pop(name).finish() for name in list(found)}


def _one_ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Each while a thread unpacks the next. Raises as they do."""
    with ThreadPoolExecutor(1, thread_name_prefix="parquet") as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a file, with those of the columns that it has. Raises DataError."""
    with open_regular(path, WHAT) as file:
        check_pointer(path, head := file.peek(HEAD_BYTES))  # type: ignore[attr-defined] # it is a BufferedReader
        try:
            if path.suffix == ".arrow":
                yield from _measured(path, file, _arrow_batches(path, file, head, columns))
                return
            with pq.ParquetFile(file) as parquet:
                names = _wanted(path, parquet.schema_arrow.names, columns)
                if _number_bytes(parquet.metadata, names) > memory_limit(os.fstat(file.fileno()).st_size):
                    raise _too_much(path, file)
                yield from _measured(path, file, parquet.iter_batches(BATCH_ROWS, columns=names))
        except (pa.ArrowException, OSError, ValueError) as error:
            text = str(error).splitlines()[0][:200]
            raise DataError(
                f"{path}: cannot read it as {'Arrow' if path.suffix == '.arrow' else 'Parquet'} ({text}); write it again"
            ) from None


def _number_bytes(metadata: pq.FileMetaData, names: Sequence[str]) -> int:
    """What the numbers of some columns take, as the file says before it is unpacked: one value, repeated, takes no space in it."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = (group.column(i) for group in groups for i in range(group.num_columns))
    wanted = (column for column in columns if column.path_in_schema.partition(".")[0] in names)
    return sum(column.num_values * _NUMBER_BYTES.get(column.physical_type, 0) for column in wanted)


def _measured(path: Path, file: IO[bytes], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches, as long as they do not take more than a file of this size can hold. Raises DataError."""
    left = memory_limit(os.fstat(file.fileno()).st_size)
    for batch in batches:
        left -= batch.nbytes
        if left < 0:
            raise _too_much(path, file)
        yield _validated(batch)


def _too_much(path: Path, file: IO[bytes]) -> DataError:
    size = os.fstat(file.fileno()).st_size
    return DataError(
        f"{path}: its {size} bytes unpack to more than {memory_limit(size) >> 20} MB: it is damaged, or made to; write it again, "
        "without compression and dictionaries if it is sound"
    )


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Arrow believes what a file says of itself: offsets that lead out of memory, text that is none."""
    batch.validate(full=True)
    return batch


def _arrow_batches(path: Path, file: Any, head: bytes, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_stream(file) if not head.startswith(b"ARROW1") else pa.ipc.open_file(file) as reader:
        names = _wanted(path, reader.schema.names, columns)
        batches = reader if not head.startswith(b"ARROW1") else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            yield batch.select(names)


def _wanted(path: Path, held: Sequence[str], columns: Sequence[str]) -> list[str]:
    for name in (EMBEDDING, FILE_PATH):
        if list(held).count(name) != 1:
            raise DataError(
                f"{path}: column {name!r} {'is missing' if name not in held else 'occurs more than once'}; it has: "
                f"{listed(held)}; rename the column"
            )
    return [name for name in dict.fromkeys(columns) if name in held]


def _add_batch(
    found: dict[str, Collector],
    lost: list[tuple[str, object, object]],
    shard: Shard,
    where: str,
    first: int,
    batch: pa.RecordBatch,
    columns: Sequence[str],
) -> None:
    """Put a batch's rows to their splits; those of none to `lost`."""
    held = set(batch.schema.names)
    paths: list[Any] = batch.column(FILE_PATH).to_pylist()
    are_paths = _are_paths(batch.column(FILE_PATH))
    splits = batch.column(SPLIT).to_pylist() if SPLIT in held else [shard.split or ALL] * len(paths)
    values = {name: batch.column(name).to_pylist() if name in held else [None] * len(paths) for name in columns}
    matrix = block(batch.column(EMBEDDING))
    rows: list[Any] | None = None if matrix is not None else batch.column(EMBEDDING).to_pylist()
    names = dict.fromkeys(splits)
    for split in names:
        is_all = len(names) == 1
        at = range(len(paths)) if is_all else [i for i, other in enumerate(splits) if other == split]
        if path_problem(split) is not None:
            lost.extend((f"{where} {first + i}", split, paths[i]) for i in at)
            continue
        collector = found.setdefault(split, Collector(split, columns))
        if matrix is not None and (are_paths or not any(path_problem(paths[i]) for i in at)):
            numbers = range(first, first + len(paths)) if is_all else [first + i for i in at]
            if is_all:
                collector.add_block(where, numbers, paths, matrix, values)
            else:
                of_split = {name: [column[i] for i in at] for name, column in values.items()}
                collector.add_block(where, numbers, [paths[i] for i in at], matrix[at], of_split)
            continue
        for i in at:
            embedding = matrix[i] if matrix is not None else (rows or [])[i]
            of_row = {name: column[i] for name, column in values.items()}
            if embedding is None:
                collector.refuse(f"{where} {first + i}", "the embedding is null", paths[i])
            else:
                collector.add(f"{where} {first + i}", paths[i], embedding, of_row)


def _are_paths(column: pa.Array) -> bool:
    """Whether all are paths, by a look at all of them at once; False where it takes one at each."""
    if column.null_count or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return False
    names = pc.utf8_length(pc.utf8_trim(column, NO_NAME))
    return bool((pc.min(names).as_py() or 0) > LONGEST_NO_NAME)


def block(column: pa.Array) -> npt.NDArray[np.float32] | None:
    """A column of lists as (B, D) float32; None unless all are of one length, without nulls, and vectors but for singleton axes."""
    count, sizes = len(column), []
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if column.null_count or not len(column):
            return None
        if pa.types.is_fixed_size_list(column.type):
            sizes.append(column.type.list_size)
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            lengths = np.asarray(column.value_lengths())
            if lengths.min() != lengths.max():
                return None
            sizes.append(int(lengths[0]))
        else:
            break
        column = column.flatten()
    if not sizes or max(sizes) != np.prod(sizes) or not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return None
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(column.to_numpy().reshape(count, max(sizes)), np.float32)
