"""How much of the CPU a process may use, and how long its limit has stopped it: what cgroups (version 1 and 2) say."""

import os
from collections.abc import Iterator
from pathlib import Path

_PROC_CGROUP, _CGROUPS = "/proc/self/cgroup", "/sys/fs/cgroup"


def cpu_limit(proc_cgroup: str = _PROC_CGROUP, cgroups: str = _CGROUPS) -> float:
    """CPUs that this process may use at once: the fewest of its affinity and the quotas of its cgroup and the ones above."""
    try:
        limits = [float(len(os.sched_getaffinity(0)))]
    except AttributeError:  # macOS
        limits = [float(os.cpu_count() or 1)]
    for folder in _folders(proc_cgroup, cgroups):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if float(quota) > 0:
                limits.append(float(quota) / float(period))
        except (OSError, ValueError):  # no limit there: no file, or "max"
            continue
    return min(limits)


def throttled_s(proc_cgroup: str = _PROC_CGROUP, cgroups: str = _CGROUPS) -> float | None:
    """Seconds for which quotas have stopped the processes of this cgroup, all together; None where there is no quota to ask."""
    found = []
    for folder in _folders(proc_cgroup, cgroups):
        try:
            lines = (folder / "cpu.stat").read_text().splitlines()
        except OSError:
            continue
        of = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
        if "throttled_usec" in of or "throttled_time" in of:
            found.append(of["throttled_usec"] / 1e6 if "throttled_usec" in of else of["throttled_time"] / 1e9)
    return max(found) if found else None


def _folders(proc_cgroup: str, cgroups: str) -> Iterator[Path]:
    """The cgroup that limits this process's CPU, and those above it."""
    try:
        lines = Path(proc_cgroup).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = (Path(cgroups, controllers), Path(cgroups, "cpu")) if controllers else ()
        root = next((each for each in mounts if each.is_dir()), Path(cgroups))
        folder = root / path.lstrip("/")
        # In a container the path is often the host's, while what is mounted is the container's own group.
        for each in (folder, *folder.parents) if folder.is_dir() else (root,):
            if each != root and root not in each.parents:
                break
            yield each
