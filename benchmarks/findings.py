"""What a measurement hands back: a value with its target, and the raw figures behind it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

Kind = Literal["ours", "local", "network", "limit"]


@dataclass(frozen=True)
class Target:
    """The bound that a value should keep."""

    bound: float
    is_floor: bool

    def met(self, value: float) -> bool:
        return value >= self.bound if self.is_floor else value <= self.bound


def at_least(bound: float) -> Target:
    return Target(bound, True)


def at_most(bound: float) -> Target:
    return Target(bound, False)


@dataclass(frozen=True)
class Series:
    """The values of one side, one a round. kind: how the chart groups it."""

    label: str
    values: list[float]
    unit: str
    kind: Kind = "ours"

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table: the median of `values`, one a round, beside its target. sides: what the values were made of."""

    what: str
    values: list[float]
    unit: str = "x"
    target: Target | None = None
    sides: Sequence[Series] = ()
    note: str = ""

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "info"
        return "ok" if self.target.met(self.value) else "below"

    def to_json(self) -> dict[str, Any]:
        sides = [{**asdict(side), "median": side.median} for side in self.sides]
        spread = [min(self.values), max(self.values)]
        return {**asdict(self), "value": self.value, "spread": spread, "verdict": self.verdict, "sides": sides}


def ratio(what: str, ours: Series, other: Series, target: Target | None = None, note: str = "") -> Finding:
    """Ours over the other's, round by round: a machine that slows down for a while slows both sides of a round."""
    values = [ours_now / other_now for ours_now, other_now in zip(ours.values, other.values, strict=True)]
    return Finding(what=what, values=values, target=target, sides=(ours, other), note=note)


@dataclass(kw_only=True)
class Outcome:
    """How a measurement ended. status: done, skipped or failed; the reason says why in the latter two."""

    name: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "findings": [finding.to_json() for finding in self.findings]}


class Skipped(Exception):
    """A measurement cannot be made here. The message says what is missing."""
