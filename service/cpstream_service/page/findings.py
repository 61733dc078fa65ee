"""Warnings for whoever is about to train, in plain words, from what alignment said and what the figures show."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cpstream_client.contract.bodies import AlignmentReport
from cpstream_client.contract.figures import FoundPairs, Shift, Statistics

from ..sources.rows import HARMLESS
from .render import counted, number
from .words import EFFECT, HARDLY, REASONS, has, in_sentence, is_far, is_narrow, shift_of_embeddings, shift_of_rates

Level = Literal["bad", "odd"]
MANY = 4
"""Of more splits than these not every pair is shown."""
FEW = 10
"""Of fewer recordings nothing is said of how they differ from others."""
_SIDES = {"embedding": "embeddings", "cps": "rows of the table"}


@dataclass(frozen=True)
class Finding:
    """Something to know before training. bad: it spoils what is measured; odd: worth a look. split: whose page says more, or ""."""

    level: Level
    text: str
    split: str = ""
    part: str = ""
    examples: tuple[str, ...] = ()


def findings(reports: Mapping[str, AlignmentReport], statistics: Mapping[str, Statistics]) -> tuple[Finding, ...]:
    """Of all splits, the worst first. statistics: empty while they are being computed."""
    found = [*_leaks(reports), *_shared(statistics)]
    for name, report in reports.items():
        found += _of_alignment(name, report)
    for name, figures in statistics.items():
        found += _of_figures(name, figures)
    found += _shifts(statistics)
    return tuple(sorted(found, key=lambda finding: finding.level != "bad"))


def of_split(name: str, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those that concern one split."""
    return tuple(finding for finding in found if finding.split == name)


def _leaks(reports: Mapping[str, AlignmentReport]) -> Iterator[Finding]:
    """Each pair of splits once, said of the later one: `dev` shares with `train`."""
    told: set[frozenset[str]] = set()
    for name, report in reversed(list(reports.items())):
        for leak in report.leaks:
            pair = frozenset((name, leak.reason))
            if pair not in told:
                told.add(pair)
                are = "is" if leak.count == 1 else "are"
                text = f"{counted(leak.count, 'recording')} of {name} {are} also in {leak.reason}"
                yield Finding("bad", text, name, "shared", leak.examples)


def _shared(statistics: Mapping[str, Statistics]) -> Iterator[Finding]:
    """Embeddings that splits share. Those of files that both hold are told as such already."""
    told: set[frozenset[str]] = set()
    for name, figures in reversed(list(statistics.items())):
        for shared in figures.shared:
            pair = frozenset((name, shared.split))
            if pair in told:
                continue
            told.add(pair)
            same, near = shared.same_vector, shared.near_duplicates
            of_same_files = same.count == shared.same_file.count and all(each.file_path == each.other for each in same.examples)
            if same.count and not of_same_files:
                text = (
                    f"{counted(same.count, 'recording')} of {name} {has(same.count)} exactly the embedding of one in {shared.split}"
                )
                yield Finding("bad", text, name, "shared", _both(same))
            more = 0 if near is None else near.count - same.count  # equal ones are among them
            if near is not None and more > 0:
                text = f"{counted(more, 'recording')} of {name} {has(more)} nearly the embedding of one in {shared.split}"
                yield Finding("odd", text, name, "shared", _both(near))


def _both(pairs: FoundPairs) -> tuple[str, ...]:
    return tuple(f"{pair.file_path} and {pair.other}" for pair in pairs.examples)


def _of_alignment(name: str, report: AlignmentReport) -> Iterator[Finding]:
    """What was left out and what would match it, and what is served but looks wrong."""
    lost = [entry for entry in report.dropped if entry.reason not in HARMLESS]
    if lost:
        by_side = [
            (side, sum(entry.count for entry in lost if entry.side == side), total)
            for side, total in (("embedding", report.num_embeddings), ("cps", report.num_cps))
        ]
        rows = " and ".join(f"{number(count)} of {number(total)} {_SIDES[side]}" for side, count, total in by_side if count)
        codes = dict.fromkeys(entry.reason for entry in lost)
        yield Finding("odd", f"{name}: {rows} found no use ({', '.join(codes)})", name, "dropped")
    for root in report.roots:
        if not root.applied:
            text = f"{name}: {counted(root.count, 'row')} would match with {' '.join(root.options)}, if both folders hold the same"
            yield Finding("odd", text, name, "dropped")
    for spelling in report.spellings:
        text = f"{name}: {counted(spelling.count, 'row')} would match but for {spelling.differs_in}: {spelling.remedy}"
        yield Finding("odd", text, name, "dropped", spelling.examples)
    for warning in report.warnings:
        text = f"{counted(warning.count, 'recording')} of {name}: {in_sentence(REASONS.get(warning.reason, warning.reason))}"
        yield Finding("odd", text, name, "dropped", warning.examples)


def _of_figures(name: str, figures: Statistics) -> Iterator[Finding]:
    cps, vectors, baseline = figures.cps, figures.embeddings, figures.baseline
    if cps.count == 1:
        yield Finding("odd", f"{name} holds a single recording", name, "rates")
    elif cps.min == cps.max:
        yield Finding(
            "bad", f"all recordings of {name} have the same rate, {number(cps.min)}: there is nothing to learn", name, "rates"
        )
    if cps.count > 1 and vectors.constant.count == vectors.dimension:
        yield Finding("bad", f"all embeddings of {name} are the same", name, "embeddings")
    elif cps.count > 1 and vectors.constant.count:
        text = f"{number(vectors.constant.count)} of {counted(vectors.dimension, 'dimension')} are the same in all of {name}"
        yield Finding("odd", text, name, "embeddings")
    if vectors.duplicates.count and vectors.constant.count < vectors.dimension:
        count = vectors.duplicates.count
        text = f"{counted(count, 'recording')} of {name} {has(count)} exactly the embedding of an earlier one"
        yield Finding("odd", text, name, "embeddings", _both(vectors.duplicates))
    if is_narrow(vectors) and vectors.constant.count < vectors.dimension:
        rank = f"effective rank {number(vectors.effective_rank)} of {vectors.dimension}"
        text = f"the embeddings of {name} vary in few directions: {rank}"
        yield Finding("odd", text, name, "embeddings")
    if baseline is not None and baseline.ridge.r2 is not None and name != baseline.fitted_on and baseline.ridge.r2 < HARDLY:
        text = f"a linear model hardly predicts the rates of {name}: R2 {number(baseline.ridge.r2, 2)}"
        yield Finding("odd", text, name, "baseline")


def against(figures: Statistics, first: str) -> tuple[Shift, ...]:
    """How a split differs from the training split, or, where none is known, from the first one; empty where it is that itself."""
    return tuple(shift for shift in figures.shift if shift.split == (figures.roles.train or first))


def _shifts(statistics: Mapping[str, Statistics]) -> Iterator[Finding]:
    for name, figures in statistics.items():
        for shift in against(figures, next(iter(statistics))):
            if min(figures.cps.count, statistics[shift.split].cps.count) >= FEW:
                if shift.cps_effect is not None and abs(shift.cps_effect) >= EFFECT:
                    yield Finding("odd", shift_of_rates(name, shift), name, "shift")
                if is_far(shift):
                    yield Finding("odd", shift_of_embeddings(name, shift), name, "shift")
