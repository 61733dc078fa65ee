"""What has been fetched and is still waiting for the loop."""

from dataclasses import dataclass

PREFETCH_BYTES = 64 * 1024**2


@dataclass(slots=True)
class Backlog:
    """Of one iteration. max_bytes: of what waits and of what is on its way, together; put_bytes, got_bytes: of what has come to
    wait, and has been taken, ever, each counted by one thread; is_whole: whether all of the iteration has been fetched.
    """

    max_bytes: int = PREFETCH_BYTES
    put_bytes: int = 0
    got_bytes: int = 0
    is_whole: bool = False

    @property
    def nbytes(self) -> int:
        """Waiting now."""
        return self.put_bytes - self.got_bytes
