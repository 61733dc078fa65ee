"""A split as one Parquet file, <snapshot_dir>/<key>/<split>/data.parquet: made when first asked for, removed for want of room.

Columns: index int64, file_path string, cps and further labels float32, embedding fixed_size_list<float32>[D]; nothing is nullable.
Embeddings are neither compressed nor given a dictionary or statistics: floats do not shrink, and nobody filters by them.
"""

import errno
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpstream_client.contract.wire import batch_schema
from cpstream_client.files import no_follow

from ..arrow import numbers
from .background import at_low_priority
from .exports import kept
from .store import Split

logger = logging.getLogger("cpstream.service")

NAME = "data.parquet"
MADE_BY: Mapping[str, str] = {"form": "1", "pyarrow": pa.__version__}
"""All that the bytes depend on, beside the split. form: one more when what is written here changes."""
_GROUP_BYTES, _MOST_ROWS = 32 * 1024**2, 128 * 1024
_REMEDY = "free space beside the snapshot (--snapshot-dir), or take embeddings.npy"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@at_low_priority
def open_parquet(split: Split) -> int:
    """A descriptor of the file. Where the snapshot's folder cannot be written to, it is one of this process alone, in TMPDIR.

    Where there is no room, files of the same kind of other splits and versions are removed, the oldest first. Raises OSError, which
    names the disk, where that does not help.
    """
    while True:
        try:
            file = kept(split, NAME, lambda path: _write(path, split), _open, MADE_BY)
        except OSError as error:
            if error.errno not in _NO_ROOM or not _evicted_one(split):
                raise
        else:
            return _of_this_process(split) if file is None else file


def _open(path: Path) -> int:
    return no_follow(str(path), os.O_RDONLY | os.O_CLOEXEC)


def _of_this_process(split: Split) -> int:
    with tempfile.NamedTemporaryFile(prefix="cpstream-parquet-") as file:
        _write(Path(file.name), split)
        return _open(Path(file.name))


def _evicted_one(split: Split) -> bool:
    """Remove the oldest file of this kind beside; whether there was one. Who has it open keeps it until they close it."""
    others = [path for path in split.path.parents[1].glob(f"*/*/{NAME}") if path.parent != split.path]
    if not others:
        return False
    oldest = min(others, key=lambda path: path.stat().st_mtime)
    logger.info("removed %s, which is made again when it is asked for: the disk has no room for another", oldest)
    oldest.unlink()
    return True


def _write(path: Path, split: Split) -> None:
    try:
        with open(path, "wb", opener=no_follow) as file:
            _write_to(file, split)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise OSError(error.errno, f"{os.strerror(error.errno)}; {_REMEDY}", str(path.parent)) from None
        raise


def _write_to(file: IO[bytes], split: Split) -> None:
    rows = max(1, min(_MOST_ROWS, _GROUP_BYTES // (split.info.embedding_dim * 4)))
    labels = sorted(split.labels)
    columns = ("index", "file_path", "cps", *labels, "embedding")
    schema = batch_schema(split.info.embedding_dim, "float32", columns, {"split": split.name, "fingerprint": split.fingerprint})
    with pq.ParquetWriter(
        file,
        schema,
        compression={column: "zstd" if column == "file_path" else "none" for column in _leaves(schema)},
        use_dictionary=False,
        write_statistics=["index", "file_path", "cps", *labels],
    ) as writer:
        for low in range(0, len(split.cps), rows):
            part = slice(low, min(low + rows, len(split.cps)))
            embeddings = numbers(split.embeddings[part].reshape(-1))
            arrays = [
                numbers(np.arange(part.start, part.stop)),
                split.file_paths[part],
                numbers(split.cps[part]),
                *(numbers(split.labels[name][part]) for name in labels),
                pa.FixedSizeListArray.from_arrays(embeddings, type=schema.field("embedding").type),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows)


def _leaves(schema: pa.Schema) -> list[str]:
    """Names of the columns as Parquet has them: of a list, that of its elements."""
    return [f"{name}.list.element" if name == "embedding" else name for name in schema.names]
