"""numpy_embs.npy read in a process of its own, with limits on memory and time.

A pickle may ask for any memory (an index of its memo), any time (a key whose hash takes 2**40 steps), or for the end of the process
that reads it (a key nested deeper than the stack). Checking its opcodes first, in Python, takes many times as long as reading it.
"""

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
from ..progress import telling
from .file_rows import Stamp, stamp_of
from .handover import take_over
from .limits import cpu_limit, memory_limit
from .npy_content import LAYOUT
from .npy_reader import Reader, may_show
from .rows import SourceSplit


@dataclass(frozen=True)
class _Begun:
    """A file that a process is reading. stamp: as it was found."""

    reader: Reader
    task: dict[str, Any]
    source: IO[bytes]
    target: IO[bytes]
    stamp: Stamp

    def is_of(self, source: IO[bytes], splits: Sequence[str], columns: Sequence[str]) -> bool:
        wish = {"splits": list(splits), "columns": list(columns)}
        return os.path.sameopenfile(self.source.fileno(), source.fileno()) and self.task.items() >= wish.items()


_begun: ContextVar[_Begun | None] = ContextVar("begun", default=None)


@contextmanager
def reading_begun(path: Path, source: IO[bytes], splits: Sequence[str], columns: Sequence[str], progress: bool) -> Iterator[None]:
    """Within, a process reads an open file, and read_apart, asked for the same, waits for that one."""
    stamp = stamp_of(source.fileno())
    with ExitStack() as stack:
        target = stack.enter_context(_file_in_memory())
        task = _task(path, source, target, splits, columns, progress)
        try:
            reader = stack.enter_context(Reader(shows=task["progress"]))
        except OSError:  # said where it is to be read
            yield
            return
        reader.begin(task, (source.fileno(), target.fileno()))
        token = _begun.set(_Begun(reader, task, source, target, stamp))
        try:
            yield
        finally:
            _begun.reset(token)


def read_apart(
    path: Path, source: IO[bytes], splits: Sequence[str], columns: Sequence[str], progress: bool
) -> dict[str, SourceSplit]:
    """What npy_content.read_content gives for an open file, whose descriptor stands where its pickle begins. Raises DataError."""
    begun = _begun.get()
    if begun is not None and begun.is_of(source, splits, columns):
        _begun.set(None)
        with _telling(path, source):
            status = begun.reader.wait()
        return _taken_over(path, status, begun.task, begun.source, begun.target, begun.stamp)
    stamp = stamp_of(source.fileno())
    with _file_in_memory() as target:
        task = _task(path, source, target, splits, columns, progress)
        with _telling(path, source):
            status = _run(path, task, (source.fileno(), target.fileno()))
        return _taken_over(path, status, task, source, target, stamp)


def _task(
    path: Path, source: IO[bytes], target: IO[bytes], splits: Sequence[str], columns: Sequence[str], progress: bool
) -> dict[str, Any]:
    size = os.fstat(source.fileno()).st_size
    return {
        "source": source.fileno(),
        "target": target.fileno(),
        "name": path.name,
        "splits": list(splits),
        "columns": list(columns),
        "progress": may_show(progress),
        "memory_bytes": memory_limit(size),
        "cpu_s": cpu_limit(size),
    }


def _run(path: Path, task: dict[str, Any], descriptors: tuple[int, ...]) -> int:
    """Exit status of the process, which never outlives this one. descriptors: of the source and the target."""
    try:
        reader = Reader(shows=task["progress"])
    except OSError as error:
        raise DataError(f"{path}: cannot start a process to read it: {error.strerror}; free memory or raise ulimit -u") from None
    with reader:
        reader.begin(task, descriptors)
        return reader.wait()


def _telling(path: Path, source: IO[bytes]) -> AbstractContextManager[None]:
    size = max(1, os.fstat(source.fileno()).st_size)
    # The open file is one for both processes, and so is the place to which it has been read.
    return telling(lambda: f"reading {path.name}: {min(100, 100 * os.lseek(source.fileno(), 0, os.SEEK_CUR) // size)} %")


def _taken_over(
    path: Path, status: int, task: dict[str, Any], source: IO[bytes], target: IO[bytes], stamp: Stamp
) -> dict[str, SourceSplit]:
    if status != 0:
        raise DataError(f"{path}: {_death(status, task)}")
    try:
        found = take_over(target.fileno(), source.fileno(), str(path), stamp)
    except (ValueError, LookupError, OSError) as error:
        raise DataError(f"{path}: the process that read it handed over something else ({error}); start again") from None
    if isinstance(found, str):
        raise DataError(f"{path}{found}")
    return found


def _file_in_memory() -> IO[bytes]:
    with suppress(AttributeError, OSError):  # neither everywhere, nor allowed in every container
        return os.fdopen(os.memfd_create("cpstream-rows", os.MFD_CLOEXEC), "r+b")
    return tempfile.TemporaryFile()


def _death(status: int, task: dict[str, Any]) -> str:
    """What a process that ended by itself died of."""
    again = f"write it again, with arrays and str paths alone: {LAYOUT}"
    if status == -signal.SIGXCPU:
        return f"its pickle takes more than {task['cpu_s']} s of processor time to be read; {again}"
    if status == -signal.SIGKILL:
        return "the process that read it was killed, most likely for want of memory; free memory, or raise the container's limit"
    if status < 0:
        return (
            f"its pickle is damaged, or made to do harm: the process that read it died of {signal.Signals(-status).name}; {again}"
        )
    return f"the process that read it ended with exit code {status}; {again}"
