"""A process of its own for what takes long, seen from the service: what it says, and how it died."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from typing import Any

from ..errors import DataError
from .messages import Failed, Task

_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main(int(sys.argv[2]))"


class Apart:
    """A child process that does a task. It never outlives this one."""

    def __init__(self, task: Task) -> None:
        """Raises OSError where no process can be started."""
        self._task = task
        self._connection, theirs = Pipe()
        code = _CODE.format(module=f"{__package__}.child")
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own code
                [sys.executable, "-c", code, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # it multiplies nothing, and each thread takes memory
            )
        with contextlib.suppress(OSError):  # one that died at once tells so by its end
            self._connection.send(task)

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self, timeout_s: float) -> Any:
        """What it says next: one of messages.py; None where that takes longer. After its end, Failed for whatever reason."""
        try:
            return self._connection.recv() if self._connection.poll(timeout_s) else None
        except (EOFError, OSError):
            return Failed(DataError(_death(self._process.wait())))

    def close(self) -> None:
        """End it, if it has not ended."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _death(status: int) -> str:
    if status == -signal.SIGKILL:
        return (
            "the process that loads the data was killed, most likely for want of memory; free some, or raise the container's limit"
        )
    if status < 0:
        return f"the process that loads the data died of {signal.Signals(-status).name}; start again"
    return f"the process that loads the data ended with exit code {status}; the log has its cause"
