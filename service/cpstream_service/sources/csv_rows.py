"""A CSV file as people write it, as rows of fields: its encoding, its separator, its quotes. No row is shifted into place."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    import _csv

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)
_OTHERS = (
    (b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip"),
    (b"BZh", "compressed by bzip2", "unpack it: bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it: unxz"),
    (b"(\xb5/\xfd", "compressed by Zstandard", "unpack it: unzstd"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (xls)", "save it as CSV UTF-8"),
    (b"\x93NUMPY", "an .npy file", "set --cps-csv to the CPS table"),
    (b"SQLite format 3", "an SQLite database", "set --cps-csv to the CPS table"),
)


def read_text(path: Path, encoding: str) -> str:
    """The text of a CSV file. A byte order mark says its encoding, or else `encoding`. Raises OSError, or DataError in one line."""
    data = path.read_bytes()
    if data.startswith(b"PK\x03\x04"):
        kind, remedy = ("an Excel workbook (xlsx)", "save it as CSV UTF-8") if b"xl/" in data else ("a zip archive", "unpack it")
        raise DataError(f"{path} is {kind}, not a CSV file; {remedy}")
    for start, kind, remedy in _OTHERS:
        if data.startswith(start):
            raise DataError(f"{path} is {kind}, not a CSV file; {remedy}")
    for mark, marked in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            encoding = marked
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = "UTF-8" if error.encoding.startswith("utf-8") else encoding
        raise DataError(
            f"{path}, line {line}: byte {error.start} (0x{data[error.start]:02x}) is not {name}; save it as CSV UTF-8, or say what "
            "it is: --csv-encoding cp1251 (Cyrillic), cp1252 (Western European), shift_jis..."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path}, line {line}: it holds a NUL; save it as CSV UTF-8, or, if it is UTF-16, set --csv-encoding utf-16-le"
        )
    return text


@dataclass(frozen=True, slots=True)
class Header:
    """The first row. columns: their names, stripped; start: where in the text the rows begin; line: how many lines stand before."""

    separator: str
    columns: list[str]
    start: int
    line: int

    @property
    def least(self) -> int:
        """Fields that a row must have: all columns but nameless ones at the end, which a spreadsheet leaves."""
        return max((i for i, name in enumerate(self.columns, 1) if name), default=0)


def read_header(path: Path, text: str, fits: Callable[[Sequence[str]], bool]) -> Header | None:
    """The header, separated so that its columns fit, or else have the most names; None where there is none.

    A line `sep=;` before it says the separator.
    """
    start, line, separators = 0, 0, tuple(_SEPARATORS)
    for found_line in _LINE.finditer(text):
        row, start, line = found_line[0], found_line.end(), line + 1
        said = _SEPARATOR_LINE.fullmatch(row)
        if said:
            separators = (said[1],)
        elif row.strip():
            break
    else:
        return None
    found = []
    for separator in separators:
        try:
            columns = [name.strip() for name in next(csv.reader([row], delimiter=separator))]
        except (csv.Error, ValueError) as error:
            raise DataError(
                f"{path}, line {line}: not the header of a CSV file ({error}); write one that names its columns"
            ) from None
        found.append(Header(separator, columns, start, line))
        if fits(columns):
            return found[-1]
    return max(found, key=lambda header: len(header.columns))


def read_rows(path: Path, text: str, header: Header, path_at: int) -> Iterator[tuple[int, list[str], str | None]]:
    """(the line where a row starts, its fields, what is wrong with it or None); blank rows are left out. Raises DataError.

    path_at: the column of the path, by which rows are known that a stray quote has swallowed.
    """
    least, most = header.least, len(header.columns)
    quoted = '"' in text
    if quoted and header.separator == "\t":
        quoted = _well_quoted(text[header.start :])
    held: list[str] = []
    reader = _reader(text, header, quoted, held)
    line = header.line + 1
    try:
        for row in reader:
            problem = None if least <= len(row) <= most else _wrong_number(row, header)
            if quoted:
                if len(held) > 1 and _swallowed(held[1:], row, header, path_at):
                    last = line + len(held) - 1
                    problem = f"lines {line} to {last} are one row by their quotes, and look like several: mend the quotes"
                held.clear()
            if (row and row[0][:1] > " ") or any(map(str.strip, row)):
                yield line, row, problem
            line = header.line + reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not a CSV row ({error}); mend its quotes") from None


def _reader(text: str, header: Header, quoted: bool, held: list[str]) -> "_csv.Reader":
    """Rows of fields. held: takes the lines of a row where there may be quotes."""
    # Faster than StringIO, which makes each line anew from four-byte characters.
    lines = io.TextIOWrapper(io.BytesIO(text[header.start :].encode()), "utf-8", newline="")
    if not quoted:
        return csv.reader(lines, delimiter=header.separator, quoting=csv.QUOTE_NONE)

    def holding() -> Iterator[str]:
        for line in lines:
            held.append(line)
            yield line

    return csv.reader(holding(), delimiter=header.separator, strict=True)


def _wrong_number(row: list[str], header: Header) -> str | None:
    """What to say of a row with more fields than columns, or fewer; None where those too many are empty."""
    count, most = len(row), len(header.columns)
    if count < header.least:
        return f"the line has {count} of {header.least} columns"
    if not any(map(str.strip, row[most:])):
        return None
    return f"the line has {count} fields for {most} columns: quote the {_SEPARATORS.get(header.separator, 'separators')} in them"


def _well_quoted(text: str) -> bool:
    """Whether the quotes of a tab-separated text are those of a CSV writer, and none of them runs over tabs and lines."""
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
        return not any("\t" in field and ("\n" in field or "\r" in field) for row in rows for field in row)
    except csv.Error:
        return False


def _swallowed(lines: Sequence[str], row: list[str], header: Header, path_at: int) -> bool:
    """Whether one of the further lines of a row looks like a row itself: as many fields, and a path of the same kind."""
    if len(row) <= path_at:
        return True
    suffix = PurePosixPath(row[path_at].strip()).suffix
    for fields in csv.reader(lines, delimiter=header.separator, quoting=csv.QUOTE_NONE):
        if header.least <= len(fields):
            path = fields[path_at].strip()
            if path and (path.endswith(suffix) if suffix else len(path.split()) == 1):
                return True
    return False
