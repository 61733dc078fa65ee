"""The process that reads a numpy_embs.npy, started by npy_reader.py: it hands over what the file holds, or dies of it."""

import gc
import io
import json
import os
import socket
from typing import Any, NoReturn

from ..orphans import die_with
from .handover import hand_over, refuse
from .limits import limit_process
from .npy_content import LAYOUT, UnreadableError, read_content
from .rows import SourceSplit

_MB = 1 << 20
_MAX_ERROR = 1500
"""Characters: names and shapes are as long as a file makes them."""


def wait(descriptor: int, parent: int) -> NoReturn:
    """Do the task that comes by this socket. Ctrl-C, which reaches both processes, is the parent's to act upon."""
    die_with(parent)
    with socket.socket(fileno=descriptor) as connection:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
        if len(descriptors) != 2:  # nothing is to be read
            os._exit(0)
        with connection.makefile("rb") as file:
            task = json.load(file)
    main(task | {"source": descriptors[0], "target": descriptors[1]})


def main(task: dict[str, Any]) -> NoReturn:
    """Read the file open as task["source"] into the one open as task["target"]. task: as npy_apart.py makes it."""
    gc.disable()
    memory_bytes = task["memory_bytes"]
    limit_process(memory_bytes, task["cpu_s"])
    with open(task["target"], "wb", buffering=0, closefd=False) as target:
        try:
            with _source(task) as source:
                found = read_content(source, task["splits"], task["columns"], progress=task["progress"])
            _check_size(found, memory_bytes)
            hand_over(target, found.values())
        except UnreadableError as error:
            refuse(target, str(error)[:_MAX_ERROR])
        except MemoryError:
            found = {}  # or there might be none left to say so
            refuse(
                target,
                f": its pickle takes more than {memory_bytes // _MB} MB of memory to be read, far more than what it holds: it is "
                f"damaged, or made to; write it again, its embeddings as arrays: {LAYOUT}",
            )
        except Exception as error:
            refuse(target, f": what it holds cannot be handed over ({error!r:.200}); write it again: {LAYOUT}")
    os._exit(0)  # not by giving back millions of objects one by one, nor one that is nested too deep for that


def _check_size(found: dict[str, SourceSplit], memory_bytes: int) -> None:
    """One row that stands in a list a million times costs a file nothing, and whoever copies it all that there is."""
    if sum(4 * split.embeddings.shape[0] * split.embeddings.shape[1] for split in found.values()) > memory_bytes:
        raise MemoryError


def _source(task: dict[str, Any]) -> io.RawIOBase:
    """The file to read, behind a progress bar where one is wanted."""
    if not task["progress"]:
        return io.FileIO(task["source"], closefd=False)
    from .counted import Counted

    return Counted(task["source"], task["name"])
