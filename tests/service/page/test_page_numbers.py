"""Numbers for people: what is shown is what is so."""

import pytest

from cpstream_service.page.render import moment, number, signed

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0, None, "0"),
        (12345, None, "12,345"),
        (-12345, None, f"{MINUS}12,345"),
        (1.23456, None, "1.23"),
        (0.012345, None, "0.0123"),
        (-1234.5, None, f"{MINUS}1,234"),
        (1.2e-5, None, "1.20e-05"),
        (-2e7, None, f"{MINUS}2.00e+07"),
        (-0.0004, 3, "0.000"),
        (-0.0006, 3, f"{MINUS}0.001"),
        (None, 3, "–"),
    ],
)
def test_number(value: float | None, digits: int | None, shown: str) -> None:
    assert number(value, digits) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.25, "+0.25"), (-1.5, f"{MINUS}1.50"), (0.004, "0.00"), (-0.004, "0.00"), (0, "0.00"), (None, "–")]
)
def test_signed(value: float | None, shown: str) -> None:
    assert signed(value, 2) == shown


def test_moment() -> None:
    assert moment("2026-11-26T06:10:03Z") == "26 November 2026, 06:10 UTC"
    assert moment(None) == "–"
