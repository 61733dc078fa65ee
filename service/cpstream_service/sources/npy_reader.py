"""The process that reads a numpy_embs.npy, as the one that starts it sees it."""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress

_CODE = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]); "
    f"from {__package__}.npy_child import wait; wait(int(sys.argv[2]), int(sys.argv[3]))"
)


class Reader:
    """A process that waits for its task, while it imports what it needs. It has gone when the block ends.

    shows: whether it may write to the terminal. Raises OSError where no process can be started.
    """

    def __init__(self, *, shows: bool) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own code
                    [sys.executable, "-I", "-S", "-c", _CODE, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=None if shows else subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # it multiplies nothing, and each thread takes memory
                )
            except BaseException:
                self._socket.close()
                raise

    def begin(self, task: dict[str, object], descriptors: tuple[int, ...]) -> None:
        """Have it do the task. descriptors: of the source and the target."""
        with suppress(ConnectionError):  # where it has died, its exit status says of what
            socket.send_fds(self._socket, [b"0"], descriptors)
            self._socket.sendall(json.dumps(task).encode())
            self._socket.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        """Its exit status, when it has done the task."""
        return self._process.wait()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *of_error: object) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


def may_show(progress: bool) -> bool:
    """Whether a process may write how far it is to the terminal: where there is one."""
    return progress and sys.stderr is not None and sys.stderr.isatty()
