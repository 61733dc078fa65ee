"""Read the source and the CPS tables that the settings name, and align every split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cpstream_client.wire import AlignmentReport

from .align import AlignedSplit, align, find_leaks, num_lost
from .errors import AlignmentError, DataError
from .settings import DataSettings
from .sources import SourceSplit
from .sources.cps_table import read_cps_table
from .sources.npy import FILE_NAME, read_npy


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
    return [replace(split, report=replace(split.report, leaks=leaks[split.name])) for split in aligned]


def read_source(settings: DataSettings, *, progress: bool = False) -> dict[str, SourceSplit]:
    """The embeddings of every split of the settings, or of all that the source holds."""
    if settings.source_type == "npy":
        return read_npy(npy_path(settings), settings.splits, progress=progress)
    from .sources.chroma import read_chroma  # chromadb takes a second to import

    return read_chroma(settings, progress=progress)


def npy_path(settings: DataSettings) -> Path:
    if settings.source_path is None:
        raise DataError(f"no source path: set --source-path (CPSTREAM_SOURCE_PATH) to the folder that holds {FILE_NAME}")
    if settings.source_path.suffix == ".npy":
        return settings.source_path
    return settings.source_path / FILE_NAME


def cps_path(settings: DataSettings, split: str) -> Path:
    """The CPS table of a split. A bare file name lies in the source path, anything else is a path as given."""
    path = Path(settings.cps_csv.replace("{split}", split))
    template = Path(settings.cps_csv)
    if len(template.parts) > 1 or settings.source_path is None:
        return path
    folder = settings.source_path.parent if settings.source_path.suffix == ".npy" else settings.source_path
    return folder / path


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
