"""cpstream check: what alignment makes of the data."""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from cpstream_client.contract.bodies import AlignmentReport, Dropped, RootDifference, SpellingDifference

from ..align.align import UNUSUAL_CPS, USUAL_CPS, ZERO_EMBEDDING
from ..sources.rows import Reason
from ..text import plain, shortened
from .common import MAX_NAME, AsJson, Data, Folder, Report, complain, console, data_of, others, table_of
from .report import refuse_name, write_report

INDENT = 4
MAX_DETAIL_LINES = 4
MAX_ROOTS = 8
SIDES = {"embedding": "embedding", "cps": "CPS row"}
SENTENCES = {reason.code: reason.sentence for reason in Reason} | {
    UNUSUAL_CPS: f"The CPS is outside {USUAL_CPS[0]:g} to {USUAL_CPS[1]:g}.",
    ZERO_EMBEDDING: "The embedding holds nothing but zeros.",
}


def check(folder: Folder = None, /, *, data: Data = None, as_json: AsJson = False, report: Report = None) -> int:
    """Read and align the data as `serve` would, and print what was matched and what was dropped, and why.

    The exit code is 1 when a split aligns nothing, or with --strict when any row was dropped (but for exact duplicates).

    **Examples**

    ```
    cpstream check data/processed/embeddings
    cpstream check data --cps-csv 'tables/{split}.csv' --strict
    cpstream check --source-type chromadb --source-path chroma --cps-csv 'data/{split}_cps.csv' --splits dev test
    cpstream check data --json > report.json
    cpstream check data --report dropped.csv
    ```

    Parameters
    ----------
    as_json
        Print the reports as JSON instead, with every row that was dropped.
    report
        File to write every row that was dropped to: .csv or .parquet.
    """
    from ..align.forget import read_forget_list, strangers
    from ..align.splits import align_all
    from ..align.verdict import refuse

    settings = data_of(folder, data)
    if report is not None:
        refuse_name(report)
    forget = read_forget_list(settings.forget_list)
    splits = align_all(settings, progress=True, forget=forget)
    reports = [split.report for split in splits]
    if as_json:
        whole = [split.report.model_dump(mode="json") | {"rows": [row._asdict() for row in split.drops]} for split in splits]
        print(json.dumps(whole, indent=2))  # noqa: T201 - in ASCII, so that no path can harm a terminal
    else:
        print_reports(reports, console())
    for path, like in strangers(forget, splits).items():
        complain(f"warning: {settings.forget_list} lists {path!r}, and no row has this path{_like(like)}")
    if report is not None:
        count = write_report(report, splits)
        complain(f"wrote {count:,} dropped rows to {report}")
    refuse(settings, reports)
    return 0


def _like(path: str) -> str:
    """What to do about a path of the forget list that is none."""
    return f"; a recording like it is served: write its path, {path!r}" if path else ""


def print_reports(reports: Sequence[AlignmentReport], to: Console) -> None:
    """A table of the splits, the reasons for which rows were dropped, and the paths that several splits hold.

    Readable at 80 columns: paths have lines of their own, and what does not fit is cut in the middle.
    """
    by_setting = any(report.num_by_setting for report in reports)
    columns = ["embeddings", "CPS rows", "aligned", "by equal path", "by path suffix", "by setting", "rows dropped"]
    table = table_of("Alignment", "split", *(name for name in columns if by_setting or name != "by setting"))
    for report in reports:
        counts = [report.num_embeddings, report.num_cps, report.num_aligned, report.num_exact, report.num_by_suffix]
        counts += [report.num_by_setting] if by_setting else []
        table.add_row(others(report.split, MAX_NAME), *(f"{count:,}" for count in (*counts, report.num_dropped)))
    to.print(table)
    dropped = (_Entry(report.split, _dropped(entry), entry) for report in reports for entry in report.dropped)
    _print_entries(to, "Dropped", dropped, "(--json lists all)")
    _print_roots(to, [(report.split, root) for report in reports for root in report.roots])
    spellings = (
        _Entry(report.split, f"{_rows(entry.count)} differ in {entry.differs_in} only: {entry.remedy}", entry)
        for report in reports
        for entry in report.spellings
    )
    _print_entries(to, "Spellings that differ", spellings)
    warnings = (_Entry(report.split, _dropped(entry), entry) for report in reports for entry in report.warnings)
    _print_entries(to, "Served, and unusual", warnings)
    leaks = (_Entry(report.split, f"{entry.count:,} also in {entry.reason}", entry) for report in reports for entry in report.leaks)
    _print_entries(to, "The same path in two splits (served in both)", leaks)


class _Entry(NamedTuple):
    """What is said of some rows of a split, and the first of them."""

    split: str
    what: str
    rows: Dropped | SpellingDifference


def _dropped(entry: Dropped) -> str:
    return f"{_rows(entry.count, SIDES.get(entry.side, 'row'))}, {entry.reason}: {SENTENCES.get(entry.reason, '')}"


def _rows(count: int, name: str = "row") -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _print_entries(to: Console, title: str, entries: Iterable[_Entry], where_the_rest_is: str = "") -> None:
    """Each entry as a line that says what and how many, and its examples below it."""
    for number, (split, what, rows) in enumerate(entries):
        if not number:
            to.print(f"\n{title}", style="italic")
        to.print(_line(split, what))
        for example in rows.examples:
            _print_example(to, example)
        if rows.count > len(rows.examples) > 0:
            to.print(f"{' ' * INDENT}and {rows.count - len(rows.examples):,} more {where_the_rest_is}".rstrip(), style="dim")


def _print_example(to: Console, example: str) -> None:
    """On one line if it fits; else the path on one, cut in the middle, and what is wrong with it below, whole."""
    where, colon, detail = example.partition(": ") if cell_len(plain(example)) > to.width - INDENT else (example, "", "")
    to.print(" " * INDENT, others(f"{where}{colon}".rstrip(), to.width - INDENT), sep="", no_wrap=True, crop=False)
    if detail:
        shown = others(detail, MAX_DETAIL_LINES * (to.width - 2 * INDENT))
        to.print(Padding(shown, (0, 0, 0, 2 * INDENT)))


def _print_roots(to: Console, roots: Sequence[tuple[str, RootDifference]]) -> None:
    """The roots that paths differ in, by the options that match them: each on one line at any width, to be copied."""
    if roots:
        to.print("\nRoots that differ", style="italic")
    for split, root in roots[:MAX_ROOTS]:
        what = "matched, as no other root differs: the same as" if root.applied else "to match, if both are the same recordings, by"
        to.print(_line(split, f"{_rows(root.count)} {what}"))
        to.print(" " * INDENT, others(" ".join(root.options)), sep="", soft_wrap=True)
    if len(roots) > MAX_ROOTS:
        to.print(f"and {len(roots) - MAX_ROOTS:,} more (--json lists all): folders cut from the paths of one side?", style="dim")


def _line(split: str, what: str) -> Text:
    return Text.assemble((shortened(plain(split), MAX_NAME), "bold"), f": {plain(what)}")
