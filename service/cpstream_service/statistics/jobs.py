"""The figures of the versions that are served: kept ones, or such as a process of their own computes when they are first asked for.

Not when the service starts: a service whose statistics nobody looks at, and each of its replicas, would burn a minute of processor
time for nothing. A process, because numpy's threads and the interpreter's lock would make streams wait.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import StatisticsFailed
from ..snapshot.store import Snapshot
from .kept import Texts, lock, progress, read, unpacked

logger = logging.getLogger("cpstream.service")

MAX_FAILURES = 3
"""After so many the process is not started again until the service is."""
_REMEMBERED = 4
_CODE = "import json, sys; task = json.loads(sys.argv[1]); sys.path[:] = task['path']; from {module} import main; main(task)"
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL", "BLIS")}


@dataclass(eq=False)
class _Job:
    """What is known of one version's figures. thread: that which waits for the process, while there is one."""

    ready: dict[str, Texts] | None = None
    progress: float = 0.0
    failures: int = 0
    process: subprocess.Popen[bytes] | None = None
    thread: threading.Thread | None = None


class Jobs:
    """The figures of each version. roles: which split is which, as the settings have it. close() ends what is being computed.

    is_ending: whether the service has been told to end, and only lets replies finish: nothing is computed any more.
    """

    def __init__(self, roles: tuple[str, ...], is_ending: Callable[[], bool] = lambda: False) -> None:
        self._roles, self._is_ending = roles, is_ending
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def ready(self, snapshot: Snapshot) -> dict[str, Texts] | None:
        """The figures of each split, if they are here already."""
        job = self._jobs.get(snapshot.fingerprint)
        return None if job is None else job.ready

    def ask(self, snapshot: Snapshot) -> dict[str, Texts] | float:
        """The figures of each split, or the share that is done. Reads files: not for the event loop.

        Raises StatisticsFailed when it has been tried often enough.
        """
        with self._lock:
            job = self._job(snapshot.fingerprint)
            if job.ready is not None:
                return job.ready
            if job.thread is not None:
                return job.progress
            job.ready = read(snapshot, self._roles)
            if job.ready is not None:
                return job.ready
            if job.failures >= MAX_FAILURES:
                raise StatisticsFailed(
                    f"the statistics cannot be computed, {MAX_FAILURES} times in a row; the service's log says why; mend that and "
                    "restart it"
                )
            return self._start(job, snapshot)

    def _job(self, fingerprint: str) -> _Job:
        job = self._jobs.setdefault(fingerprint, _Job())
        self._jobs.move_to_end(fingerprint)
        for old in list(self._jobs)[:-_REMEMBERED]:
            if self._jobs[old].thread is None:
                del self._jobs[old]
        return job

    def _start(self, job: _Job, snapshot: Snapshot) -> float:
        if self._closed:
            return 0.0
        try:
            held = lock(snapshot.path)
        except OSError as error:
            self._failed(job, f"the snapshot's folder is gone ({error.strerror})")
            return 0.0
        if held is None:  # another worker, or another service, is at it
            return progress(snapshot.path)
        job.progress = 0.0
        job.thread = threading.Thread(target=self._compute, args=(job, snapshot, held), name="statistics", daemon=True)
        job.thread.start()
        return 0.0

    def _compute(self, job: _Job, snapshot: Snapshot, held: int) -> None:
        """Start the process, which must not outlive this thread, and wait for its figures."""
        try:
            with self._process(snapshot, held) as process:
                os.close(held)  # the process has it now
                held = -1
                job.process = process
                if self._closed:  # since it was started
                    process.kill()
                self._listen(job, process, snapshot)
            if job.ready is None and not self._closed:
                self._failed(job, f"its process ended with exit code {process.returncode}")
        except (OSError, _Said) as error:
            self._failed(job, str(error))
        finally:
            if held >= 0:
                os.close(held)
            job.process = job.thread = None

    def _process(self, snapshot: Snapshot, held: int) -> subprocess.Popen[bytes]:
        task = {
            "path": sys.path,
            "parent": os.getpid(),
            "folder": os.fspath(snapshot.path),
            "fingerprint": snapshot.fingerprint,
            "roles": list(self._roles),
        }
        code = _CODE.format(module=f"{__package__}.worker")
        return subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-I", "-S", "-c", code, json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(held,),
            env=os.environ | _ONE_THREAD,
        )

    def _listen(self, job: _Job, process: subprocess.Popen[bytes], snapshot: Snapshot) -> None:
        """Until it ends. Raises _Said."""
        assert process.stdout is not None  # noqa: S101
        for line in process.stdout:
            word, _, rest = line.decode().strip().partition(" ")
            if word == "progress":
                job.progress = float(rest)
                if self._is_ending():
                    self._closed = True
                    process.kill()
            elif word == "unkept":
                logger.warning("the statistics cannot be kept beside the snapshot, and are in memory alone: %s", rest)
            elif word == "failed":
                raise _Said(rest)
            elif word == "figures":
                job.ready = unpacked(process.stdout.read(int(rest)), snapshot, self._roles)

    def _failed(self, job: _Job, reason: str) -> None:
        job.failures += 1
        again = "asked again, it is tried again" if job.failures < MAX_FAILURES else "it is not tried again"
        logger.error("cannot compute the statistics (%d. time; %s): %s", job.failures, again, reason)

    def close(self) -> None:
        """Ends what is being computed, and returns when it has ended."""
        self._closed = True
        for job in list(self._jobs.values()):
            process, thread = job.process, job.thread
            if process is not None:
                process.kill()
            if thread is not None:
                thread.join()


class _Said(Exception):
    """What the process says of its failure."""
