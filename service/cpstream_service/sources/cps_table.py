"""CPS tables: one CSV a split, with the path of each recording and its speech rate."""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MissingFileError
from .rows import Reason, RowProblem, path_problem
from .text_rates import TextRates, number

_SEPARATORS = (",", ";", "\t")
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
) -> CpsTable:
    """Read a CPS table: UTF-8 with or without BOM; separated by comma, semicolon or tab; other columns are ignored.

    Where it has no cps_column, but the two of text_rates, rates are computed from these. labels: further columns to keep.

    Where the separator is not a comma, a decimal comma is understood (12,5), as spreadsheets of many countries write it.
    Raises DataError when the file is missing, empty, not UTF-8, not a CSV, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, file, path_column, cps_column, text_rates, labels)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such CPS table; set --cps-csv to where it lies") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not a CPS table; set --cps-csv to a CSV file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the CPS table: {error.strerror or error}; check the file's permissions") from None


def _read(path: Path, file: IO[str], path_column: str, cps_column: str, text_rates: TextRates, labels: Sequence[str]) -> CpsTable:
    header, first_line = "", 0
    while not header.strip():
        line = file.readline()
        if not line:
            raise DataError(f"{path} is empty; a CPS table starts with a header line naming {path_column!r} and {cps_column!r}")
        header, first_line = line, first_line + 1
    rates_from = [(cps_column,), text_rates.columns]
    separator, columns = _separator_of(header, path_column, rates_from)
    computed = cps_column not in columns and all(columns.count(column) == 1 for column in text_rates.columns)
    wanted = [(path_column, "--path-column"), (cps_column, "--cps-column")]
    for column, setting in [*(wanted[:1] if computed else wanted), *((label, "--labels") for label in labels)]:
        if columns.count(column) != 1:
            fault = "is missing" if column not in columns else "occurs more than once"
            raise DataError(
                f"{path}: column {column!r} {fault}; the header has: {', '.join(map(repr, columns))}; "
                f"rename the column or set {setting}"
            )
    path_at = columns.index(path_column)
    if computed:
        text_at, cps_at = map(columns.index, text_rates.columns)
    else:
        text_at = cps_at = columns.index(cps_column)
    labels_at = [columns.index(label) for label in labels]
    last_at = max(path_at, text_at, cps_at, *labels_at)
    values: list[list[float]] = []

    file_paths: list[str] = []
    cps: list[float] = []
    lines: list[int] = []
    bad_texts: dict[int, str] = {}
    problems: list[RowProblem] = []
    for line_number, row in _rows(path, file, separator, first_line):
        if len(row) <= last_at:
            short = f"the line has {len(row)} of {len(columns)} columns"
            known = row[path_at] if len(row) > path_at and path_problem(row[path_at]) is None else None
            problems.append(RowProblem(Reason.UNREADABLE_ROW, f"line {line_number}", short, known))
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
            file_paths.append(row[path_at])
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


def _rows(path: Path, file: IO[str], separator: str, lines_before: int) -> Iterator[tuple[int, list[str]]]:
    """(the line where a row starts, its fields), blank lines left out."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    line_number = lines_before + 1
    try:
        for row in reader:
            if row:
                yield line_number, row
            line_number = lines_before + reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line_number}: not a CSV row ({error}); mend its quotes") from None


def _separator_of(header: str, path_column: str, rates_from: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """The separator whose reading of the header has the columns asked for, or else the most columns."""
    readings = {}
    for separator in _SEPARATORS:
        columns = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
        if path_column in columns and any(set(names) <= set(columns) for names in rates_from):
            return separator, columns
        readings[separator] = columns
    best = max(readings, key=lambda separator: len(readings[separator]))
    return best, readings[best]


def _decimal_comma(text: str) -> float:
    return float(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(text) else math.nan


def _not_utf8(path: Path) -> DataError:
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return DataError(f"{path} is UTF-16, not UTF-8; save it as CSV UTF-8")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return DataError(
            f"{path}, line {line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; save it as CSV "
            f"UTF-8, or convert it with: iconv -f latin1 -t utf-8"
        )
    return DataError(f"{path} changed while it was read; start again when it is complete")
