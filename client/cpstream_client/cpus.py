"""How much of the CPU a process may use, and how long its limit has stopped it: what cgroups (version 1 and 2) say."""

import os

from .cgroups import CGROUPS, PROC_CGROUP, limiting


def cpu_limit(proc_cgroup: str = PROC_CGROUP, cgroups: str = CGROUPS) -> float:
    """CPUs that this process may use at once: the fewest of its affinity and the quotas of its cgroup and the ones above."""
    try:
        limits = [float(len(os.sched_getaffinity(0)))]
    except AttributeError:  # macOS
        limits = [float(os.cpu_count() or 1)]
    for folder, version in limiting("cpu", proc_cgroup, cgroups):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if float(quota) > 0:
                limits.append(float(quota) / float(period))
        except (OSError, ValueError):  # no limit there: no file, or "max"
            continue
    return min(limits)


def throttled_s(proc_cgroup: str = PROC_CGROUP, cgroups: str = CGROUPS) -> float | None:
    """Seconds for which quotas have stopped the processes of this cgroup, all together; None where there is no quota to ask."""
    found = []
    for folder, _ in limiting("cpu", proc_cgroup, cgroups):
        try:
            lines = (folder / "cpu.stat").read_text().splitlines()
        except OSError:
            continue
        of = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
        if "throttled_usec" in of or "throttled_time" in of:
            found.append(of["throttled_usec"] / 1e6 if "throttled_usec" in of else of["throttled_time"] / 1e9)
    return max(found) if found else None
