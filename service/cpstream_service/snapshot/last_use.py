"""When a version was last asked for by its fingerprint: the time of a file in its folder tells it to all workers and replicas."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from cpstream_client.files import no_follow

FILE = ".used"
EVERY_S = 10.0
"""A use that comes sooner after the last one is not written down."""


class LastUse:
    """Writes down the uses of one version by this process: one that is not worth a write costs a look at the clock."""

    def __init__(self, snapshot: Path, every_s: float = EVERY_S) -> None:
        self._path, self._every_s, self._next_s = snapshot / FILE, every_s, 0.0

    def note(self) -> None:
        """The version was used now. What cannot be written, as in a read-only folder, is lost."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + self._every_s
        try:
            os.close(no_follow(str(self._path), os.O_WRONLY | os.O_CREAT))
            os.utime(self._path, follow_symlinks=False)
        except OSError:
            pass


def last_used(snapshot: Path) -> float | None:
    """The time of the last use, in seconds since 1970; None where there was none."""
    try:
        return (snapshot / FILE).lstat().st_mtime
    except OSError:
        return None


@dataclass(frozen=True)
class Retention:
    """What of older versions is kept: the newest, `versions` with the current one, and those used in the last for_s seconds."""

    versions: int = 1
    for_s: float = 0.0

    def still_used(self, snapshot: Path) -> bool:
        """Whether a version was asked for so lately. Never where for_s is 0."""
        used_s = last_used(snapshot)
        return bool(self.for_s) and used_s is not None and time.time() < used_s + self.for_s + EVERY_S


ONLY_CURRENT = Retention()
