"""Speech rates computed from what was said and how long it took, where no one has written them down."""

import math
import unicodedata
from dataclasses import dataclass

from ..settings import TextCount

_COUNTED = {
    "characters": "characters (NFC code points, ends stripped, spaces included)",
    "no-spaces": "characters (NFC code points, white space left out)",
    "letters": "letters and digits (NFC code points)",
}


@dataclass(frozen=True, slots=True)
class TextRates:
    """Columns of the text and of its duration in seconds, and what of the text is counted."""

    text_column: str = "text"
    duration_column: str = "duration"
    count: TextCount = "characters"

    @property
    def columns(self) -> tuple[str, str]:
        return self.text_column, self.duration_column

    @property
    def definition(self) -> str:
        """In one line, for metadata."""
        return f"{_COUNTED[self.count]} of {self.text_column!r} a second of {self.duration_column!r}"

    def rate(self, text: object, duration: object) -> tuple[float, str]:
        """(characters a second, or NaN where there is no rate; what it was to be computed from)."""
        seconds = number(duration)
        if not isinstance(text, str):
            return math.nan, f"{self.text_column} {shown(text)}"
        if not 0 < seconds < math.inf:
            return math.nan, f"{self.duration_column} {shown(duration)}"
        count = count_text(text, self.count)
        return (count / seconds if count else math.nan), f"{count} characters in {seconds:g} s"


def count_text(text: str, what: TextCount) -> int:
    """How many code points of the NFC form of a text count."""
    text = text.strip() if text.isascii() else unicodedata.normalize("NFC", text).strip()
    if what == "characters":
        return len(text)
    if what == "no-spaces":
        return sum(map(len, text.split()))
    return sum(map(str.isalnum, text))


def number(value: object) -> float:
    """A number, or text that is one, as float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or (isinstance(value, str) and "_" in value):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def shown(value: object) -> str:
    """A value for a message, not too much of it."""
    if value is None:
        return "null"
    text = str(value) if isinstance(value, (str, int, float)) else type(value).__name__
    return text if len(text) <= 40 else f"{text[:37]}..."
