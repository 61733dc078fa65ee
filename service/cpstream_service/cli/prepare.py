"""cpstream prepare: the snapshot without a service."""

import sys

from ..errors import AlignmentError
from .check import print_reports
from .common import Data, Folder, console, data_of, failed, say


def prepare(folder: Folder = None, /, *, data: Data = None) -> int:
    """Align the data and write its snapshot, so that each `serve` with the same settings maps it at once; then end.

    For replicas that share a folder: where the snapshot is there and whole, nothing is written. Bad data ends with exit code 1.

    **Examples**

    ```
    cpstream prepare data/processed/embeddings --snapshot-dir snapshots
    CPSTREAM_SOURCE_TYPE=parquet cpstream prepare shards --splits train dev
    ```
    """
    from ..snapshot.load import load

    try:
        loaded = load(data_of(folder, data), progress=sys.stderr.isatty())
    except AlignmentError as error:
        print_reports(error.reports, console(stderr=True))
        return failed(error)
    for note in loaded.notes:
        say(note)
    for split in loaded.snapshot.splits.values():
        info = split.info
        say(f"{split.name}: {info.num_samples:,} samples x {info.embedding_dim}, fingerprint {info.fingerprint}")
    return 0
