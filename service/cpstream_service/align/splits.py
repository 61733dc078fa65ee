"""Read the source and the CPS tables that the settings name, and align every split."""

from collections.abc import Sequence
from dataclasses import replace

from cpstream_client.contract.bodies import AlignmentReport

from ..errors import AlignmentError
from ..settings import DataSettings
from ..sources.cps_table import read_cps_table
from ..sources.read import cps_path, read_source
from .align import AlignedSplit, align, find_leaks, num_lost


def align_all(settings: DataSettings, *, progress: bool = False) -> list[AlignedSplit]:
    """Every split of the settings, aligned, with leaks between them reported.

    Raises DataError when something cannot be read; never for what alignment drops: see `refuse`.
    """
    tables = {split: cps_path(settings, split) for split in settings.splits}
    for path in tables.values():  # a wrong path is better said before minutes of reading
        if not path.exists():
            read_cps_table(path)
    source = read_source(settings, progress=progress)
    aligned = []
    for name in list(source):
        table = read_cps_table(cps_path(settings, name), settings.path_column, settings.cps_column)
        aligned.append(align(source.pop(name), table))
    leaks = find_leaks(aligned)
    return [replace(split, report=split.report.model_copy(update={"leaks": leaks[split.name]})) for split in aligned]


def refuse(settings: DataSettings, reports: Sequence[AlignmentReport]) -> None:
    """Raise AlignmentError where a split has no sample, or with strict where a row was lost."""
    reports = tuple(reports)
    for report in reports:
        if not report.num_aligned:
            raise AlignmentError(
                f"split {report.split!r} aligns nothing: none of its {report.num_embeddings} embeddings finds a value among the "
                f"{report.num_cps} rows of {cps_path(settings, report.split)}: {_reasons(report)}; correct the paths, or --cps-csv",
                reports,
            )
    lost = [report for report in reports if num_lost(report)]
    if settings.strict and lost:
        raise AlignmentError(
            f"--strict, and alignment dropped {sum(map(num_lost, lost))} rows: "
            + "; ".join(f"split {report.split!r}: {_reasons(report)}" for report in lost)
            + "; correct the data, or leave --strict out",
            reports,
        )


def _reasons(report: AlignmentReport) -> str:
    texts = (f"{entry.count} {entry.reason} (first: {entry.examples[0]})" for entry in report.dropped)
    return ", ".join(texts) or "there are no rows"
