"""What a checkpoint holds, as small JSON: where the training loop is, or where one worker of a StatefulDataLoader is."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import get_worker_info

from ..epochs.position import Identity, check_equal
from ..errors import StateMismatch
from .share import Share


def state_of(identity: Identity, share: Share, epoch: int, start: int) -> dict[str, Any]:
    """start: how many samples of the epoch all ranks together have received."""
    return {
        "fingerprint": identity.fingerprint,
        "split": identity.split,
        "seed": identity.seed,
        "epoch": epoch,
        "start": start,
        "shuffle": identity.shuffle,
        "remainder": share.query.remainder,
    }


def worker_state_of(identity: Identity, share: Share, epoch: int, start: int, batches: int) -> dict[str, Any]:
    """For torchdata's StatefulDataLoader, which asks each worker for a state of its own.

    start: where the run began. batches: how many this worker has made since.
    """
    return {**state_of(identity, share, epoch, start), "worker_batches": batches, **_units(share)}


def check_worker_state(state: Mapping[str, Any], share: Share) -> None:
    """Raises StateMismatch outside of the worker that the state is of, and where its batches are counted in other units."""
    if get_worker_info() is None:
        raise StateMismatch("this is the state of one DataLoader worker; load it through the StatefulDataLoader that made it")
    for name, here in _units(share).items():
        check_equal(name, state.get(name), here)


def _units(share: Share) -> dict[str, int]:
    """What a worker's number of batches is counted in: it means nothing in other units."""
    worker = get_worker_info()
    assert worker is not None  # noqa: S101 - the callers have asked
    rank, world_size = share.ranks()
    return {
        "worker": worker.id,
        "num_workers": worker.num_workers,
        "batch_size": share.query.batch_size,
        "rank": rank,
        "world_size": world_size,
    }
