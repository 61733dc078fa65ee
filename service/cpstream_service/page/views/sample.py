"""One sample: its rate and where that stands, what lies near it, and what models made of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cpstream_client.contract.bodies import Sample
from cpstream_client.contract.figures import Distribution, Neighbour

from ..pinned import Pin
from ..render import Frame, render
from ..told import Told

_MOST_BARS = 60
"""More are thinner than a finger, or a pixel of a phone."""


@dataclass(frozen=True)
class Standing:
    """Samples of the split that are slower, as fast, and faster; the sample itself is among those as fast."""

    slower: int
    equal: int
    faster: int

    @property
    def of(self) -> int:
        return self.slower + self.equal + self.faster


@dataclass(frozen=True)
class Bar:
    """Of a histogram: x, width, height and y in the picture, from 0 to 100; here: whether the sample is in it."""

    x: float
    width: float
    y: float
    height: float
    here: bool


@dataclass(frozen=True)
class Guess:
    """What a run predicts of the sample; None where it has no prediction."""

    run: str
    predicted: float | None
    error: float | None


@dataclass(frozen=True)
class Elsewhere:
    """The same file in another split, of this fingerprint."""

    split: str
    fingerprint: str
    index: int


@dataclass(frozen=True)
class Found:
    """All that is known of a sample. neighbours: or why there are none; guesses: None where the service keeps no runs."""

    split: str
    pin: Pin
    sample: Sample
    standing: Standing
    neighbours: Sequence[Neighbour] | str
    guesses: Sequence[Guess] | None
    elsewhere: Sequence[Elsewhere]


def page(frame: Frame, found: Found, told: Told) -> bytes:
    cps = told.statistics[found.split].cps if found.split in told.statistics else None
    return render(
        "sample.html",
        frame,
        found=found,
        pin=found.pin,
        sample=found.sample,
        told=told,
        cps=cps,
        bars=() if cps is None else bars(cps, found.sample.cps or 0.0),
        neighbours=() if isinstance(found.neighbours, str) else found.neighbours,
        no_neighbours=found.neighbours if isinstance(found.neighbours, str) else "",
        guesses=found.guesses,
    )


def guess(run: str, predicted: float, cps: float) -> Guess:
    """predicted: NaN where there is none."""
    return Guess(run, None, None) if math.isnan(predicted) else Guess(run, predicted, predicted - cps)


def bars(cps: Distribution, value: float) -> list[Bar]:
    """The histogram of a split's rates; of many bins some are taken together."""
    edges, counts = cps.histogram.edges, cps.histogram.counts
    together = -(-len(counts) // _MOST_BARS)
    low, span = edges[0], edges[-1] - edges[0]
    heights = [sum(counts[at : at + together]) for at in range(0, len(counts), together)]
    ends = [*edges[::together][: len(heights)], edges[-1]]
    found = []
    for at, height in enumerate(heights):
        left, right = ends[at], ends[at + 1]
        here = left <= value < right or (at == len(heights) - 1 and value >= right) or (at == 0 and value < left)
        x, width, tall = 100 * (left - low) / span, 100 * (right - left) / span, 100 * height / max(heights)
        found.append(Bar(round(x, 3), round(width, 3), round(100 - tall, 3), round(tall, 3), here))
    return found
