"""Read the source and the CPS tables that the settings name, and align every split."""

import glob
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path

import numpy as np

from cpstream_client.contract.bodies import AlignmentReport

from ..errors import AlignmentError, DataError
from ..settings import DataSettings, parse_root
from ..sources.cps_table import CpsTable, read_cps_table
from ..sources.read import cps_path, read_source
from ..sources.rows import HARMLESS, Reason, SourceSplit
from ..sources.tables import rates_of, read_table, source_columns
from ..text import shortened
from .align import AlignedSplit, align, find_leaks, num_lost
from .match import MatchRule, normalise_paths

MAX_EXAMPLE = 120
"""Characters of a path in a line that says what is wrong."""


def align_all(settings: DataSettings, *, progress: bool = False) -> list[AlignedSplit]:
    """Every split of the settings, aligned, with leaks between them reported.

    Raises DataError when something cannot be read; never for what alignment drops: see `refuse`.
    """
    of_source = settings.cps_from == "source"
    if not of_source:
        _find_tables(settings)
    source = read_source(settings, columns=source_columns(settings), progress=progress)
    rule = MatchRule.of([parse_root(text) for text in settings.map_root], settings.match)
    if of_source or "{split}" in settings.cps_csv:
        aligned = []
        for name in list(source):
            table = rates_of(source[name], settings) if of_source else read_table(cps_path(settings, name), settings)
            aligned.append(align(source.pop(name), table, rule))
    else:
        table = read_table(cps_path(settings, ""), settings)
        aligned = _by_one_table(source, table, rule)
        if settings.splits and any(map(_loses_cps_rows, aligned)):
            of_others = _paths_of_other_splits(settings, rule)
            if of_others:
                aligned = _by_one_table(read_source(settings, progress=progress), table, rule, of_others)
    leaks = find_leaks(aligned)
    return [replace(split, report=split.report.model_copy(update={"leaks": leaks[split.name]})) for split in aligned]


def _find_tables(settings: DataSettings) -> None:
    """Raise DataError where the table of a split that is asked for is missing: better said before minutes of reading."""
    source = settings.source_path
    if settings.source_type != "chromadb" and (source is None or not ("{split}" in str(source) or source.exists())):
        return  # reading the source will say what is wrong with that
    for split in settings.splits:
        path = cps_path(settings, split)
        if path.exists():
            continue
        try:
            read_cps_table(path)
        except DataError as error:
            there = _splits_with_tables(settings)
            if not there:
                raise
            names = ", ".join(map(repr, there))
            text = f"{error}, or --splits to some that have one: {names}"
            raise type(error)(text) from None


def _splits_with_tables(settings: DataSettings) -> list[str]:
    """What {split} can stand for in the path of the tables, as far as there are any."""
    before, _, after = str(cps_path(settings, "{split}")).partition("{split}")
    if not after or "{split}" in after:
        return []
    found = glob.glob(f"{glob.escape(before)}*{glob.escape(after)}")
    return sorted(path[len(before) : len(path) - len(after)] for path in found)


def _by_one_table(
    source: dict[str, SourceSplit], table: CpsTable, rule: MatchRule, of_others: Set[str] = frozenset()
) -> list[AlignedSplit]:
    """Align splits with one table. Rows of another split, or of those of `of_others`, are none of this one's. Empties `source`."""
    if len(source) > 1:
        rule = replace(rule, same_root=False)  # which split a row is of must be said by its whole path
    names = {name: _names_of(split, rule) for name, split in source.items()}
    aligned = []
    for name in list(source):
        split = source.pop(name)
        elsewhere = set(of_others).union(*(keys for other, keys in names.items() if other != name)) - names[name]
        own = _without(table, elsewhere, rule.with_bare_keys() if split.bare_keys else rule) if elsewhere else table
        aligned.append(align(split, own, rule))
    return aligned


def _loses_cps_rows(split: AlignedSplit) -> bool:
    return any(entry.side == "cps" and entry.reason == Reason.NO_EMBEDDING.code for entry in split.report.dropped)


def _paths_of_other_splits(settings: DataSettings, rule: MatchRule) -> set[str]:
    """What splits of the source that are not asked for are compared by: one table for all of them is not lost for a few."""
    source = read_source(replace(settings, splits=()))
    return set().union(*(_names_of(split, rule) for name, split in source.items() if name not in settings.splits))


def _names_of(split: SourceSplit, rule: MatchRule) -> set[str]:
    paths = normalise_paths(split.file_paths + [problem.file_path for problem in split.problems if problem.file_path is not None])
    if split.bare_keys:
        rule = rule.with_bare_keys()
    return set(paths) if rule.plain else {rule.compared(path, split.bare_keys) for path in paths}


def _without(table: CpsTable, names: Set[str], rule: MatchRule) -> CpsTable:
    """The table without the rows of these names."""
    paths = normalise_paths(table.file_paths)
    kept = [i for i, path in enumerate(paths) if (path if rule.plain else rule.compared(path)) not in names]
    at = np.array(kept, np.int64)
    return replace(
        table,
        file_paths=[table.file_paths[i] for i in kept],
        cps=table.cps[at],
        lines=table.lines[at],
        labels={name: column[at] for name, column in table.labels.items()},
        bad_texts={new: table.bad_texts[old] for new, old in enumerate(kept) if old in table.bad_texts},
        problems=[
            problem for problem in table.problems if problem.file_path is None or _name(problem.file_path, rule) not in names
        ],
    )


def _name(path: str, rule: MatchRule) -> str:
    (key,) = normalise_paths([path])
    return key if rule.plain else rule.compared(key)


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
    return settings.source_path if settings.cps_from == "source" else cps_path(settings, split)


def _reasons(report: AlignmentReport) -> str:
    lost = [entry for entry in report.dropped if entry.reason not in HARMLESS] or report.dropped
    texts = (f"{entry.count} {entry.reason} (first: {shortened(entry.examples[0], MAX_EXAMPLE)})" for entry in lost)
    return ", ".join(texts) or "there are no rows"


_PATHS_AT_FAULT = frozenset({reason.code for reason in (Reason.NO_CPS, Reason.NO_EMBEDDING, Reason.AMBIGUOUS_PATH)})


_MOST_ROOTS = 8
"""More are no roots, but folders that were cut from the paths of one side."""


def _remedy(settings: DataSettings, report: AlignmentReport) -> str:
    """What to do where nothing aligns, most likely first."""
    if report.num_embeddings and not report.num_cps and settings.cps_from == "table":
        return "all rows of the table are of other splits: set --cps-csv to the table of this one"
    count = sum(root.count for root in report.roots)
    if len(report.roots) > _MOST_ROOTS:
        root = report.roots[0]
        first = shortened(root.embeddings or root.cps, MAX_EXAMPLE)
        return (
            f"{count} paths are the ends of others, behind many different folders (first: {first}): write whole paths on both sides"
        )
    if report.roots:
        options = " ".join(dict.fromkeys(option for root in report.roots for option in root.options))
        return f"the paths differ by their roots: {options} matches {count} rows, if these folders hold the same recordings"
    if report.spellings:
        most = max(report.spellings, key=lambda spelling: spelling.count)
        return f"{most.count} paths differ in {most.differs_in} only, {shortened(most.examples[0], 2 * MAX_EXAMPLE)}: {most.remedy}"
    at_fault = sum(entry.count for entry in report.dropped if entry.reason in _PATHS_AT_FAULT)
    if at_fault and at_fault >= sum(entry.count for entry in report.dropped) - at_fault:
        return "correct the paths, or --cps-csv"
    return "correct these rows"
