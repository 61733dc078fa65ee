"""The file of `cpstream check --report`: every row that alignment dropped."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from ..align.align import AlignedSplit
from ..align.drops import DroppedRow
from ..errors import DataError
from ..setting_errors import SettingsError

SUFFIXES = (".csv", ".parquet")
COLUMNS = ("split", *DroppedRow._fields)


def refuse_name(path: Path) -> None:
    """Raise SettingsError where the file could not be written: better before minutes of reading than after."""
    if path.suffix not in SUFFIXES:
        raise SettingsError(f"report is {str(path)!r}; it must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise SettingsError(f"report is {str(path)!r}; there is no folder {str(path.parent)!r}")


def write_report(path: Path, splits: Sequence[AlignedSplit]) -> int:
    """Write the file, whole or not at all. Returns its number of rows. Raises DataError when it cannot be written."""
    import pandas as pd  # here: a service that starts has no use for it

    rows = [(split.name, *row) for split in splits for row in split.drops]
    frame = pd.DataFrame([[_valid(text) for text in row] for row in rows], columns=COLUMNS, dtype=object)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.astype("string").to_parquet(temporary, index=False)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot write it: {error.strerror or error}; free space there, or set --report elsewhere"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return len(frame)


def _valid(text: str) -> str:
    """The text with lone surrogates, which no file can hold, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
