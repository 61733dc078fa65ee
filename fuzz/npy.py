"""Target `npy`: embeddings in a pickle, of every shape and protocol, read, aligned and gathered as a start does it.

A file is read in a process of its own. Here that is a fork of the worker, with the same code and the same limits, for a new
interpreter takes a hundred times as long to start; one in a thousand is read by a new one.
"""

import io
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import IO, Any
from unittest.mock import patch
from zlib import crc32

import numpy as np

from cpstream_service.align.align import align
from cpstream_service.errors import DataError
from cpstream_service.orphans import die_with
from cpstream_service.sources import npy_apart, npy_child
from cpstream_service.sources.cps_table import CpsTable, read_cps_table
from cpstream_service.sources.npy import FILE_NAME, read_npy

from .mutate import ANY, mutated
from .pickles import PICKLE
from .tables import DIM, PATHS, prepare_csv
from .target import Target, WrongError, check_message, peak_bytes

_ANEW = 1000
_LED_ASTRAY = 77
_HARMFUL = {"os.system", "os.exec", "os.putenv", "os.remove", "os.rename", "socket.connect", "shutil.rmtree", "subprocess.Popen"}
"""What no reading of a file leads to, by the names of Python's audit events."""


def values() -> list[Any]:
    """What scripts save."""
    vectors = np.random.default_rng(0).standard_normal((len(PATHS), DIM), dtype=np.float32)
    forms: list[Any] = [
        lambda v: v,
        lambda v: v.tolist(),
        lambda v: v.astype(np.float64),
        lambda v: v.astype(">f4"),
        lambda v: v.reshape(1, -1),
        lambda v: [np.float32(x) for x in v],
        lambda v: np.matrix(v),
    ]
    found: list[Any] = []
    for i, form in enumerate(forms):
        rows = [{"embedding": form(v), "file_path": path} for v, path in zip(vectors[:5], PATHS, strict=False)]
        found.append({"train": rows[:3], "dev": rows[3:]})
        if i < 2:
            flat = [
                {**row, "split": "train" if at % 2 else "dev", "other": (at, {"x"}, 1.5, b"raw")} for at, row in enumerate(rows)
            ]
            found += [np.array([found[-1]], dtype=object), flat]
    return found


def prepare(folder: Path) -> tuple[list[bytes], bytes]:
    """Files as np.save writes them, and those of the other protocols; and a table."""
    seeds = []
    for value in values():
        file = io.BytesIO()
        np.save(file, value, allow_pickle=True)
        seeds.append(file.getvalue())
        array = np.empty((), dtype=object)
        array[()] = value
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
        seeds += [header.getvalue() + pickle.dumps(array, protocol) for protocol in range(6)]
    return seeds, next(content for variant, content in prepare_csv(folder) if variant == "plain")


class _Npy:
    def __init__(self, seeds: list[bytes], table: CpsTable, path: Path, nowhere: IO[bytes]) -> None:
        self._seeds, self._table, self._path, self._nowhere = seeds, table, path, nowhere
        self.beside_bytes = 0

    def draw(self, random: Random) -> bytes:
        mutations = PICKLE if random.random() < 0.7 else ANY
        return mutated(random.choice(self._seeds), random, self._seeds, mutations)

    def accepts(self, data: bytes) -> bool:
        self._path.write_bytes(data)
        self.beside_bytes = 0
        try:
            with patch.object(npy_apart, "_run", self._run if crc32(data) % _ANEW else npy_apart._run):
                splits = read_npy(self._path)
        except DataError as error:
            check_message(error)
            return False
        for split in splits.values():
            aligned = align(split, self._table)
            if aligned.embeddings.dtype != np.float32 or not np.isfinite(aligned.embeddings).all():
                raise WrongError(f"served {aligned.embeddings!r}")
        return True

    def _run(self, path: Path, task: dict[str, Any], descriptors: tuple[int, ...]) -> int:
        before, parent = peak_bytes(), os.getpid()
        pid = os.fork()
        if not pid:
            try:
                os.dup2(self._nowhere.fileno(), 2)
                die_with(parent)
                sys.addaudithook(_watch)
                npy_child.main(task)
            finally:
                os._exit(1)
        _, status, used = os.wait4(pid, 0)
        self.beside_bytes = used.ru_maxrss * 1024 - before
        code = os.waitstatus_to_exitcode(status)
        if code == _LED_ASTRAY:
            raise WrongError("reading it led to what no reading leads to")
        return code


def _watch(event: str, _: tuple[Any, ...]) -> None:
    if event in _HARMFUL:
        os._exit(_LED_ASTRAY)


@contextmanager
def start(state: tuple[list[bytes], bytes], folder: Path) -> Iterator[_Npy]:
    seeds, table = state
    (folder / "table.csv").write_bytes(table)
    with open(os.devnull, "wb") as nowhere:
        yield _Npy(seeds, read_cps_table(folder / "table.csv"), folder / FILE_NAME, nowhere)


TARGET = Target("npy", prepare, start)
