"""Why a row is left out: one code and one sentence each."""

from enum import Enum


class Reason(Enum):
    """A reason to drop a row. Which side the row is of (embedding or cps) is said by `Dropped.side`."""

    NO_CPS = ("no-cps", "The embedding has no CPS row with a valid value.")
    NO_EMBEDDING = ("no-embedding", "The CPS row has no usable embedding.")
    AMBIGUOUS_PATH = ("ambiguous-path", "The path matches only by its end, and more than one row could be meant.")
    CONFLICTING_DUPLICATE = ("conflicting-duplicate", "Rows of the same path hold different values; none of them is used.")
    IDENTICAL_DUPLICATE = ("identical-duplicate", "Rows of the same path hold the same values; the first one is used.")
    INVALID_CPS = ("invalid-cps", "The CPS is not a finite positive number.")
    NON_FINITE_EMBEDDING = ("non-finite-embedding", "The embedding holds NaN or infinity.")
    WRONG_DIMENSION = ("wrong-dimension", "The embedding's dimension is not the most common one of the split.")
    UNREADABLE_ROW = ("unreadable-row", "The row has no path, no embedding, or one that is not a list of numbers.")

    def __init__(self, code: str, sentence: str) -> None:
        self.code, self.sentence = code, sentence


HARMLESS = frozenset({Reason.IDENTICAL_DUPLICATE.code})
"""Reasons that lose no sample, so that strict lets them pass."""
