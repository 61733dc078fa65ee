"""Every row that alignment left out of a split, as a table beside its arrays, where there is any: `dropped.csv`.

What is to be forgotten is not in it: its path would be kept and sent.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ..align.drops import DroppedRow
from ..sources.rows import Reason
from ..text import harmless
from .synced import synced

NAME = "dropped.csv"
COLUMNS = DroppedRow._fields
_ROWS = 4096
_PATH = COLUMNS.index("file_path")


def write_dropped(folder: Path, drops: Iterable[DroppedRow]) -> None:
    """Write the table, whose paths no spreadsheet takes for a formula. Raises OSError."""
    kept = (row for row in drops if row.reason != Reason.FORGOTTEN.code)
    first = list(islice(kept, _ROWS))
    if not first:
        return
    with synced(folder / NAME) as file:
        file.write(table([COLUMNS]))
        while first:
            file.write(table(tuple(map(harmless, row)) for row in first))
            first = list(islice(kept, _ROWS))


def table(rows: Iterable[tuple[str, ...]]) -> bytes:
    """Lines of CSV. What UTF-8 cannot hold, parts of a character, is escaped."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def dropped_paths(folder: Path) -> Iterator[str]:
    """The paths in the table; one behind an apostrophe with and without it, as it may have been put there.

    Raises OSError, and csv.Error for a field of more than 128 KiB.
    """
    if not (folder / NAME).exists():
        return
    with open(folder / NAME, encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        for row in rows:
            path = row[_PATH]
            yield path
            if path.startswith("'"):
                yield path[1:]
