"""Whether what was aligned may be served, and what to do where not."""

from collections.abc import Sequence
from pathlib import Path

from cpstream_client.contract.bodies import AlignmentReport, Dropped

from ..errors import AlignmentError
from ..settings import DataSettings
from ..sources.rows import HARMLESS, Reason
from ..sources.tables import TablePaths
from ..text import plain, shortened
from .align import num_lost

MAX_EXAMPLE = 120
"""Characters of a path in a line that says what is wrong."""


def refuse(settings: DataSettings, reports: Sequence[AlignmentReport]) -> None:
    """Raise AlignmentError where a split has no sample, or with strict where a row was lost."""
    reports = tuple(reports)
    for report in reports:
        if not report.num_aligned:
            raise AlignmentError(
                f"split {report.split!r} aligns nothing: none of its {report.num_embeddings} embeddings finds a value among the "
                f"{report.num_cps} rows of {_rates_place(settings, report.split)}: {_reasons(report)}; {_remedy(settings, report)}",
                reports,
            )
    lost = [report for report in reports if num_lost(report)]
    if settings.strict and lost:
        count = sum(map(num_lost, lost))
        raise AlignmentError(
            f"--strict, and alignment dropped {count} {'row' if count == 1 else 'rows'}: "
            + "; ".join(f"split {report.split!r}: {_reasons(report)}" for report in lost)
            + "; correct the data, or leave --strict out",
            reports,
        )


def _rates_place(settings: DataSettings, split: str) -> Path | None:
    return settings.source_path if settings.cps_from == "source" else TablePaths.of(settings).of_split(split)


def _reasons(report: AlignmentReport) -> str:
    lost = [entry for entry in report.dropped if entry.reason not in HARMLESS] or report.dropped
    return ", ".join(map(_reason, lost)) or "there are no rows"


def _reason(entry: Dropped) -> str:
    first = f" (first: {shortened(plain(entry.examples[0]), MAX_EXAMPLE)})" if entry.examples else ""
    return f"{entry.count} {entry.reason}{first}"


_PATHS_AT_FAULT = frozenset({reason.code for reason in (Reason.NO_CPS, Reason.NO_EMBEDDING, Reason.AMBIGUOUS_PATH)})


def _is_forgotten(entry: Dropped, side: str) -> bool:
    return entry.reason == Reason.FORGOTTEN.code and entry.side == side


_MOST_ROOTS = 8
"""More are no roots, but folders that were cut from the paths of one side."""


def _remedy(settings: DataSettings, report: AlignmentReport) -> str:
    """What to do where nothing aligns, most likely first."""
    if report.num_embeddings and sum(e.count for e in report.dropped if _is_forgotten(e, "embedding")) == report.num_embeddings:
        return "the forget list names all of it: leave the split out (--splits)"
    if report.num_embeddings and not report.num_cps and settings.cps_from == "table":
        return "all rows of the table are of other splits: set --cps-csv to the table of this one"
    count = sum(root.count for root in report.roots)
    if len(report.roots) > _MOST_ROOTS:
        root = report.roots[0]
        first = shortened(plain(root.embeddings or root.cps), MAX_EXAMPLE)
        return (
            f"{count} paths are the ends of others, behind many different folders (first: {first}): write whole paths on both sides"
        )
    if report.roots:
        options = plain(" ".join(dict.fromkeys(option for root in report.roots for option in root.options)))
        return f"the paths differ by their roots: {options} matches {count} rows, if these folders hold the same recordings"
    if report.spellings:
        most = max(report.spellings, key=lambda spelling: spelling.count)
        example = shortened(plain(most.examples[0]), 2 * MAX_EXAMPLE)
        return f"{most.count} paths differ in {most.differs_in} only, {example}: {most.remedy}"
    at_fault = sum(entry.count for entry in report.dropped if entry.reason in _PATHS_AT_FAULT)
    if at_fault and at_fault >= sum(entry.count for entry in report.dropped) - at_fault:
        return "correct the paths, or --cps-csv"
    return "correct these rows"
