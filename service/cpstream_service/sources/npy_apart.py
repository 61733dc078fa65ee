"""numpy_embs.npy read in a process of its own, with limits on memory and time.

A pickle may ask for any memory (an index of its memo), any time (a key whose hash takes 2**40 steps), or for the end of the process
that reads it (a key nested deeper than the stack). Checking its opcodes first, in Python, takes many times as long as reading it.
"""

import os
import signal
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..errors import DataError
from ..progress import telling
from .file_rows import stamp_of
from .handover import take_over
from .limits import cpu_limit, memory_limit
from .npy_content import LAYOUT
from .npy_reader import may_show, take_reader
from .rows import SourceSplit


def read_apart(
    path: Path, source: IO[bytes], splits: Sequence[str], columns: Sequence[str], progress: bool
) -> dict[str, SourceSplit]:
    """What npy_content.read_content gives for an open file, whose descriptor stands where its pickle begins. Raises DataError."""
    size, stamp = os.fstat(source.fileno()).st_size, stamp_of(source.fileno())
    with _file_in_memory() as target:
        task = {
            "source": source.fileno(),
            "target": target.fileno(),
            "name": path.name,
            "splits": list(splits),
            "columns": list(columns),
            "progress": may_show(progress),
            "memory_bytes": memory_limit(size),
            "cpu_s": cpu_limit(size),
        }
        status = _run(path, task, (source.fileno(), target.fileno()))
        if status == 0:
            try:
                found = take_over(target.fileno(), source.fileno(), str(path), stamp)
            except (ValueError, LookupError, OSError) as error:
                raise DataError(f"{path}: the process that read it handed over something else ({error}); start again") from None
            if isinstance(found, str):
                raise DataError(f"{path}{found}")
            return found
    raise DataError(f"{path}: {_death(status, task)}")


def _run(path: Path, task: dict[str, object], descriptors: tuple[int, ...]) -> int:
    """Exit status of the process, which never outlives this one. descriptors: of the source and the target."""
    try:
        reader = take_reader(shows=bool(task["progress"]))
    except OSError as error:
        raise DataError(f"{path}: cannot start a process to read it: {error.strerror}; free memory or raise ulimit -u") from None
    size = max(1, os.fstat(descriptors[0]).st_size)

    def phase() -> str:  # the open file is one for both processes, and so is the place to which it has been read
        return f"reading {path.name}: {min(100, 100 * os.lseek(descriptors[0], 0, os.SEEK_CUR) // size)} %"

    with reader, telling(phase):
        return reader.run(task, descriptors)


def _file_in_memory() -> IO[bytes]:
    with suppress(AttributeError, OSError):  # neither everywhere, nor allowed in every container
        return os.fdopen(os.memfd_create("cpstream-rows", os.MFD_CLOEXEC), "r+b")
    return tempfile.TemporaryFile()


def _death(status: int, task: dict[str, object]) -> str:
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
