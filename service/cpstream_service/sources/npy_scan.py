"""Where the embeddings of a large numpy_embs.npy lie, found without building what its pickle describes.

np.save writes row after row by the same opcodes: all that differs are the numbers and the path. The third row, which finds its keys
in the memo, is made a regular expression that finds the rows behind it, twice as fast as the unpickler. What is no such row (the
head, the start of the next split, the end) is kept, with the first row of each run, as a pickle of a few rows. That one is read as
any other, so that no opcode is judged here: each row left out says, byte for byte, what the row kept before it says, but for its
numbers and its path.

Anything that does not fit is left to the unpickler: None, never an error.
"""

import os
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np

from .file_rows import FileRows, stamp_of
from .npy_rows import has_path_problems
from .pickled_arrays import Array
from .rows import SourceSplit

LEAST_BYTES = 1 << 20
"""Smaller files are read by the unpickler as fast."""
_CHUNK_BYTES = 4 << 20
_HEAD_BYTES = 1 << 20
_MAX_TOKENS = 2000
_MAX_KEPT_BYTES = 8 << 20
_MAX_MARKS = 1000
_FRAME = rb"(?:\x95.{8})?"
_MEMO = frozenset({"MEMOIZE", "BINPUT", "LONG_BINPUT"})
_GET = frozenset({"BINGET", "LONG_BINGET"})
_TEXT = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4}  # how many bytes say the length
_BYTES = frozenset({"SHORT_BINBYTES", "BINBYTES"})
_STOP = b"."
_SIGN = "\0cpstream "


class _OtherwiseError(Exception):
    """The file is not of this kind."""


@dataclass(frozen=True, slots=True)
class _Token:
    """An opcode with its argument. raw: its bytes; start: where they are in what was read."""

    name: str
    arg: Any
    raw: bytes
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.raw)


@dataclass
class _Run:
    """Rows that follow a row which was kept. path: that row's own."""

    path: str
    offsets: list[int] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)


def scan(descriptor: int, start: int, load: Callable[[bytes], dict[str, list[Any]] | None]) -> dict[str, SourceSplit] | None:
    """The splits of a file whose pickle begins at `start`, their embeddings left in it; or None.

    load: what a pickle holds, as splits of rows; it may raise anything.
    """
    try:
        scanner = _Scanner(descriptor, start)
        scanner.run()
        content = load(scanner.kept())
        return None if content is None else scanner.splits(content)
    except Exception:  # whatever the file is, the unpickler says what is wrong with it
        return None


class _Scanner:
    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor = descriptor
        self._stamp = stamp_of(descriptor)
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._offset_of: dict[bytes, int] = {}
        self._runs: list[_Run] = []
        head = os.pread(descriptor, _HEAD_BYTES, start)
        tokens, third = _head(head)
        self._known = sum(token.name in _MEMO for token in tokens[: tokens.index(third[0])])
        self._template = _Template(third)
        for token in tokens[: tokens.index(third[0])]:
            self._keep(token, start)
        self._mark(third, start)
        self._position = start + third[-1].end

    def run(self) -> None:
        """Find all rows, to the end of the pickle."""
        buffer = bytearray(_CHUNK_BYTES)
        ended = False
        while not ended:
            count = os.preadv(self._descriptor, [buffer], self._position)
            found = self._template.rows(buffer, count, self._position, self._runs[-1])
            if not found:
                found, ended = self._between(bytes(buffer[: min(count, _HEAD_BYTES)]))
            self._position += found

    def kept(self) -> bytes:
        return b"".join(self._kept)

    def splits(self, content: dict[str, list[Any]]) -> dict[str, SourceSplit] | None:
        """The splits, from the rows that were kept and those that were found behind them."""
        found, runs = {}, iter(enumerate(self._runs))
        for name, rows in content.items():
            paths: list[str] = []
            offsets: list[int] = []
            for row in rows:
                path, embedding = row["file_path"], row["embedding"]
                if not isinstance(embedding, Array) or embedding.length != self._template.dimension:
                    raise _OtherwiseError
                offsets.append(self._offset_of[embedding.data])
                if path.startswith(_SIGN):
                    i, run = next(runs)
                    if path != _sign(i):
                        raise _OtherwiseError
                    paths.append(run.path)
                    paths.extend(self._template.texts(run.paths))
                    offsets.extend(run.offsets)
                else:
                    paths.append(path)
            if rows and has_path_problems(paths):
                return None
            if not rows:
                found[name] = SourceSplit(name, [], np.empty((0, 0), np.float32))
                continue
            at = np.array(offsets, np.int64)
            rows_in_file = FileRows(os.dup(self._descriptor), at, self._template.dimension, "the source", self._stamp)
            found[name] = SourceSplit(name, paths, rows_in_file)
        if next(runs, None) is not None:
            raise _OtherwiseError
        return found

    def _keep(self, token: _Token, base: int) -> None:
        """Put an opcode into the pickle of what is kept. base: where what it was read from begins in the file."""
        if token.name == "FRAME":
            return
        if token.name in _BYTES:
            self._offset_of[token.arg] = base + token.end - len(token.arg)
        self._kept.append(token.raw)
        self._kept_bytes += len(token.raw)
        if self._kept_bytes > _MAX_KEPT_BYTES:
            raise _OtherwiseError

    def _mark(self, row: list[_Token], base: int) -> None:
        """Keep a row with a sign in place of its path, by which what follows it is put in its place."""
        if len(self._runs) == _MAX_MARKS:
            raise _OtherwiseError
        for token in row:
            if token.name in _TEXT:
                sign = _sign(len(self._runs)).encode()
                self._runs.append(_Run(token.arg))
                token = _Token(token.name, token.arg, token.raw[:1] + len(sign).to_bytes(_TEXT[token.name], "little") + sign, 0)
            self._keep(token, base)

    def _between(self, data: bytes) -> tuple[int, bool]:
        """Keep what stands before the next row of the template, and that row. Returns how many bytes, and whether it is the end."""
        for number, token in enumerate(_tokens(data)):
            if token.name == "EMPTY_DICT" and (match := self._template.slow.match(data, token.start)):
                row = _tokens(data[: match.end()] + _STOP, token.start)
                self._mark([each for each in row if each.name not in ("FRAME", "STOP")], self._position)
                return match.end(), False
            if number > _MAX_TOKENS or (token.name in _GET and token.arg >= self._known):
                raise _OtherwiseError
            self._keep(token, self._position)
            if token.name == "STOP":
                return token.end, True
        raise _OtherwiseError


