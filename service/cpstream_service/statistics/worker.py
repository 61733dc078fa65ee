"""The process that computes the figures of a snapshot for jobs.py, which starts it: at low priority, on one thread.

It tells on its standard output, a line each: `progress 0.25`, `unkept <why>`, and at the end `figures <bytes>` with so many bytes
after it, or `failed <why>`.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..orphans import die_with
from ..snapshot.store import SnapshotInvalid, open_snapshot
from .compute import compute
from .kept import Progress, keep, packed

NICENESS = 10
"""A tenth of the processor where everything else wants all of it, and all that is left otherwise."""
_TELL_EVERY_S = 0.2
_OOM_SCORE = "500"


def main(task: dict[str, Any]) -> None:
    """task: as jobs.py makes it. Never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both: the service ends this process
    die_with(task["parent"])
    os.nice(NICENESS)
    with suppress(OSError):  # where memory runs out, this one goes before the service
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    try:
        _work(Path(task["folder"]), task["fingerprint"], tuple(task["roles"]))
    except Exception as error:
        said = str(error) if isinstance(error, OSError | SnapshotInvalid) else repr(error)
        _tell(f"failed {' '.join(said.split())}")
    sys.stdout.flush()
    os._exit(0)


def _work(folder: Path, fingerprint: str, roles: tuple[str, ...]) -> None:
    snapshot, progress, told_s = open_snapshot(folder, verify=False), Progress(folder), 0.0
    if snapshot.fingerprint != fingerprint:
        raise SnapshotInvalid(f"{folder.name} has fingerprint {snapshot.fingerprint} by now, not {fingerprint}")

    def tell(share: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > _TELL_EVERY_S:
            told_s = time.monotonic()
            _tell(f"progress {share:.4f}")
            progress.note(share)

    progress.note(0.0)  # or others would see how far one came that was killed
    try:
        content = packed(snapshot, roles, compute(snapshot, roles, tell))
        try:
            keep(folder, content)
        except OSError as error:
            _tell(f"unkept {error.strerror}")
    finally:
        progress.remove()
    _tell(f"figures {len(content)}")
    sys.stdout.buffer.write(content)


def _tell(line: str) -> None:
    sys.stdout.buffer.write(line.encode() + b"\n")
    sys.stdout.buffer.flush()
