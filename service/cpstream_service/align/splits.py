"""Read the source and the CPS tables that the settings name, and align every split."""

from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..progress import tell
from ..settings import DataSettings, parse_root
from ..sources.cps_table import CpsTable, read_cps_table
from ..sources.read import read_source
from ..sources.rows import Reason, SourceSplit
from ..sources.tables import TablePaths, rates_of, read_table, source_columns
from .align import AlignedSplit, align, find_leaks
from .forget import ForgetList, read_forget_list
from .match import MatchRule, normalise_paths

_MAX_TABLES_BESIDE = 8
"""Tables that are read ahead where no splits are asked for: some may be of none."""


def align_all(
    settings: DataSettings, *, progress: bool = False, forget: ForgetList | None = None, unjudged: bool = False
) -> list[AlignedSplit]:
    """Every split of the settings, aligned, with leaks between them reported. forget: the list of the settings, if it was read.

    unjudged: as align has it; then judged_again is for those whose rows turn out not to be sound.

    Raises DataError when something cannot be read; never for what alignment drops: see verdict.py.
    """
    forget = read_forget_list(settings.forget_list) if forget is None else forget
    tables = TablePaths.of(settings)
    if settings.cps_from != "source":
        _find_tables(settings, tables)
    with _tables_beside(settings, tables) as table_at:
        source = read_source(settings, columns=source_columns(settings), progress=progress)
        tell("aligning")
        aligned = _aligned(settings, tables, source, table_at, progress, forget, unjudged)
    return _with_leaks(aligned)


def judged_again(splits: Sequence[AlignedSplit]) -> list[AlignedSplit]:
    """The splits, aligned anew where their rows had been taken for sound."""
    return _with_leaks([split.again() if split.again is not None else split for split in splits])


def _with_leaks(aligned: Sequence[AlignedSplit]) -> list[AlignedSplit]:
    leaks = find_leaks(aligned)
    return [replace(split, report=split.report.model_copy(update={"leaks": leaks[split.name]})) for split in aligned]


@contextmanager
def _tables_beside(settings: DataSettings, tables: TablePaths) -> Iterator[Callable[[Path], CpsTable]]:
    """The tables by their paths, read by a thread while the source is. What is wrong with one is raised when it is asked for."""
    if settings.cps_from == "source":
        paths = []
    elif tables.one_for_all:
        paths = [Path(tables.template)]
    else:
        paths = list(map(tables.of_split, settings.splits)) or list(tables.there().values())[:_MAX_TABLES_BESIDE]
    thread = ThreadPoolExecutor(1, thread_name_prefix="cps-tables")
    found = {path: thread.submit(read_table, path, settings) for path in paths}
    try:
        yield lambda path: found.pop(path).result() if path in found else read_table(path, settings)
    finally:
        thread.shutdown(cancel_futures=True)


def _aligned(
    settings: DataSettings,
    tables: TablePaths,
    source: dict[str, SourceSplit],
    table_at: Callable[[Path], CpsTable],
    progress: bool,
    forget: ForgetList,
    unjudged: bool,
) -> list[AlignedSplit]:
    """Each split with its rates. Empties `source`."""
    rule = MatchRule.of([parse_root(text) for text in settings.map_root], settings.match)
    of_source = settings.cps_from == "source"
    if of_source or not tables.one_for_all:
        aligned = []
        for name in list(source):
            table = rates_of(source[name], settings) if of_source else table_at(tables.of_split(name))
            aligned.append(align(source.pop(name), table, rule, forget, unjudged=unjudged))
        return aligned
    table = table_at(Path(tables.template))
    aligned = _by_one_table(source, table, rule, forget)
    if settings.splits and any(map(_loses_cps_rows, aligned)):
        of_others = _paths_of_other_splits(settings, rule)
        if of_others:
            return _by_one_table(read_source(settings, progress=progress), table, rule, forget, of_others)
    return aligned


def _find_tables(settings: DataSettings, tables: TablePaths) -> None:
    """Raise DataError where the table of a split that is asked for is missing: better said before minutes of reading."""
    source = settings.source_path
    if settings.source_type != "chromadb" and (source is None or not ("{split}" in str(source) or source.exists())):
        return  # reading the source will say what is wrong with that
    for split in settings.splits:
        path = tables.of_split(split)
        if path.exists():
            continue
        try:
            read_cps_table(path)
        except DataError as error:
            there = tables.there()
            if not there:
                raise
            names = ", ".join(map(repr, there))
            text = f"{error}, or --splits to some that have one: {names}"
            raise type(error)(text) from None


def _by_one_table(
    source: dict[str, SourceSplit], table: CpsTable, rule: MatchRule, forget: ForgetList, of_others: Set[str] = frozenset()
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
        aligned.append(align(split, own, rule, forget))
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
