"""The versions that are held, what two of them differ in, and how the last reload went."""

from collections.abc import Sequence
from dataclasses import dataclass

from cpstream_client.contract.versions import SplitDifference, VersionInfo, VersionList

from ..render import Frame, render


@dataclass(frozen=True)
class Compared:
    """A split of two versions. difference: None where both have the same, or one of them has none: then `words` says so."""

    split: str
    words: str
    difference: SplitDifference | None = None


def page(
    frame: Frame, listed: VersionList, old: VersionInfo | None, new: VersionInfo | None, compared: Sequence[Compared], fault: str
) -> bytes:
    """old, new: the two that are compared, None where none are. fault: why they cannot be, or ""."""
    return render("versions.html", frame, listed=listed, old=old, new=new, compared=compared, fault=fault)
