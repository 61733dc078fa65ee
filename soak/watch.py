"""Memory, threads and descriptors of processes over time, and whether they are flat."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WARM_UP, WARM_UP_S = 0.2, 120.0
"""Share of the run that does not count, for pools and caches fill; up to half of a short run, to have so many seconds."""
GROWTH = {"memory": (0.1, 16.0), "threads": (0.1, 4.0), "descriptors": (0.1, 16.0)}
"""By how much a run may end above its beginning: this share of the median, or so many MB, threads, descriptors, if that is more."""


def warm_up_s(seconds: float) -> float:
    """How much of a run of so many seconds does not count."""
    return max(WARM_UP * seconds, min(WARM_UP_S, seconds / 2))


@dataclass
class Series:
    """Samples of one number of one process, or of a process and its children. times in s."""

    name: str
    kind: str
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def verdict(self) -> "Verdict":
        """Flat, if the trend over what is left behind the warm-up adds no more than GROWTH allows.

        The trend is Theil and Sen's: the median of the slopes between all pairs of samples, which the dips and peaks of single
        moments, as when a worker is killed, do not move.
        """
        times, values = np.array(self.times), np.array(self.values)
        if len(times) < 6:
            return Verdict(self, 0.0, 0.0, 0.0, False)
        kept = times >= warm_up_s(float(times[-1]))
        times, values = times[kept], values[kept]
        low, high = np.triu_indices(len(times), 1)
        slope = float(np.median((values[high] - values[low]) / (times[high] - times[low])))
        growth, middle = slope * float(times[-1] - times[0]), float(np.median(values))
        share, least = GROWTH[self.kind]
        return Verdict(self, middle, growth, float(values.max()), growth <= max(share * middle, least))


@dataclass(frozen=True)
class Verdict:
    """median and growth over the run, in the unit of the series; most: the largest sample."""

    series: Series
    median: float
    growth: float
    most: float
    is_flat: bool


def with_children(pid: int) -> list[int]:
    """The process and all below it, as far as they live."""
    found = [pid]
    for each in found:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def numbers(pids: Iterable[int]) -> dict[str, float]:
    """Of all these processes together. memory: MB of their own, without mapped files."""
    found = dict.fromkeys(GROWTH, 0.0)
    for pid in pids:
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            found["memory"] += int(status["RssAnon"].split()[0]) / 1024
            found["threads"] += int(status["Threads"])
            found["descriptors"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except (OSError, KeyError):  # it has just ended
            continue
    return found
