"""What the service is doing now: its own counters, which the browser asks for each second while somebody looks."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..render import Frame, render


@dataclass(frozen=True)
class Traffic:
    """Of all workers of a service together, since it was started. at_s: when, by the clock of the machine.

    refusals: requests that were refused, by the code of the problem.
    """

    at_s: float
    open_streams: int
    samples: int
    bytes: int
    refusals: Mapping[str, int]


def page(frame: Frame, traffic: Traffic, workers: int, titles: Mapping[str, str]) -> bytes:
    """titles: of the codes of problems."""
    return render("live.html", frame, traffic=traffic, workers=workers, titles=titles)
