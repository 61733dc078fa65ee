"""All figures of a snapshot: each split by itself, each against each other, and the baseline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from cpstream_client.contract.bodies import Body, Dropped
from cpstream_client.contract.figures import (
    Baseline,
    Found,
    FoundPairs,
    Point,
    Projection,
    Shared,
    Shift,
    Statistics,
    VectorFigures,
)

from ..snapshot.store import Snapshot, Split
from .alike import equal_between, near_of, near_pairs
from .baseline import Fits, choose, fits, judge
from .distributions import Doubles, rate_figures
from .hashes import Signer
from .moments import Moments, centre_of, moments
from .projection import projected
from .roles import Cast, cast
from .shift import shift
from .vectors import vector_figures

MAX_SIGNED = 4_000_000
"""Samples of all splits of which signatures are made: 128 MB. Of more, near-duplicates are not looked for."""
_NEAR = 3.0
_MOMENTS, _PREDICTIONS = 1 / 64, 1 / 400
"""What a row costs, about: beside each other split, and for each number of its embedding."""


class Figures(Body, frozen=True):
    """What is said of one split."""

    statistics: Statistics
    projection: Projection


@dataclass(eq=False)
class _Part:
    """A split, and what is known of it so far. found: without its Gram matrix. cps (N,): ascending."""

    split: Split
    found: Moments
    vectors: VectorFigures
    cps: npt.NDArray[np.float32]
    shared: dict[str, Shared] = field(default_factory=dict)
    shifts: list[Shift] = field(default_factory=list)
    baseline: Baseline | None = None
    notes: list[str] = field(default_factory=list)


def compute(snapshot: Snapshot, roles: tuple[str, ...], tell: Callable[[float], None]) -> dict[str, Figures]:
    """Figures of each split by its name. roles: as the settings have them. tell: told of the share that is done.

    Raises OSError where a file of the snapshot cannot be read.
    """
    splits, players = list(snapshot.splits.values()), cast(snapshot.splits, roles)
    spent, total = 0.0, _costs(splits)

    def done(cost: float) -> None:
        nonlocal spent
        spent += cost
        tell(min(spent / total, 1.0))

    parts, regressions = _each(splits, players.roles.train, done)
    _pairs(parts, done)
    _baselines(parts, players, regressions, done)
    return {
        name: Figures(
            statistics=Statistics(
                split=name,
                fingerprint=part.split.fingerprint,
                dataset_fingerprint=snapshot.fingerprint,
                roles=players.roles,
                cps=rate_figures(part.split.cps),
                embeddings=part.vectors,
                shared=tuple(part.shared.values()),
                shift=tuple(part.shifts),
                baseline=part.baseline,
                notes=tuple(part.notes),
            ),
            projection=_projection(part.split),
        )
        for name, part in parts.items()
    }


def _costs(splits: list[Split]) -> float:
    rows, numbers = sum(len(split.cps) for split in splits), sum(split.embeddings.size for split in splits)
    return rows * _NEAR * (len(splits) - 1) + numbers * (_MOMENTS + 2 * _PREDICTIONS)


def _count(done: Callable[[float], None], cost: float, rows: int) -> None:
    done(rows * cost)


def _each(splits: list[Split], train: str | None, done: Callable[[float], None]) -> tuple[dict[str, _Part], Fits | None]:
    """Every split by itself, and the regressions of the training split."""
    parts: dict[str, _Part] = {}
    regressions = None
    signed = len(splits) > 1 and sum(len(split.cps) for split in splits) <= MAX_SIGNED
    by_dimension: dict[int, list[Split]] = {}
    for split in splits:
        by_dimension.setdefault(split.embeddings.shape[1], []).append(split)
    tools = {
        dimension: (centre_of(alike), Signer(dimension) if signed and len(alike) > 1 else None)
        for dimension, alike in by_dimension.items()
    }
    for split in splits:
        centre, signer = tools[split.embeddings.shape[1]]
        found = moments(split, centre, signer, partial(_count, done, split.embeddings.shape[1] * _MOMENTS))
        eigenvalues: Doubles | None = None
        if found.gram is not None and split.name == train:
            regressions, eigenvalues = fits(split.name, found)
        elif found.gram is not None:
            eigenvalues = np.maximum(np.linalg.eigvalsh(found.centred_gram()), 0)
        notes: list[str] = []
        vectors = vector_figures(split, found, eigenvalues, notes)
        parts[split.name] = _Part(split, replace(found, gram=None), vectors, np.sort(split.cps), notes=notes)
    return parts, regressions


def _pairs(parts: Mapping[str, _Part], done: Callable[[float], None]) -> None:
    """Each split against each other one."""
    means = _means(parts)
    for name, part in parts.items():
        for other_name, other in parts.items():
            if other_name == name:
                continue
            if other_name not in part.shared:
                _share(part, other, means[len(part.found.sums)])
                done((len(part.split.cps) + len(other.split.cps)) * _NEAR)
            part.shifts.append(shift(other_name, part.cps, part.found, other.cps, other.found))
        part.shared = {other_name: part.shared[other_name] for other_name in parts if other_name != name}


def _means(parts: Mapping[str, _Part]) -> dict[int, Doubles]:
    """The mean of all embeddings of a dimension."""
    sums: dict[int, tuple[Doubles, int]] = {}
    for part in parts.values():
        dimension = len(part.found.sums)
        before, count = sums.get(dimension, (np.zeros(dimension), 0))
        sums[dimension] = before + part.found.mean * part.found.count, count + part.found.count
    return {dimension: total / count for dimension, (total, count) in sums.items()}


def _share(part: _Part, other: _Part, mean: Doubles) -> None:
    """What two splits share, noted for both."""
    ours, theirs = part.split, other.split
    same, near, is_partial = (FoundPairs(count=0), FoundPairs(count=0)), None, (False, False)
    if len(part.found.sums) == len(other.found.sums):
        same = equal_between(ours, part.found.hashes, theirs, other.found.hashes)
        near = None
        if part.found.signatures.shape[1]:
            found = (
                near_of(ours, part.found.signatures, theirs, other.found.signatures, mean),
                near_of(theirs, other.found.signatures, ours, part.found.signatures, mean),
            )
            near = near_pairs(ours, theirs, found[0]), near_pairs(theirs, ours, found[1])
            is_partial = found[0].is_partial, found[1].is_partial
    else:
        near = same
    for at, (one, two) in enumerate([(part, other), (other, part)]):
        one.shared[two.split.name] = Shared(
            split=two.split.name,
            same_file=_leaks(one.split.report.leaks, two.split.name),
            same_vector=same[at],
            near_duplicates=None if near is None else near[at],
        )
        if near is None:
            one.notes.append(f"near-duplicates in {two.split.name} were not looked for: the splits have over {MAX_SIGNED} samples")
        elif is_partial[at]:
            one.notes.append(
                f"near-duplicates in {two.split.name} are at least so many: too many candidates to compare all of them"
            )


def _leaks(leaks: tuple[Dropped, ...], other: str) -> Found:
    found = [leak for leak in leaks if leak.reason == other]
    return Found(count=sum(leak.count for leak in found), examples=found[0].examples if found else ())


def _baselines(parts: Mapping[str, _Part], players: Cast, regressions: Fits | None, done: Callable[[float], None]) -> None:
    """The regression that the development split chooses, judged on every split; or why there is none."""
    train, dev = players.roles.train, players.roles.dev
    reasons = [players.missing[role] for role in ("train", "dev") if role in players.missing]
    if not reasons and train is not None and dev is not None:
        ours, theirs = (len(parts[name].found.sums) for name in (train, dev))
        if regressions is None:
            reasons = [f"its dimension, {ours}, is too large"]
        elif ours != theirs:
            reasons = [f"{train} has {ours} dimensions and {dev} {theirs}"]
        elif parts[train].found.count < 2:
            reasons = [f"{train} has one sample"]
    if reasons or regressions is None or dev is None:
        for part in parts.values():
            part.notes.append(f"no baseline: {'; '.join(reasons)}")
        return
    predicted = partial(_count, done, len(regressions.weights) * _PREDICTIONS)
    chosen = choose(regressions, parts[dev].split, predicted)
    for part in parts.values():
        if len(part.found.sums) != len(regressions.weights):
            part.notes.append(f"no baseline: {chosen.fit.fitted_on}, on which it is fitted, has another dimension")
            continue
        part.baseline = judge(chosen, part.split, predicted)
        if part.baseline.ridge.r2 is None:
            part.notes.append("no R2: all samples have the same rate")


def _projection(split: Split) -> Projection:
    indices, places, shares = projected(split)
    points = tuple(
        Point(index=index, file_path=split.file_paths[index].as_py(), cps=float(split.cps[index]), x=x, y=y)
        for index, (x, y) in zip(indices.tolist(), places.tolist(), strict=True)
    )
    return Projection(
        split=split.name,
        fingerprint=split.fingerprint,
        num_samples=len(split.cps),
        explained_variance_ratio=shares,
        points=points,
        notes=() if shares else ("all embeddings are the same: all points are one",),
    )
