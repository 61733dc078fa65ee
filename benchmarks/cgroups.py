"""A control group with a memory limit, for processes that shall have less memory than their data."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .findings import Skipped

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limited:
    """A cgroup. version 1 or 2."""

    path: Path
    version: int
    limit_bytes: int

    def drop_caches(self) -> None:
        """Take from its processes every page that the kernel can take, so that a side finds nothing that the last one read."""
        with suppress(OSError):  # it says so when a page could not be had
            if self.version == 1:
                (self.path / "memory.force_empty").write_text("0")
            else:
                (self.path / "memory.reclaim").write_text(str(self.limit_bytes))


@contextmanager
def limited(limit_bytes: int) -> Iterator[Limited]:
    """A new cgroup below this process's own, gone at the end. Raises Skipped where none can be made."""
    version, parent = _own()
    path = parent / f"cpstream-bench-{os.getpid()}"
    try:
        path.mkdir()
        try:
            name = "memory.limit_in_bytes" if version == 1 else "memory.max"
            (path / name).write_text(str(limit_bytes))
            if version == 2 and (path / "memory.swap.max").exists():
                (path / "memory.swap.max").write_text("0")
        except OSError:
            path.rmdir()
            raise
    except OSError as error:
        raise Skipped(
            f"no memory limit can be set here ({error.strerror}: {error.filename}); run as root, or in a container"
        ) from error
    try:
        yield Limited(path, version, limit_bytes)
    finally:
        for _ in range(100):  # it can go once the kernel has buried its last process
            try:
                path.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def _own() -> tuple[int, Path]:
    """Version and folder of the cgroup that limits this process's memory."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = ROOT / "memory" / path.lstrip("/")
            return 1, own if own.exists() else ROOT / "memory"
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    own = ROOT / line[3:].lstrip("/")
    return 2, own if own.exists() else ROOT
