"""One iteration of a SampledLoader: what was drawn, what of it was delivered."""

from collections import deque
from dataclasses import dataclass, field

from crc32c import crc32c

from ..contract.plan import Indices

AUDIT_ROWS = 8 * 1024**2
"""Of the latest batches `indices` knows: 64 MiB. A sampler may have no end."""


@dataclass(slots=True)
class Drawn:
    """One iteration. first: the batch of the epoch that it begins with; waiting: batches drawn and not delivered yet, in order.

    since: batches drawn since the sampler's state was that of at_start(). digest: of the indices of all batches delivered.
    """

    epoch: int
    first: int = 0
    delivered: int = 0
    digest: int = 0
    since: int = 0
    waiting: deque[Indices] = field(default_factory=deque)
    is_drawn: bool = False
    log: deque[Indices] = field(default_factory=deque)
    log_rows: int = 0

    @property
    def finished(self) -> bool:
        return self.is_drawn and not self.waiting

    def deliver(self) -> None:
        """The loop receives the next batch."""
        indices = self.waiting.popleft()
        self.digest = digest_of(indices, self.digest)
        self.delivered += 1
        self.log.append(indices)
        self.log_rows += len(indices)
        while self.log_rows > AUDIT_ROWS and len(self.log) > 1:
            self.log_rows -= len(self.log.popleft())

    def indices(self, step: int) -> Indices:
        """Of a batch, counted from where the iteration began. Raises IndexError for one that is not known, or not any more."""
        known = [*self.log, *self.waiting]
        first = self.delivered - self.first - len(self.log)
        if not first <= step < first + len(known):
            raise IndexError(f"step is {step}; the batches of steps {first} to {first + len(known) - 1} are known")
        return known[step - first].copy()


def digest_of(indices: Indices, digest: int) -> int:
    """Of a batch and those before it: where it ends counts, too."""
    return crc32c(indices.tobytes(), crc32c(len(indices).to_bytes(8, "little"), digest))
