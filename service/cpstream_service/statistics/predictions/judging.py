"""How far predictions are from the rates: in all, by tenths of the rates, by folder, and where most."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpstream_client.contract.predictions import Folder, Missed, RunPoints, RunReport, Unmatched

from ...snapshot.store import Split
from ..baseline import deciles, errors
from ..distributions import Doubles
from .reading import Predicted

MOST_FOLDERS, MOST_WORST, MOST_POINTS = 200, 50, 5000


def judged(name: str, split: Split, found: Predicted) -> RunReport:
    """The report of a run."""
    has = np.flatnonzero(np.isfinite(found.values))
    predicted, cps = found.values[has], split.cps[has].astype(np.float64)
    missed = predicted - cps
    worst = has[np.argsort(-np.abs(missed), kind="stable")[:MOST_WORST]]
    folders = by_folder(split.file_paths.take(has), missed)
    return RunReport(
        name=name,
        split=split.name,
        fingerprint=split.fingerprint,
        published_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        num_samples=len(split.cps),
        num_predicted=len(has),
        errors=errors(cps, predicted),
        bias=float(missed.mean()),
        deciles=deciles(cps, predicted),
        num_folders=len(folders),
        folders=folders[:MOST_FOLDERS],
        worst=tuple(
            Missed(index=at, file_path=path, cps=float(split.cps[at]), predicted=float(found.values[at]))
            for at, path in zip(worst.tolist(), split.file_paths.take(worst).to_pylist(), strict=True)
        ),
        **{kind: Unmatched.model_validate(said) for kind, said in found.unmatched.items()},
    )


def by_folder(paths: pa.StringArray, missed: Doubles) -> tuple[Folder, ...]:
    """The errors of each folder, the worst first. missed (K,): prediction less rate, of the recording at each path."""
    folders = pc.replace_substring_regex(paths, r"(^|/)[^/]*$", "")
    table = pa.table({"folder": folders, "missed": missed, "off": np.abs(missed)})
    of_each = table.group_by("folder").aggregate([("off", "mean"), ("missed", "mean"), ("off", "count")])
    ordered = of_each.sort_by([("off_mean", "descending"), ("folder", "ascending")])
    return tuple(
        Folder(folder=row["folder"], count=row["off_count"], mae=row["off_mean"], bias=row["missed_mean"])
        for row in ordered.to_pylist()
    )


def points(name: str, split: Split, predicted: Doubles) -> RunPoints:
    """Samples to draw: evenly spread over those with a prediction, the same each time."""
    has = np.flatnonzero(np.isfinite(predicted))
    shown = has[np.unique(np.linspace(0, len(has) - 1, min(MOST_POINTS, len(has))).round().astype(np.int64))]
    return RunPoints(
        split=split.name,
        fingerprint=split.fingerprint,
        name=name,
        index=tuple(shown.tolist()),
        cps=tuple(split.cps[shown].tolist()),
        predicted=tuple(predicted[shown].tolist()),
    )
