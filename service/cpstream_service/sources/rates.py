"""CPS tables of rows with named values: JSON lines, Parquet, and the columns of a source itself."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..text import listed
from .cps_table import CpsTable, as_labels
from .rows import Reason, RowProblem, SourceSplit, path_problem
from .text_rates import TextRates, number, shown

PATH_COLUMN, NEMO_PATH_COLUMN = "audio_path", "audio_filepath"


class _Rows:
    """A table on its way. held: the names that its rows have."""

    def __init__(
        self,
        path: Path,
        held: Iterable[str],
        path_column: str | None,
        cps_column: str,
        text: TextRates,
        labels: Sequence[str],
        of: str,
    ) -> None:
        names = dict.fromkeys(held)
        if path_column == PATH_COLUMN and path_column not in names and NEMO_PATH_COLUMN in names:
            path_column = NEMO_PATH_COLUMN  # as NVIDIA NeMo's manifests have it
        computed = cps_column not in names and all(column in names for column in text.columns)
        wanted = [*(() if path_column is None else ((path_column, "--path-column"),)), (cps_column, "--cps-column")]
        for column, setting in [*(wanted[:-1] if computed else wanted), *((label, "--labels") for label in labels)]:
            if column not in names:
                also = f", or give {' and '.join(map(repr, text.columns))}" if setting == "--cps-column" else ""
                raise DataError(
                    f"{path}: {of} {column!r} is missing; there are: {listed(names) or 'none'}; rename it or set {setting}{also}"
                )
        self._path, self._path_column, self._cps_column = path, path_column, cps_column
        self._text = text if computed else None
        self.definition = text.definition if computed else f"{of} {cps_column!r}"
        self._file_paths: list[str] = []
        self._cps: list[float] = []
        self._lines: list[int] = []
        self._bad_texts: dict[int, str] = {}
        self._label_names = labels
        self._labels: list[list[float]] = []
        self.problems: list[RowProblem] = []

    def add(self, line: int, row: Mapping[str, Any], file_path: object = None) -> None:
        """A row; its path is file_path, or in its column."""
        if self._path_column is not None:
            file_path = row.get(self._path_column)
            if (detail := path_problem(file_path)) is not None:
                detail = detail.replace("file_path", self._path_column)
                self.problems.append(RowProblem(Reason.UNREADABLE_ROW, f"line {line}", detail))
                return
        if self._text is None:
            value = number(row.get(self._cps_column))
        else:
            value, text = self._text.rate(*(row.get(column) for column in self._text.columns))
        if not 0 < value < math.inf:
            self._bad_texts[len(self._cps)] = text if self._text is not None else shown(row.get(self._cps_column))
            value = math.nan
        self._file_paths.append(str(file_path))
        self._cps.append(value)
        self._lines.append(line)
        if self._label_names:
            self._labels.append([number(row.get(label)) for label in self._label_names])

    def table_of(self, file_paths: list[str], columns: Mapping[str, Sequence[Any]]) -> CpsTable:
        """All rows at once, by columns; file_paths are sound, and are the table's own from now on."""
        said: Sequence[Any]
        if self._text is None:
            said = columns[self._cps_column]
            self._cps = [value if type(value) is float else number(value) for value in said]
        else:
            rates = [self._text.rate(*row) for row in zip(*(columns[name] for name in self._text.columns), strict=True)]
            self._cps, said = [value for value, _ in rates], [text for _, text in rates]
        cps = np.array(self._cps, np.float64)
        for i in np.flatnonzero(~((cps > 0) & (cps < math.inf))).tolist():
            self._bad_texts[i] = shown(said[i]) if self._text is None else said[i]
            self._cps[i] = math.nan
        self._file_paths, self._lines = file_paths, list(range(1, len(file_paths) + 1))
        self._labels = [list(map(number, row)) for row in zip(*(columns[name] for name in self._label_names), strict=True)]
        return self.table()

    def table(self) -> CpsTable:
        if not self._file_paths and not self.problems:
            raise DataError(f"{self._path} has no rows; write one for each recording")
        cps, lines = np.array(self._cps, np.float64), np.array(self._lines, np.int64)
        labels = as_labels(self._label_names, self._labels)
        return CpsTable(self._path, self._file_paths, cps, lines, self._bad_texts, self.problems, self.definition, labels)


def read_json_lines(
    path: Path, file: IO[bytes], path_column: str, cps_column: str, text: TextRates, labels: Sequence[str] = ()
) -> CpsTable:
    """A table of one JSON object a line, as NeMo's manifests are. Raises DataError."""
    rows: list[tuple[int, dict[str, Any]]] = []
    problems = []
    for line_number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"it is {type(row).__name__}, not an object")
            rows.append((line_number, row))
        except (ValueError, RecursionError) as error:
            problems.append(RowProblem(Reason.UNREADABLE_ROW, f"line {line_number}", f"not a JSON object ({error})"))
    table = _Rows(path, (name for _, row in rows for name in row), path_column, cps_column, text, labels, "key")
    table.problems.extend(problems)
    for line_number, row in rows:
        table.add(line_number, row)
    return table.table()


def read_parquet_table(
    path: Path, file: IO[bytes], path_column: str, cps_column: str, text: TextRates, labels: Sequence[str] = ()
) -> CpsTable:
    """A table in a Parquet file; a row's line is its number, from 1 on. Raises DataError."""
    try:
        with pq.ParquetFile(file) as parquet:
            held = parquet.schema_arrow.names
            table = _Rows(path, held, path_column, cps_column, text, labels, "column")
            wanted = [name for name in held if name in (path_column, NEMO_PATH_COLUMN, cps_column, *text.columns, *labels)]
            read = parquet.read(columns=wanted)
        read.validate(full=True)  # Arrow believes what a file says of itself
        rows = read.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read it as Parquet ({str(error).splitlines()[0][:200]}); write it again") from None
    for i, row in enumerate(rows, 1):
        table.add(i, row)
    return table.table()


def rates_of_source(path: Path, split: SourceSplit, cps_column: str, text: TextRates, labels: Sequence[str] = ()) -> CpsTable:
    """The rates that the rows of a source hold themselves; a row's line is its number, from 1 on. Raises DataError."""
    held = [name for name, values in split.columns.items() if any(value is not None for value in values)]
    table = _Rows(path, held, None, cps_column, text, labels, "key or column")
    return table.table_of(split.file_paths, split.columns)
