"""Which version of a split a page is of, and how its links stay with that."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pin:
    """fingerprint: of the split; is_current: whether who pins none gets the same; is_given: whether the page's address has it."""

    fingerprint: str
    is_current: bool
    is_given: bool

    @property
    def query(self) -> str:
        """Of the page's links within the split."""
        return f"?fingerprint={self.fingerprint}" if self.is_given else ""
