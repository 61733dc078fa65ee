"""Embeddings from Kaldi archives: an .scp or an .ark of float vectors, the key being the utterance's id.

kaldiio decodes the vectors, from files that are opened here: left to itself it runs an .scp entry that ends in `|` as a command,
waits at a pipe, and unpickles what an archive says is a pickle. The key matches a CPS row by the path without its extension.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MissingFileError
from ..progress import Bar
from .collect import Collector
from .formats import HEAD_BYTES, check_pointer
from .regular import files_under, open_regular
from .rows import ALL, SourceSplit

WHAT = "an .scp or .ark file of vectors"
_MAX_OPEN = 32
_PLACE = re.compile(r"(?P<path>.+?)(?::(?P<offset>\d+))?(?P<range>\[[^]]*\])?")
_TYPE = re.compile(rb"\0B(?P<type>[FD][VM]|CM[23]?) ")
_TEXT = re.compile(rb"\s*\[?[\s\d.+-]")


def kaldi_files(path: Path) -> list[Path]:
    """The .scp and every .ark that it names, or the .ark. Raises DataError."""
    path = _index_of(path)
    if path.suffix != ".scp":
        return [path]
    return [path, *dict.fromkeys(archive for _, _, archive, _ in _entries(path))]


def read_kaldi(path: Path, *, progress: bool = False) -> dict[str, SourceSplit]:
    """All vectors, as the split ALL. Executes nothing. Raises DataError; what is no vector is a row that cannot be used."""
    path = _index_of(path)
    found = Collector(ALL)
    vectors = _by_index(path, found) if path.suffix == ".scp" else _of_archive(path)
    for where, key, vector in Bar(vectors, path.name, disable=None if progress else True, delay=2, unit=" rows"):
        if isinstance(vector, ValueError):
            found.refuse(where, str(vector), key)
        else:
            found.add(where, key, vector)
    return {ALL: found.finish(bare_keys=True)}


def _index_of(path: Path) -> Path:
    """The file that is meant by a path: itself, or the one .scp of a folder."""
    if not path.is_dir():
        if not path.exists():
            raise MissingFileError(f"{path}: there is no such file; set --source-path to {WHAT}")
        return path
    held = [file for file in files_under(path, ".scp") if file.parent == path]
    if len(held) != 1:
        names = ", ".join(file.name for file in held[:5]) or "none"
        raise DataError(f"{path} is a folder with {len(held)} .scp files ({names}); set --source-path to the one to read")
    return held[0]


def _entries(index: Path) -> Iterator[tuple[int, str, Path, int]]:
    """(line, key, archive, offset) of an .scp. Raises DataError for what is no place in a file."""
    with open_regular(index, WHAT) as file:
        check_pointer(index, file.peek(HEAD_BYTES))  # type: ignore[attr-defined] # it is a BufferedReader
        for number, line in enumerate(file, 1):
            try:
                text = line.decode().strip()
            except UnicodeDecodeError:
                raise DataError(f"{index}, line {number}: it is not UTF-8; set --source-path to {WHAT}") from None
            if not text:
                continue
            key, _, place = text.partition(" " if " " in text else "\t")
            place = place.strip()
            if "|" in text:
                raise DataError(
                    f"{index}, line {number}: the entry of {key!r} holds a |, which makes it a command; commands are not run; "
                    "write the vectors to a file first (copy-vector scp:IN ark,scp:OUT.ark,OUT.scp)"
                )
            match = _PLACE.fullmatch(place)
            if match is None:
                raise DataError(f"{index}, line {number}: {text[:80]!r} is not `key file:offset`; set --source-path to {WHAT}")
            if match["range"]:
                raise DataError(
                    f"{index}, line {number}: {key!r} is a part {match['range']} of a matrix; write it as a vector first"
                )
            yield number, key, _resolved(index, Path(match["path"])), int(match["offset"] or 0)


def _resolved(index: Path, archive: Path) -> Path:
    """An archive as Kaldi finds it, from the folder where it runs; or else beside the .scp, as both may have been moved."""
    beside = index.parent / archive
    return beside if not archive.exists() and beside.exists() else archive


def _by_index(index: Path, found: Collector) -> Iterator[tuple[str, str, Any]]:
    with ExitStack() as stack:
        files: dict[Path, IO[bytes]] = {}
        for number, key, archive, offset in _entries(index):
            if archive not in files:
                if len(files) == _MAX_OPEN:
                    stack.pop_all().close()
                    files.clear()
                files[archive] = stack.enter_context(_open_archive(archive, f"{index}, line {number}: "))
            files[archive].seek(offset)
            try:
                yield f"line {number}", key, _vector(files[archive])
            except ValueError as error:
                yield f"line {number}", key, error


def _of_archive(path: Path) -> Iterator[tuple[str, str, Any]]:
    from kaldiio.matio import read_token

    with _open_archive(path) as file:
        number = 0
        while True:
            try:
                key = read_token(file)
            except UnicodeDecodeError:
                raise DataError(
                    f"{path}: after {number} entries comes no key; it is damaged, or no archive; write it again"
                ) from None
            if key is None or not key.strip():
                return
            number += 1
            try:
                yield f"entry {number}", key.strip(), _vector(file)
            except ValueError as error:
                raise DataError(
                    f"{path}: entry {number}, {key.strip()[:80]!r}, cannot be read ({error}), nor what follows it; write it again"
                ) from None


def _open_archive(path: Path, where: str = "") -> IO[bytes]:
    try:
        file = open_regular(path, WHAT)
    except MissingFileError:
        raise MissingFileError(
            f"{where}{path}: there is no such file; paths in an .scp count from the folder where it was written: start there, or "
            "put the archives beside the .scp"
        ) from None
    try:
        check_pointer(path, file.peek(HEAD_BYTES))  # type: ignore[attr-defined] # it is a BufferedReader
    except DataError:
        file.close()
        raise
    return file


def _vector(file: IO[bytes]) -> npt.NDArray[Any]:
    """The vector or matrix that starts here. Raises ValueError, the decoder's own failures included."""
    from kaldiio.matio import read_kaldi as decode

    start = file.tell()
    head = file.read(16)
    file.seek(start)
    kind = _TYPE.match(head)
    if kind is None and not _TEXT.match(head):
        raise ValueError(f"it holds {head[:5]!r} where numbers belong; only vectors of Kaldi's own, binary or text, are read")
    try:
        array = np.asarray(decode(file))
    except Exception as error:  # a damaged entry may fail in any way
        raise ValueError(f"it is damaged: {str(error) or type(error).__name__}") from None
    if kind and kind["type"][:1] in b"FD":  # the decoder takes what there is where the file ends too early
        sizes = struct.unpack(
            "<xixi" if kind["type"].endswith(b"M") else "<xi", head[kind.end() :][: 10 if kind["type"].endswith(b"M") else 5]
        )
        if array.size != np.prod(sizes):
            raise ValueError(f"it is truncated: {array.size} of {np.prod(sizes)} numbers are there")
    return array
