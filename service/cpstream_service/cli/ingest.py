"""`cpstream ingest`: numpy_embs.npy into a Chroma collection."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..align.align import judge_rows
from ..errors import DataError
from ..settings import ChromaSettings, DataSettings
from ..sources.chroma.address import server_url
from ..sources.npy import read_npy
from ..sources.read import npy_file
from ..sources.rows import SourceSplit
from ..text import plain
from .common import Chroma, say

BATCH_ROWS = 1000


def ingest(
    source_path: Path,
    *,
    chroma_path: Path | None = None,
    server: Chroma = None,
    splits: tuple[str, ...] = (),
) -> int:
    """Put the embeddings of numpy_embs.npy into a Chroma collection, in a folder or on a server.

    It may be run again, after a kill or with new data: what is already there as it should be is left alone.

    **Examples**

    ```
    cpstream ingest data/processed/embeddings --chroma-path chroma
    cpstream ingest data/processed/embeddings --chroma-host localhost --chroma-port 8001
    cpstream ingest data/processed/embeddings --chroma-host chroma --collection-name speech --splits train dev
    cpstream ingest data/processed/embeddings --chroma-url https://example.org/chroma --chroma-token-file token
    ```

    Parameters
    ----------
    source_path
        Folder of numpy_embs.npy.
    chroma_path
        Folder of the Chroma database; made if there is none.
    splits
        Splits to ingest; all by default.
    """
    from ..sources.chroma.client import open_client  # chromadb takes a second to import
    from ..sources.chroma.write import open_collection

    server = server or ChromaSettings()
    if (chroma_path is None) == (server_url(server) is None):
        raise DataError("where to ingest to: set --chroma-path to a folder, or --chroma-url to a server, one of the two")
    target = DataSettings(source_type="chromadb", source_path=chroma_path, **asdict(server))
    source = read_npy(npy_file(source_path), splits, progress=True)
    with open_client(target, create=True) as client:
        writer = open_collection(client, target)
        for name in list(source):
            split = source.pop(name)
            with tqdm(None, f"ingest {plain(name)}", len(split.file_paths), unit=" rows", disable=None) as bar:
                written = 0
                for ids, rows in _batches(split):
                    metadatas = [{"split": name, "file_path": split.file_paths[i]} for i in rows]
                    written += writer.put(ids, split.embeddings[rows], metadatas)
                    bar.update(len(rows))
            usable = int(judge_rows(split.embeddings)[0].sum())
            say(f"{name}: {usable:,} rows, {written:,} written, {usable - written:,} were there")
            left_out = len(split.problems) + len(split.file_paths) - usable
            if left_out:
                first = f"first: {split.problems[0]}" if split.problems else "embeddings that are not finite"
                say(f"{name}: {left_out:,} rows left out ({first})")
            more = writer.count(name) - usable
            if more > 0:
                say(
                    f"{name}: the collection holds {more:,} more records of this split, which {source_path} does not; "
                    f"they will be served, too, unless you ingest into another collection",
                )
    return 0


def _batches(split: SourceSplit) -> Iterator[tuple[list[str], npt.NDArray[np.int64]]]:
    """Ids and rows of the split, some at a time. An id is made of split and path, so that a second run finds the same."""
    rows = np.flatnonzero(judge_rows(split.embeddings)[0])
    seen: Counter[str] = Counter()
    for low in range(0, len(rows), BATCH_ROWS):
        batch = rows[low : low + BATCH_ROWS]
        ids = []
        for i in batch:
            path = split.file_paths[i]
            ids.append(f"{split.name}/{path}" if not seen[path] else f"{split.name}/{path}#{seen[path] + 1}")
            seen[path] += 1
        yield ids, batch
