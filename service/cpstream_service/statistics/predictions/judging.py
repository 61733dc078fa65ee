"""How far predictions are from the rates: in all, by tenths of the rates, by folder, and where most."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpstream_client.contract.predictions import Folder, Missed, RunPoints, RunReport, Unmatched

from ...arrow import values
from ...batches.paths import paths_at
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
    folders = by_folder(paths_at(split.file_paths, has), missed)
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
            for at, path in zip(worst.tolist(), paths_at(split.file_paths, worst).to_pylist(), strict=True)
        ),
        **{kind: Unmatched.model_validate(said) for kind, said in found.unmatched.items()},
    )


def by_folder(paths: pa.StringArray, missed: Doubles) -> tuple[Folder, ...]:
    """The errors of each folder, the worst first. missed (K,): prediction less rate, of the recording at each path."""
    folders = pc.replace_substring_regex(paths, r"(^|/)[^/]*$", "")
    encoded = folders.dictionary_encode()
    which, names = values(encoded.indices, np.int32), encoded.dictionary.to_pylist()
    counts = np.bincount(which, minlength=len(names))
    maes, biases = (np.bincount(which, of_each, len(names)) / counts for of_each in (np.abs(missed), missed))
    found = zip(names, counts.tolist(), maes.tolist(), biases.tolist(), strict=True)
    worst_first = sorted(found, key=lambda folder: (-folder[2], folder[0]))
    return tuple(Folder(folder=name, count=count, mae=mae, bias=bias) for name, count, mae, bias in worst_first)


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
