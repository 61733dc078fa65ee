"""The rule by which `make soak` calls a number flat: what grows is found, what goes up and down is not."""

import math
import random

import pytest
from soak.watch import Series


def series(kind: str, value: object, seconds: float = 1200.0) -> Series:
    """Samples of each 5 s. value: a function of the seconds."""
    times = [5.0 * i for i in range(1, int(seconds / 5))]
    return Series("service", kind, times, [value(time) for time in times])  # type: ignore[operator]


def noisy(base: float, per_minute: float, noise: float) -> object:
    rng = random.Random(0)
    return lambda time: base + per_minute * time / 60 + rng.uniform(-noise, noise)


@pytest.mark.parametrize(
    ("kind", "value", "is_flat"),
    [
        ("memory", noisy(250, 0, 10), True),
        ("memory", noisy(250, 2, 10), False),
        ("memory", lambda time: 250 * (1 - math.exp(-time / 60)), True),  # it fills, and then no more
        ("memory", lambda time: 120 if time % 90 < 10 else 250, True),  # a worker is killed now and then
        ("memory", lambda time: (120 if time % 90 < 10 else 250) + time / 30, False),
        ("memory", noisy(250, -5, 10), True),
        ("threads", noisy(30, 0.5, 1), False),
        ("threads", lambda time: 30 + (time // 60) % 2, True),
        ("descriptors", noisy(90, 0.2, 12), True),
        ("descriptors", noisy(90, 2, 12), False),
    ],
)
def test_what_is_flat(kind: str, value: object, is_flat: bool) -> None:
    assert series(kind, value).verdict().is_flat == is_flat


def test_too_few_samples_are_not_flat() -> None:
    assert not series("memory", lambda _: 100.0, seconds=20).verdict().is_flat
