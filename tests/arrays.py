"""Snapshots of arrays at hand, for tests that look at figures rather than at sources."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpstream_client.contract.bodies import AlignmentReport
from cpstream_service.align.align import AlignedSplit
from cpstream_service.snapshot.store import Snapshot, open_snapshot, write_snapshot

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def snapshot_of(
    folder: Path,
    arrays: Mapping[str, Arrays],
    paths: Mapping[str, Sequence[str]] | None = None,
    labels: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Snapshot:
    """A snapshot in a new folder. arrays: embeddings (N, D) and rates (N,) of each split; paths: others than numbers.

    labels: further ones by name, of every split.
    """
    folder.mkdir(parents=True)
    splits = []
    for name, (embeddings, cps) in arrays.items():
        count = len(cps)
        named = list((paths or {}).get(name, [f"{name}/{index:06d}.wav" for index in range(count)]))
        report = AlignmentReport(
            split=name, num_embeddings=count, num_cps=count, num_aligned=count, num_exact=count, num_by_suffix=0
        )
        rows = np.arange(count, dtype=np.int64)
        further = {label: values[:count].astype(np.float32) for label, values in (labels or {}).items()}
        made = AlignedSplit(name, named, cps.astype(np.float32), embeddings.astype(np.float32), rows, report, labels=further)
        splits.append(made)
    return open_snapshot(write_snapshot(folder, "made", splits, source="arrays", identity="arrays"))
