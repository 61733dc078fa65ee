"""The plan: which samples of a split every rank receives at every step of an epoch.

Pure index arithmetic, the same on the service and on the client, no I/O. Words used here:

n            samples in the split
order        (n,) int64, the epoch's order of the whole split
start        how many samples of the order ALL ranks together have consumed: the resume position
rank slice   positions start + rank, start + rank + world_size, ... of the order
remainder    what happens when world_size does not divide the n - start samples that are left:
             pad    every rank gets ceil(left / world_size) samples, the missing ones from the head of the order
                    (as torch's DistributedSampler)
             drop   every rank gets floor(left / world_size) samples (as its drop_last=True)
             exact  each sample exactly once; every rank makes the same number of steps, so a short rank's last batch is
                    one sample smaller, or empty

The uniform order is torch.randperm's, so an epoch equals DistributedSampler(seed=seed) after set_epoch(epoch), bit for bit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .randperm import randperm

Indices = npt.NDArray[np.int64]
Remainder = Literal["pad", "drop", "exact"]
Shuffle = Literal["none", "uniform", "blocks"]
REMAINDERS: tuple[str, ...] = get_args(Remainder)
SHUFFLES: tuple[str, ...] = get_args(Shuffle)

BLOCK_ROWS = 64
"""Rows of a block of shuffle="blocks": 64 rows of 768 float32 are one read of 192 KiB."""
WINDOW_BLOCKS = 256
"""Blocks whose rows are mixed with each other by shuffle="blocks": 16 384 rows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One rank's part of one epoch. Frozen and hashable: equal plans give equal batches, anywhere.

    Raises ValueError, naming the value and its range, when a field is out of range.
    """

    n: int
    batch_size: int = 1
    shuffle: Shuffle = "none"
    seed: int = 0
    epoch: int = 0
    start: int = 0
    rank: int = 0
    world_size: int = 1
    remainder: Remainder = "pad"
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n is {self.n}; it must be 0 or more")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be 1 or more")
        if self.epoch < 0:
            raise ValueError(f"epoch is {self.epoch}; it must be 0 or more")
        if not 0 <= self.start <= self.n:
            raise ValueError(f"start is {self.start}; it must be from 0 to the split's {self.n} samples")
        if self.world_size < 1:
            raise ValueError(f"world_size is {self.world_size}; it must be 1 or more")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; it must be from 0 to {self.world_size - 1} (world_size - 1)")
        if self.shuffle not in SHUFFLES:
            raise ValueError(f"shuffle is {self.shuffle!r}; it must be one of {', '.join(SHUFFLES)}")
        if self.remainder not in REMAINDERS:
            raise ValueError(f"remainder is {self.remainder!r}; it must be one of {', '.join(REMAINDERS)}")

    @property
    def num_samples(self) -> int:
        """Samples of this rank from `start` to the end of the epoch, the last short batch included."""
        return _rank_length(self.n - self.start, self.rank, self.world_size, self.remainder)

    @property
    def num_steps(self) -> int:
        """Batches of every rank from `start` on; the same number on all ranks, whatever the remainder."""
        left = self.n - self.start
        if self.drop_last:  # the shortest rank is the last one
            return _rank_length(left, self.world_size - 1, self.world_size, self.remainder) // self.batch_size
        longest = _rank_length(left, 0, self.world_size, self.remainder)
        return -(-longest // self.batch_size)

    def step_bounds(self, step: int) -> tuple[int, int]:
        """The half-open range of the rank slice that batch `step` holds; empty only where the remainder is "exact"."""
        length = self.num_samples
        return min(step * self.batch_size, length), min((step + 1) * self.batch_size, length)

    def start_after(self, steps: int) -> int:
        """The `start` at which another plan goes on once every rank has received `steps` batches of this one."""
        return min(self.start + steps * self.batch_size * self.world_size, self.n)

    def order(self) -> Indices:
        """The epoch's order of the whole split. (n,) int64."""
        return epoch_order(self.n, self.shuffle, self.seed, self.epoch)

    def slice_of(self, order: Indices, low: int, high: int) -> Indices:
        """Indices `low` to `high` of the rank slice, given the epoch's order. (high - low,) int64; where it can be, a view."""
        first = self.start + self.rank
        if low < high and first + (high - 1) * self.world_size < self.n:
            return order[first + low * self.world_size : first + (high - 1) * self.world_size + 1 : self.world_size]
        positions = np.arange(low, high, dtype=np.int64) * self.world_size + first
        # Past the end lie only the padding of "pad": the head of the order, repeated as often as it takes.
        past = positions >= self.n
        if past.any():
            positions[past] = (positions[past] - self.n) % self.n
        return order[positions]

    def batch(self, order: Indices, step: int) -> Indices:
        """Indices of batch `step` of this rank. (B,) int64."""
        return self.slice_of(order, *self.step_bounds(step))

    def batches(self, order: Indices, steps: Iterable[int]) -> Iterator[Indices]:
        """Those of several steps, as `batch` gives them, with less work for each."""
        length, size = self.num_samples, self.batch_size
        for step in steps:
            yield self.slice_of(order, min(step * size, length), min((step + 1) * size, length))


def _rank_length(left: int, rank: int, world_size: int, remainder: Remainder) -> int:
    if remainder == "pad":
        return -(-left // world_size)
    if remainder == "drop":
        return left // world_size
    return max(0, -(-(left - rank) // world_size))


def epoch_order(n: int, shuffle: Shuffle, seed: int, epoch: int) -> Indices:
    """The order of one epoch over a split of n samples. (n,) int64."""
    if shuffle == "none":
        return np.arange(n, dtype=np.int64)
    if shuffle == "uniform":
        return randperm(n, seed + epoch)
    return block_order(n, seed + epoch)


def block_order(n: int, seed: int) -> Indices:
    """The order of shuffle="blocks": blocks of rows permuted, then rows mixed within windows of blocks. (n,) int64.

    For splits that exceed memory: a window's rows lie in WINDOW_BLOCKS runs of BLOCK_ROWS rows, read once and sequentially.
    """
    num_blocks = -(-n // BLOCK_ROWS)
    starts = randperm(num_blocks, seed) * BLOCK_ROWS
    rows = (starts[:, None] + np.arange(BLOCK_ROWS, dtype=np.int64)).reshape(-1)
    rows = rows[rows < n]  # the last block of the split may be short, wherever the permutation put it
    window = np.arange(n, dtype=np.int64) // (BLOCK_ROWS * WINDOW_BLOCKS)
    # Independent of the block permutation, which uses the stream of `seed` itself.
    noise = np.random.RandomState((seed ^ 0x9E3779B9) & 0xFFFFFFFF).randint(0, 2**32, size=n, dtype=np.uint32)
    return rows[np.lexsort((noise, window))]
