"""What a dataset asks for: its query, checked when it is made, with the rank and world size of the moment."""

import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.context import get_spawning_popen
from typing import Any, Literal

import torch

from ..contract.plan import Plan, Remainder, Shuffle
from ..contract.wire import COLUMNS, DTYPES, BatchQuery, Column, Dtype, is_misspelt
from ..errors import CpstreamError

BATCH_SIZE = 256
"""Where none is given."""
_SHUFFLES: dict[bool | str, Shuffle] = {False: "none", True: "uniform", "blocks": "blocks"}


class Share:
    """One rank's share of every epoch. query: without epoch, start and ranks; ranks: rank and world size, where they were given."""

    def __init__(self, query: BatchQuery, ranks: tuple[int, int] | None, has_batch_size: bool = True) -> None:
        self.query = query
        self.has_batch_size = has_batch_size  # given, and not the default
        self._given, self._inherited = ranks, None

    def ranks(self) -> tuple[int, int]:
        """Rank and world size: those given, else of torch.distributed, else of the environment, else 0 and 1."""
        ranks = self._given or _distributed_ranks() or self._inherited
        if ranks is not None:
            return ranks
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return 0, 1

    def agreed(self, ask: Callable[[], str]) -> str:
        """What ask() says, in all ranks what it says in rank 0, where the ranks are torch.distributed's: then all must call this.

        Raises what ask raises, and CpstreamError in the other ranks.
        """
        ranks = _distributed_ranks()
        if self._given is not None or ranks is None or ranks[1] == 1:
            return ask()
        said: list[str] = [""]
        try:
            if ranks[0] == 0:
                said = [ask()]
        finally:  # or the others would wait in vain
            torch.distributed.broadcast_object_list(said, src=0)
        if not said[0]:
            raise CpstreamError("rank 0 could not ask the service for its current version; its error says why")
        return said[0]

    def plan(self, num_samples: int, epoch: int, start: int) -> Plan:
        rank, world_size = self.ranks()
        return replace(self.query, epoch=epoch, start=start, rank=rank, world_size=world_size).plan(num_samples)

    def query_of(self, plan: Plan) -> BatchQuery:
        return replace(self.query, epoch=plan.epoch, start=plan.start, rank=plan.rank, world_size=plan.world_size)

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is None:
            return self.__dict__
        # A spawned DataLoader worker has no torch.distributed to ask; a rank's process that was spawned has, and asks that.
        return {**self.__dict__, "_inherited": _distributed_ranks() or self._inherited}


def share_of(
    *,
    batch_size: int | None,
    shuffle: bool | Literal["blocks"],
    seed: int,
    remainder: Remainder,
    drop_last: bool,
    dtype: Dtype,
    columns: Sequence[Column],
    rank: int | None,
    world_size: int | None,
) -> Share:
    """Raises ValueError here for a wrong parameter, because it should not be heard of in the middle of a job."""
    if shuffle not in _SHUFFLES:
        raise ValueError(f"shuffle is {shuffle!r}; it must be True, False or 'blocks'")
    query = BatchQuery(
        batch_size=BATCH_SIZE if batch_size is None else operator.index(batch_size),  # numpy's integers would not survive JSON
        shuffle=_SHUFFLES[shuffle],
        seed=operator.index(seed),
        remainder=remainder,
        drop_last=drop_last,
        dtype=dtype,
        columns=tuple(columns),
    )
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if not columns or any(map(is_misspelt, columns)):
        raise ValueError(f"columns is {columns!r}; it must name some of {', '.join(COLUMNS)}, or further labels of the split")
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size belong together; give both or neither")
    replace(query, rank=rank or 0, world_size=1 if world_size is None else world_size).plan(0)
    return Share(query, None if rank is None or world_size is None else (rank, world_size), batch_size is not None)


def _distributed_ranks() -> tuple[int, int] | None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None
