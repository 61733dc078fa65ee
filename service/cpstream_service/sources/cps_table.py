"""CPS tables: one CSV a split, with the path of each recording and its speech rate."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MissingFileError
from ..text import listed
from .csv_rows import read_header, read_rows, read_text
from .rows import Reason, RowProblem, path_problem
from .text_rates import TextRates, number

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


@dataclass(frozen=True, slots=True)
class CpsTable:
    """A CPS table as read. file_paths[i] has cps[i] (M,) float64, NaN if it is no number, in line lines[i] of the file.

    bad_texts: index -> what stood in place of a number. problems: rows without a path. definition: what the rates are, in one line.
    labels: further columns by name, each (M,) float32, NaN where there is no number.
    """

    path: Path
    file_paths: list[str]
    cps: npt.NDArray[np.float64]
    lines: npt.NDArray[np.int64]
    bad_texts: dict[int, str]
    problems: list[RowProblem]
    definition: str = "column 'cps'"
    labels: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)


def read_cps_table(
    path: Path,
    path_column: str = "audio_path",
    cps_column: str = "cps",
    text_rates: TextRates = TextRates(),
    labels: Sequence[str] = (),
    encoding: str = "utf-8",
) -> CpsTable:
    """Read a CPS table as people write it: csv_rows says how; other columns are ignored.

    Where it has no cps_column, but the two of text_rates, rates are computed from these. labels: further columns to keep.

    Where the separator is not a comma, a decimal comma is understood (12,5), as spreadsheets of many countries write it.
    Raises DataError when the file is missing, empty, not in its encoding, not a CSV, or lacks a column.
    """
    try:
        content = read_text(path, encoding)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such CPS table; set --cps-csv to where it lies") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not a CPS table; set --cps-csv to a CSV file") from None
    except (OSError, ValueError) as error:  # a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot read the CPS table: {reason}; check the file's permissions") from None
    return _read(path, content, path_column, cps_column, text_rates, labels)


def _read(path: Path, content: str, path_column: str, cps_column: str, text_rates: TextRates, labels: Sequence[str]) -> CpsTable:
    rates_from = [{cps_column}, set(text_rates.columns)]
    header = read_header(path, content, lambda names: path_column in names and any(rates <= set(names) for rates in rates_from))
    if header is None:
        raise DataError(f"{path} is empty; a CPS table starts with a header line naming {path_column!r} and {cps_column!r}")
    columns, separator = header.columns, header.separator
    computed = cps_column not in columns and all(columns.count(column) == 1 for column in text_rates.columns)
    wanted = [(path_column, "--path-column"), (cps_column, "--cps-column")]
    for column, setting in [*(wanted[:1] if computed else wanted), *((label, "--labels") for label in labels)]:
        if columns.count(column) != 1:
            fault = "is missing" if column not in columns else "occurs more than once"
            raise DataError(
                f"{path}: column {column!r} {fault}; the header has: {listed(columns)}; rename the column or set {setting}"
            )
    path_at = columns.index(path_column)
    if computed:
        text_at, cps_at = map(columns.index, text_rates.columns)
    else:
        text_at = cps_at = columns.index(cps_column)
    labels_at = [columns.index(label) for label in labels]
    values: list[list[float]] = []

    file_paths: list[str] = []
    cps: list[float] = []
    lines: list[int] = []
    bad_texts: dict[int, str] = {}
    problems: list[RowProblem] = []
    for line_number, row, problem in read_rows(path, content, header, path_at):
        if problem is not None:
            known = row[path_at].strip() if len(row) > path_at and path_problem(row[path_at]) is None else None
            problems.append(RowProblem(Reason.UNREADABLE_ROW, f"line {line_number}", problem, known))
        elif (detail := path_problem(row[path_at])) is not None:
            detail = detail.replace("file_path", path_column)
            problems.append(RowProblem(Reason.UNREADABLE_ROW, f"line {line_number}", detail))
        else:
            text = row[cps_at]
            try:
                value = float(text)
            except ValueError:
                value = _decimal_comma(text) if separator != "," else math.nan
            if computed:
                value, text = text_rates.rate(row[text_at], text if math.isnan(value) or "_" in text else value)
            if not 0 < value < math.inf or "_" in text:  # float() takes 1_0 for 10
                bad_texts[len(cps)] = text
                value = math.nan
            file_paths.append(row[path_at].strip())
            cps.append(value)
            lines.append(line_number)
            if labels:
                values.append([number(row[at].replace(",", ".") if separator != "," else row[at]) for at in labels_at])
    definition = text_rates.definition if computed else f"column {cps_column!r}"
    if not file_paths and not problems:
        raise DataError(f"{path} has a header but no rows; write one row for each recording")
    return CpsTable(
        path,
        file_paths,
        np.array(cps, np.float64),
        np.array(lines, np.int64),
        bad_texts,
        problems,
        definition,
        as_labels(labels, values),
    )


def as_labels(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, npt.NDArray[np.float32]]:
    """Further labels of rows, by name: what is infinite, or too large for float32, is no number either."""
    with np.errstate(over="ignore"):
        columns = np.array(rows, np.float64).reshape(len(rows), len(names)).astype(np.float32)
    columns[~np.isfinite(columns)] = np.nan
    return {name: np.ascontiguousarray(columns[:, i]) for i, name in enumerate(names)}


def _decimal_comma(text: str) -> float:
    return float(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(text) else math.nan
