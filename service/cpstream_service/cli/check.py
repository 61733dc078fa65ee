"""`cpstream check`: what alignment makes of the data, as tables."""

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpstream_client.contract.bodies import AlignmentReport

from ..align.splits import align_all, refuse
from ..settings import DataSettings
from ..sources.rows import Reason

_DATA = DataSettings()


def check(*, data: Annotated[DataSettings, Parameter(name="*", group="Data")] = _DATA) -> int:
    """Read and align the data as `serve` would, and print what was matched and what was dropped, and why.

    The exit code is 1 when a split aligns nothing, or with --strict when any row was dropped (but for exact duplicates).

    **Examples**

    ```
    cpstream check --source-path data/processed/embeddings
    cpstream check --source-path data --cps-csv 'tables/{split}.csv' --strict
    cpstream check --source-type chromadb --source-path chroma --cps-csv 'data/{split}_cps.csv' --splits dev --splits test
    ```
    """
    splits = align_all(data, progress=True)
    print_reports([split.report for split in splits])
    refuse(data, [split.report for split in splits])
    return 0


def print_reports(reports: Sequence[AlignmentReport], console: Console | None = None) -> None:
    """Tables of the splits, of the rows dropped, and of the paths that several splits hold."""
    console = console or Console()
    console.print(_splits_table(reports))
    if any(report.dropped for report in reports):
        console.print(_dropped_table(reports))
    if any(report.leaks for report in reports):
        console.print(_leaks_table(reports))


def _splits_table(reports: Sequence[AlignmentReport]) -> Table:
    table = Table("split", title="Alignment")
    for column in ("embeddings", "CPS rows", "aligned", "by equal path", "by path suffix", "rows dropped"):
        table.add_column(column, justify="right")
    for report in reports:
        counts = (report.num_embeddings, report.num_cps, report.num_aligned, report.num_exact, report.num_by_suffix)
        table.add_row(Text(report.split), *(f"{count:,}" for count in (*counts, report.num_dropped)))
    return table


def _dropped_table(reports: Sequence[AlignmentReport]) -> Table:
    sentences = {reason.code: reason.sentence for reason in Reason}
    table = Table("split", "rows of", "reason", title="Dropped")
    table.add_column("count", justify="right")
    table.add_column("first examples", overflow="fold")
    for report in reports:
        for entry in report.dropped:
            reason = Text.assemble((entry.reason, "bold"), "\n", (sentences.get(entry.reason, ""), "dim"))
            table.add_row(Text(report.split), entry.side, reason, f"{entry.count:,}", Text("\n".join(entry.examples)))
    return table


def _leaks_table(reports: Sequence[AlignmentReport]) -> Table:
    table = Table("split", "also in", title="The same path in two splits (served in both)")
    table.add_column("count", justify="right")
    table.add_column("first examples", overflow="fold")
    for report in reports:
        for entry in report.leaks:
            table.add_row(Text(report.split), Text(entry.reason), f"{entry.count:,}", Text("\n".join(entry.examples)))
    return table