class _Template:
    """A row as a regular expression."""

    def __init__(self, row: list[_Token]) -> None:
        numbers = [token for token in row if token.name in _BYTES]
        texts = [token for token in row if token.name in _TEXT]
        if len(numbers) != 1 or len(texts) != 1 or len(numbers[0].arg) % 4 or not numbers[0].arg:
            raise _OtherwiseError
        self.dimension = len(numbers[0].arg) // 4
        self._length_bytes = _TEXT[texts[0].name]
        self._numbers, self._text = (1, 2) if numbers[0].start < texts[0].start else (2, 1)
        parts = [self._part(token) for token in row]
        self.fast = re.compile(rb"(?:e\()?" + b"".join(parts), re.DOTALL)  # 1,000 rows are appended at a time
        self.slow = re.compile(_FRAME.join([b"", rb"(?:e" + _FRAME + rb"\()?", *parts]), re.DOTALL)

    def _part(self, token: _Token) -> bytes:
        if token.name in _BYTES:
            count = len(token.arg)
            return re.escape(token.raw[:-count]) + b"(.{%d})" % count
        if token.name in _TEXT:
            return re.escape(token.raw[:1]) + b"(.{%d}.{0,1024}?)" % self._length_bytes
        if token.name in ("BINPUT", "LONG_BINPUT"):
            return b"(?:q.|r.{4})"
        return b"G.{8}" if token.name == "BINFLOAT" else re.escape(token.raw)

    def rows(self, buffer: bytearray, count: int, base: int, run: _Run) -> int:
        """Put the rows from the start of a buffer on into `run`. Returns how many bytes they are."""
        at = 0
        while True:
            matches = []
            while match := self.fast.match(buffer, at, count):
                matches.append(match)
                at = match.end()
            if match := self.slow.match(buffer, at, count):  # a frame may begin anywhere
                matches.append(match)
                at = match.end()
            if not matches:
                return at
            paths = [match[self._text] for match in matches]
            size = self._length_bytes
            if any(int.from_bytes(path[:size], "little") != len(path) - size for path in paths):
                raise _OtherwiseError
            run.paths += paths
            run.offsets += [base + match.start(self._numbers) for match in matches]

    def texts(self, paths: list[bytes]) -> Iterator[str]:
        size = self._length_bytes
        return (path[size:].decode() for path in paths)


def _sign(number: int) -> str:
    return f"{_SIGN}{number}"


def _tokens(data: bytes, start: int = 0) -> Iterator[_Token]:
    """The opcodes from `start` on. Raises ValueError where they are cut off."""
    file = BytesIO(data)
    file.seek(start)
    for opcode, arg, at in pickletools.genops(file):
        end = file.tell()
        yield _Token(opcode.name, arg, data[at:end], at or 0)


def _head(data: bytes) -> tuple[list[_Token], list[_Token]]:
    """All opcodes up to the end of the third of three dicts that follow each other, and those of the third."""
    tokens: list[_Token] = []
    rows: list[list[_Token]] = []
    row: list[_Token] | None = None
    for token in _tokens(data):
        if len(tokens) > _MAX_TOKENS:
            break
        tokens.append(token)
        if token.name == "FRAME":
            continue
        if token.name == "EMPTY_DICT":
            row = []
        elif row is None:
            rows.clear()  # something stands between
        if row is not None:
            row.append(token)
            if token.name == "SETITEMS":
                rows.append(row)
                row = None
                if len(rows) == 3:
                    return tokens, rows[-1]
    raise _OtherwiseError
