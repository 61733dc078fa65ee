"""The control groups (version 1 and 2) that limit this process: its own, and those above it."""

from collections.abc import Iterator
from pathlib import Path

PROC_CGROUP, CGROUPS = "/proc/self/cgroup", "/sys/fs/cgroup"


def limiting(controller: str, proc_cgroup: str = PROC_CGROUP, cgroups: str = CGROUPS) -> Iterator[tuple[Path, int]]:
    """Folder and version of each group in which `controller`, "cpu" or "memory", may limit this process, from its own upwards.

    Nothing where the system has no such groups. A folder need not have the controller's files: then there is no limit in it.
    """
    try:
        lines = Path(proc_cgroup).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 has controllers that are mounted together, as cpu,cpuacct, under both names, or under one.
        mounts = (Path(cgroups, controllers), Path(cgroups, controller)) if controllers else ()
        root = next((each for each in mounts if each.is_dir()), Path(cgroups))
        folder = root / path.lstrip("/")
        # In a container the path is often the host's, while what is mounted is the container's own group.
        for each in (folder, *folder.parents) if folder.is_dir() else (root,):
            if each != root and root not in each.parents:
                break
            yield each, 1 if controllers else 2
