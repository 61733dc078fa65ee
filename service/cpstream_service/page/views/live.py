"""What the service is doing now: its own counters, which the browser asks for each second while somebody looks."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..render import Frame, render


@dataclass(frozen=True)
class Traffic:
    """Of a service since it was started. at_s: when, by the clock of the machine.

    refusals: requests that were refused, by the code of the problem.
    """

    at_s: float
    open_streams: int
    samples: int
    bytes: int
    refusals: Mapping[str, int]


@dataclass(frozen=True)
class Now:
    """What the panel shows. workers: processes of the service; is_of_all: whether the figures are of all of them together, or
    of the one that was asked; titles: of the codes of problems.
    """

    traffic: Traffic
    workers: int
    is_of_all: bool
    titles: Mapping[str, str]


def page(frame: Frame, now: Now) -> bytes:
    return render("live.html", frame, now=now)
