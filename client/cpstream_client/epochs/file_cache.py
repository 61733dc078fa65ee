"""A split in a folder: mapped by all processes of a machine, and there for later runs."""

import fcntl
import json
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from ..buffers import BufferPool
from ..contract.bodies import SplitInfo
from ..contract.plan import Indices
from ..contract.wire import Dtype
from ..files import allocate, lock, no_follow, writable_by_others
from ..stream.reader import Batch
from .cache import IDLE_BUFFERS, gathered

_TRIES = 10
_ELSEWHERE = 'choose another cache=DIRECTORY on a local disk, or cache="memory", or cache=None'
_CHECKSUM_BLOCK_BYTES = 64 * 1024**2


def remove_files(directory: str | os.PathLike[str], fingerprint: str) -> None:
    """Delete what FileCaches of the directory hold of this data, in any dtype, finished or not. What is mapped stays mapped."""
    if fingerprint.isalnum():
        for folder in Path(directory).expanduser().glob(f"{fingerprint}-*"):
            shutil.rmtree(folder, ignore_errors=True)


class FileCache:
    """A SplitCache: a split in a folder of `directory`, memory-mapped, shared by all processes and later runs.

    <directory>/<fingerprint>-<dtype>/ appears, by one rename, when the split is complete. Until then processes fill
    <...>.partial together: all write the same bytes. A .partial folder that no living process holds is begun anew, because
    after a crash of the machine nobody knows which of its pages reached the disk. A complete one is checked by its checksum.
    Raises OSError, which names the remedy, where the disk has not enough room for the split, or no file locks.
    """

    in_host_memory = True

    def __init__(self, directory: str | os.PathLike[str], info: SplitInfo, dtype: Dtype) -> None:
        self._final = Path(directory).expanduser() / f"{info.fingerprint}-{dtype}"
        if (told := writable_by_others(self._final.parent)) is not None:
            warnings.warn(f"{told}; chmod go-w it, or {_ELSEWHERE}", stacklevel=2)
        self._partial = self._final.with_name(self._final.name + ".partial")
        self._pool = BufferPool(IDLE_BUFFERS)
        self._release: Callable[[], object] | None = None  # while the split is not complete: lets go of the partial folder
        self._shape = (info.num_samples, info.embedding_dim)
        self.dtype = dtype
        for left in reversed(range(_TRIES)):
            if self._open_final():
                return
            try:
                self._join_partial()
            except FileNotFoundError:  # another process has just completed it and moved it to its place
                if not left:
                    raise
            else:
                return

    def missing(self, among: Indices | None = None) -> Indices:
        return np.flatnonzero(~self._has) if among is None else among[~self._has[among]]

    def gather(self, indices: Indices) -> Batch:
        return gathered(self._embeddings, self._cps, indices, indices, self._pool)

    def put(self, batch: Batch) -> None:
        assert batch.index is not None  # noqa: S101 - the caller asked for the column
        self._embeddings[batch.index] = batch.embeddings
        self._cps[batch.index] = batch.cps
        self._has[batch.index] = True  # last: another process that maps the same memory must not see it before the row
        if self._release is not None and self._has.all():
            self._finish()

    def _open_final(self) -> bool:
        if not self._final.is_dir():
            return False
        try:
            manifest = json.loads((self._final / "manifest.json").read_text())
            self._map(self._final, "r")
            sound = manifest["checksum"] == self._checksum()
        except (OSError, ValueError, KeyError):
            sound = False
        if not sound:  # altered or damaged on disk
            shutil.rmtree(self._final, ignore_errors=True)
            return False
        self._has = np.ones(self._shape[0], np.bool_)
        return True

    def _join_partial(self) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        held = no_follow(str(self._partial / "lock"), os.O_RDWR | os.O_CREAT)
        self._release = weakref.finalize(self, os.close, held)  # the lock is held for as long as this cache is used
        try:
            lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB, self._partial, _ELSEWHERE)
        except BlockingIOError:
            lock(held, fcntl.LOCK_SH, self._partial, _ELSEWHERE)  # waits for whoever is just beginning it
        else:
            self._begin()
            lock(held, fcntl.LOCK_SH, self._partial, _ELSEWHERE)
        self._map(self._partial, "r+")
        self._has = self._mapped(self._partial / "has", np.bool_, "r+", self._shape[:1])

    def _begin(self) -> None:
        n, dim = self._shape
        sizes = {"embeddings": n * dim * np.dtype(self.dtype).itemsize, "cps": n * 4, "has": n}
        try:
            for name, nbytes in sizes.items():
                allocate(self._partial / name, nbytes, _ELSEWHERE)
        except OSError:
            shutil.rmtree(self._partial, ignore_errors=True)  # what was allocated so far would fill the disk for others
            raise

    def _map(self, folder: Path, mode: Literal["r", "r+"]) -> None:
        self._embeddings = self._mapped(folder / "embeddings", self.dtype, mode, self._shape)
        self._cps = self._mapped(folder / "cps", np.float32, mode, self._shape[:1])

    @staticmethod
    def _mapped(path: Path, dtype: npt.DTypeLike, mode: Literal["r", "r+"], shape: tuple[int, ...]) -> Any:
        with open(path, f"{mode}b", opener=no_follow) as file:
            return np.memmap(file, dtype, mode, shape=shape)

    def _checksum(self) -> str:
        checksum = 0
        for array in (self._embeddings, self._cps):
            flat = array.reshape(-1).view(np.uint8)
            for low in range(0, flat.size, _CHECKSUM_BLOCK_BYTES):
                checksum = crc32c(flat[low : low + _CHECKSUM_BLOCK_BYTES].data, checksum)
        return f"crc32c:{checksum:08x}"

    def _finish(self) -> None:
        """Make the complete partial folder the final one. Whoever comes second finds it done."""
        for array in (self._embeddings, self._cps):
            array.flush()
        manifest = {"checksum": self._checksum(), "num_samples": self._shape[0], "embedding_dim": self._shape[1]}
        try:
            with tempfile.NamedTemporaryFile("w", dir=self._partial, suffix=".json", delete=False) as file:
                json.dump(manifest, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, self._partial / "manifest.json")
            self._partial.rename(self._final)
        except OSError:
            if not self._final.is_dir():
                raise
            shutil.rmtree(self._partial, ignore_errors=True)  # another process finished first; what is mapped stays valid
        else:
            for name in ("lock", "has"):
                (self._final / name).unlink(missing_ok=True)
        if self._release is not None:
            self._release()
            self._release = None
