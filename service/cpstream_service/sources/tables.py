"""The rates of a split, from wherever the settings say: a table, which may be CSV, JSON lines or Parquet, or the source itself."""

import glob
import stat
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..settings import DataSettings
from .cps_table import CpsTable, read_cps_table
from .formats import HEAD_BYTES, check_pointer
from .places import SPLIT, base_folder
from .regular import open_regular
from .rows import SourceSplit
from .text_rates import TextRates

WHAT = "a CPS table"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TablePaths:
    """Where the CPS tables lie. template: their path, in which {split}, where it has one, stands for the split."""

    template: str

    @classmethod
    def of(cls, settings: DataSettings) -> "TablePaths":
        """A bare file name lies beside the source, anything else is a path as given."""
        template = Path(settings.cps_csv)
        if len(template.parts) == 1 and settings.source_path is not None:
            template = base_folder(settings.source_path) / template
        return cls(str(template))

    @property
    def one_for_all(self) -> bool:
        return SPLIT not in self.template

    def of_split(self, split: str) -> Path:
        return Path(self.template.replace(SPLIT, split))

    def there(self) -> dict[str, Path]:
        """Those that exist, by what {split} can stand for."""
        before, _, after = self.template.partition(SPLIT)
        if self.one_for_all or SPLIT in after:
            return {}
        found = sorted(glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"))
        return {path[len(before) : len(path) - len(after)]: Path(path) for path in found}


def text_rates(settings: DataSettings) -> TextRates:
    return TextRates(settings.text_column, settings.duration_column, settings.text_count)


def source_columns(settings: DataSettings) -> tuple[str, ...]:
    """What the rows of the source have to bring along."""
    return (settings.cps_column, *text_rates(settings).columns, *settings.labels) if settings.cps_from == "source" else ()


def read_table(path: Path, settings: DataSettings) -> CpsTable:
    """A CPS table; what it is written as is seen from its first bytes. Raises DataError."""
    columns = (settings.path_column, settings.cps_column)
    text = text_rates(settings)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return read_cps_table(path, *columns, text, settings.labels, settings.csv_encoding)  # which says what is wrong
    if is_folder:
        return read_cps_table(path, *columns, text, settings.labels, settings.csv_encoding)
    with open_regular(path, WHAT, "--cps-csv") as file:
        head = file.peek(HEAD_BYTES)[:HEAD_BYTES]  # type: ignore[attr-defined] # it is a BufferedReader
        check_pointer(path, head)
        start = head.removeprefix(_BOM).lstrip()
        if start.startswith((b"{", b"PAR1", b"[")):
            from .rates import read_json_lines, read_parquet_table  # pyarrow.parquet: only where a table needs it

            if start.startswith(b"PAR1"):
                return read_parquet_table(path, file, *columns, text, settings.labels)
            if start.startswith(b"["):
                raise DataError(f"{path} is a JSON list; write one object a line: jq -c '.[]'")
            file.read(len(_BOM) if head.startswith(_BOM) else 0)
            return read_json_lines(path, file, *columns, text, settings.labels)
    return read_cps_table(path, *columns, text, settings.labels, settings.csv_encoding)


def rates_of(split: SourceSplit, settings: DataSettings) -> CpsTable:
    """The rates in the rows of a split themselves. Raises DataError."""
    from .rates import rates_of_source

    if split.bare_keys:
        raise DataError(
            f"{settings.source_path}: a source of type {settings.source_type} holds no rates; set --cps-csv to a table, and leave "
            "--cps-from out"
        )
    return rates_of_source(Path(str(settings.source_path)), split, settings.cps_column, text_rates(settings), settings.labels)
