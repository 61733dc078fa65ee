"""Rows as sources give them, and why one is left out."""

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from string import whitespace
from typing import Any

import numpy as np
import numpy.typing as npt

from .file_rows import FileRows


class Reason(Enum):
    """A reason to drop a row. Which side the row is of (embedding or cps) is said by `Dropped.side`."""

    FORGOTTEN = ("forgotten", "The forget list names its recording.")
    NO_CPS = ("no-cps", "The embedding has no CPS row.")
    NO_EMBEDDING = ("no-embedding", "The CPS row has no embedding.")
    AMBIGUOUS_PATH = ("ambiguous-path", "The path is another's only by its end, and not for certain: see --map-root.")
    PARTNER_DROPPED = ("partner-dropped", "The row that belongs to it was dropped; it is counted there.")
    CONFLICTING_DUPLICATE = ("conflicting-duplicate", "Rows of the same path hold different values; none of them is used.")
    IDENTICAL_DUPLICATE = ("identical-duplicate", "Rows of the same path hold the same values; the first one is used.")
    INVALID_CPS = ("invalid-cps", "The CPS is not a finite positive number.")
    NON_FINITE_EMBEDDING = ("non-finite-embedding", "The embedding holds NaN or infinity.")
    WRONG_DIMENSION = ("wrong-dimension", "The embedding's dimension is not the most common one of the split.")
    NO_SPLIT = ("no-split", "The record names no split, and others of the source do.")
    UNREADABLE_ROW = ("unreadable-row", "The row has no path, no embedding, or one that is not a list of numbers.")

    def __init__(self, code: str, sentence: str) -> None:
        self.code, self.sentence = code, sentence


ALL = "all"
"""The one split of a source whose records name none."""

HARMLESS = frozenset({Reason.IDENTICAL_DUPLICATE.code, Reason.PARTNER_DROPPED.code, Reason.FORGOTTEN.code})
"""Reasons that lose no further sample, or one that shall be lost, so that strict does not count them."""


@contextmanager
def gc_paused() -> Iterator[None]:
    """For reading, which makes millions of objects and hardly a cycle: the collector would walk them all again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that the source could not use. where: "row 17"; file_path: if the row has a readable one."""

    reason: Reason
    where: str
    detail: str
    file_path: str | None = None

    def __str__(self) -> str:
        path = "" if self.file_path is None else f" ({self.file_path})"
        return f"{self.where}{path}: {self.detail}"


@dataclass(frozen=True, slots=True)
class ByteRows:
    """Rows of float32 as the bytes that they were read as: an (M, D) array to be gathered from, not yet one block of memory."""

    rows: list[bytes]
    dimension: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.dimension

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int | slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Row `at` (D,), or the rows `at` (B, D), read-only."""
        if isinstance(at, slice):
            piece = self.rows[at]
        elif isinstance(at, np.ndarray):
            piece = list(map(self.rows.__getitem__, at.tolist()))
        else:
            return np.frombuffer(self.rows[at], np.float32)
        return np.frombuffer(b"".join(piece), np.float32).reshape(len(piece), self.dimension)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or np.float32)


Embeddings = npt.NDArray[np.float32] | ByteRows | FileRows


@dataclass(frozen=True, slots=True)
class SourceSplit:
    """The embeddings of one split as a source holds them, in its order.

    embeddings (M, D) float32 and the M paths are the usable rows; problems are the others, D being the most common dimension.
    bare_keys: the paths have no extension, as ids have none; what is served then is the path that the CPS table has.
    columns: the further values of the usable rows that were asked for, by name.
    """

    name: str
    file_paths: list[str]
    embeddings: Embeddings
    problems: list[RowProblem] = field(default_factory=list)
    bare_keys: bool = False
    columns: dict[str, list[Any]] = field(default_factory=dict)


NO_NAME = "./\\" + whitespace
"""What stands around the name of a file. LONGEST_NO_NAME: of what is left, if that is none."""
_NO_NAMES = ("", "file:")
LONGEST_NO_NAME = max(map(len, _NO_NAMES))


def path_problem(value: object) -> str | None:
    """What keeps a value from being a file path, or None if it is one."""
    if not isinstance(value, str):
        return f"file_path is {getattr(value, 'kind', type(value).__name__)}, not a string"
    if value.strip(NO_NAME) in _NO_NAMES:
        return f"file_path {value!r} names no file" if value else "file_path is empty"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "file_path is not valid Unicode (it holds a lone surrogate)"
    return None


def kind_of(value: object) -> str:
    """What a value is, for messages: never its text, which a file may make as long and as deep as it likes."""
    return str(getattr(value, "kind", f"a value of type {type(value).__name__}"))


def common_dimension(dimensions: Iterable[int]) -> int:
    """The dimension that most rows have, the larger one on a tie; 0 without rows."""
    counts = Counter(dimensions)
    return max(counts, key=lambda dimension: (counts[dimension], dimension), default=0)


CHUNK_BYTES = 1 << 20
"""What is gathered at a time: into memory that is there already, and hashed and written from the processor's cache."""


def rows_per_chunk(dimension: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    return max(1, chunk_bytes // (4 * max(1, dimension)))
