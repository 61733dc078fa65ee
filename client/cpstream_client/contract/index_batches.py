"""The raw body of POST batches: indices of many batches, each of its own size.

little-endian int64: number of batches | the size of each | all indices, batch after batch
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .plan import Indices


@dataclass(frozen=True, slots=True, eq=False)
class IndexBatches:
    """Which samples each batch holds. indices (N,) int64 of all batches, one after the other; sizes (B,) int64, together N."""

    indices: Indices
    sizes: Indices

    @classmethod
    def of(cls, batches: Sequence[Indices]) -> "IndexBatches":
        sizes = np.fromiter(map(len, batches), np.int64, len(batches))
        return cls(np.concatenate(batches) if batches else np.empty(0, np.int64), sizes)

    @classmethod
    def unpack(cls, body: bytes | bytearray) -> "IndexBatches":
        """Raises ValueError for what is no such body; whether the indices are those of samples, it does not know."""
        form = "raw batches are little-endian int64: the number of batches, the size of each, then all indices"
        if len(body) % 8 or not body:
            raise ValueError(f"the body has {len(body)} bytes; {form}, 8 bytes each")
        numbers = np.frombuffer(body, "<i8").astype(np.int64, copy=False)
        count = int(numbers[0])
        if not 0 <= count < len(numbers):
            raise ValueError(f"the body says {count} batches, and has {len(numbers) - 1} numbers more; {form}")
        sizes, indices = numbers[1 : 1 + count], numbers[1 + count :]
        wrong = np.flatnonzero((sizes < 0) | (sizes > len(indices)))  # before they are summed, which could overflow
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(f"the body says that batch {at} has {sizes[at]} indices, and has {len(indices)} in all; {form}")
        if sizes.sum() != len(indices):
            raise ValueError(
                f"the sizes of the body's {count} batches are {sizes.sum()} together, its indices {len(indices)}; {form}"
            )
        return cls(indices, sizes)

    def pack(self) -> bytes:
        return np.concatenate([[len(self.sizes)], self.sizes, self.indices]).astype("<i8", copy=False).tobytes()

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Indices]:
        """The indices of each batch, as views."""
        ends = np.cumsum(self.sizes).tolist()
        for low, high in zip([0, *ends], ends, strict=False):
            yield self.indices[low:high]

    def rest(self, done: int) -> "IndexBatches":
        """All but the first `done` batches."""
        return IndexBatches(self.indices[int(self.sizes[:done].sum()) :], self.sizes[done:])

    def where(self, position: int) -> tuple[int, int]:
        """The batch that holds the index at this position of all, and its position there."""
        ends = np.cumsum(self.sizes)
        batch = int(np.searchsorted(ends, position, "right"))
        return batch, position - int(ends[batch] - self.sizes[batch])
