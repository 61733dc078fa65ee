"""The table of a request's body, read where it can harm nobody: a few KB of Parquet may say that they are gigabytes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from ...errors import InvalidParameter, Overloaded
from ...snapshot.store import FILE_PATHS, Split

_CODE = "import json, sys; task = json.loads(sys.argv[1]); sys.path[:] = task['path']; from {module} import main; main(task)"
_POOL = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
_MEMORY_BYTES, _MEMORY_FACTOR, _CPU_S = 256 << 20, 6, 60


@dataclass(frozen=True)
class Predicted:
    """values (N,) float64, NaN where nothing is predicted. unmatched: counts and examples by member of contract.predictions.Run."""

    values: npt.NDArray[np.float64]
    unmatched: Mapping[str, Mapping[str, object]]


def read_predictions(body: bytes | bytearray, media_type: str, split: Split) -> Predicted:
    """Takes a fresh interpreter, 0.2 s. Raises InvalidParameter for what is no such table, OSError."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(body)
        source.seek(0)
        task = {
            "path": sys.path,
            "parent": os.getpid(),
            "source": source.fileno(),
            "target": target.fileno(),
            "media_type": media_type,
            "paths": str(split.path / FILE_PATHS),
            "memory_bytes": _MEMORY_BYTES + _MEMORY_FACTOR * len(body),
            "cpu_s": _CPU_S,
        }
        status = _run(task, (source, target))
        if status == -signal.SIGKILL:
            raise Overloaded("the process that read the table was killed, most likely for want of memory; send it again later")
        if status:
            raise InvalidParameter(f"the process that read the table died of it (exit code {status}); send it as CSV")
        target.seek(0)
        head = json.loads(target.readline())
        if "refused" in head:
            raise InvalidParameter(head["refused"])
        return Predicted(np.frombuffer(target.read(), np.float64), head)


def _run(task: dict[str, object], files: tuple[IO[bytes], ...]) -> int:
    code = _CODE.format(module=f"{__package__}.table")
    child = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-I", "-S", "-c", code, json.dumps(task)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[file.fileno() for file in files],
        # One thread, and memory as it is asked for: what threads and pools set aside would count as taken.
        env=os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX"), "1") | _POOL,
    )
    with child:
        try:
            return child.wait()
        except BaseException:
            child.kill()
            raise
