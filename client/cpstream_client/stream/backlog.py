"""What has been fetched and is still waiting for the loop."""

from dataclasses import dataclass

PREFETCH_BYTES = 64 * 1024**2


@dataclass(slots=True)
class Backlog:
    """Of one iteration. nbytes: waiting now, set by whoever holds them; max_bytes: of these and of what is on its way, together.

    is_whole: whether all of the iteration has been fetched.
    """

    max_bytes: int = PREFETCH_BYTES
    nbytes: int = 0
    is_whole: bool = False
