"""loader(): a Loader of a dataset, in the order of its plan or in that of a sampler."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import BatchSampler

from .draws import Draws, name_of
from .items import Item
from .loader import Loader
from .sampled import SampledLoader
from .streaming import StreamingEmbeddingsDataset


def loader(
    dataset: StreamingEmbeddingsDataset[Item],
    *,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    advance: bool = True,
    sampler: Iterable[int] | None = None,
    batch_sampler: Iterable[Any] | None = None,
    batch_size: int | None = None,
    drop_last: bool | None = None,
    ahead: int | None = None,
    **options: Any,
) -> Loader[Item]:
    """A DataLoader over ready batches, whose state_dict() is right with any num_workers. options: as DataLoader's.

    device: where the batches shall be; they are copied there from pinned memory, one ahead of the loop, while it computes.
    advance: where set_epoch is never called, a complete pass is followed by the next epoch, also after a resume; a pass that was
    left begins again. False: by the same epoch, as with DistributedSampler.

    sampler, batch_sampler: what chooses the samples in place of the dataset's plan, as DataLoader takes them: any iterable of
    indices, or of batches of them. It is drawn from in the loop's own thread, `ahead` batches before they are needed (by default
    what half of prefetch_bytes holds; 0 for one that looks at the loss), and takes no workers. Ranks are its affair, as in torch.
    batch_size, drop_last: with a sampler; by default the dataset's. Its set_epoch, if any, is called at each epoch's beginning.

    Frameworks use it as it is: its batches are this rank's, on `device`, and not to be sharded again (docs/frameworks.md). Those
    that tell a loader's sampler of a new epoch, as Lightning does, thereby tell the dataset.
    """
    if not isinstance(dataset, StreamingEmbeddingsDataset):
        raise TypeError(f"loader takes a StreamingEmbeddingsDataset, not a {type(dataset).__name__}; give that to a DataLoader")
    if not options.get("in_order", True):
        raise ValueError("in_order is False; the state of a loader counts batches in order, so leave it True")
    draws = _draws(dataset, sampler, batch_sampler, batch_size, drop_last, ahead, num_workers)
    on = torch.device(device) if device is not None else None
    if on is not None and on.type == "cpu":
        on = None
    if on is not None:
        dataset.device = dataset.device or on
        dataset.pin_memory = not num_workers  # workers hand their batches over in shared memory, which pin_memory pins
        options.setdefault("pin_memory", bool(num_workers))
    made: Loader[Item]
    if draws is None:
        made = Loader(dataset, batch_size=None, num_workers=num_workers, **options)
        made.sampler.set_epoch = dataset.set_epoch  # type: ignore[attr-defined]
    else:
        sampled = made = SampledLoader(dataset, batch_size=None, **options)
        sampled.use(draws, ahead)
        sampled.sampler.set_epoch = sampled.set_epoch  # type: ignore[attr-defined]
    made.device, made.advance = on, advance
    return made


def _draws(
    dataset: StreamingEmbeddingsDataset[Any],
    sampler: Iterable[int] | None,
    batch_sampler: Iterable[Any] | None,
    batch_size: int | None,
    drop_last: bool | None,
    ahead: int | None,
    num_workers: int,
) -> Draws | None:
    """Of the sampler, if there is one. Raises ValueError for what does not go together."""
    if sampler is None and batch_sampler is None:
        if batch_size is not None:
            raise ValueError("the dataset makes the batches: give batch_size to StreamingEmbeddingsDataset, not to loader")
        for name, value in (("drop_last", drop_last), ("ahead", ahead)):
            if value is not None:
                raise ValueError(
                    f"{name} is {value}; it goes with a sampler; without one, give the dataset drop_last and prefetch_bytes"
                )
        return None
    if isinstance(sampler, BatchSampler) and batch_sampler is None:  # as DataLoader(sampler=BatchSampler(...), batch_size=None)
        sampler, batch_sampler = None, sampler
    given: Any = sampler if batch_sampler is None else batch_sampler
    if sampler is not None and batch_sampler is not None:
        raise ValueError("sampler and batch_sampler are given; give one of them: a batch_sampler draws whole batches")
    if num_workers:
        raise ValueError(
            f"num_workers is {num_workers}; {name_of(given)} is drawn from in the loop's process, and needs none: leave it 0"
        )
    if ahead is not None and operator.index(ahead) < 0:
        raise ValueError(f"ahead is {ahead}; it must be 0 or more")
    if dataset.shuffle:
        raise ValueError(
            f"the dataset's shuffle is {dataset.shuffle!r}, and {name_of(given)} chooses the order; leave out one of them"
        )
    if batch_sampler is not None:
        if batch_size is not None or drop_last is not None:
            raise ValueError(
                f"{name_of(given)} makes whole batches; batch_size and drop_last go with sampler=, not with batch_sampler="
            )
        return Draws(batch_sampler, None, drop_last=False)
    if batch_size is not None and operator.index(batch_size) < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
    of_dataset = dataset.query.batch_size
    if batch_size is not None and dataset.has_batch_size and batch_size != of_dataset:
        raise ValueError(f"batch_size is {batch_size}, and that of the dataset {of_dataset}; give it to one of them")
    return Draws(given, operator.index(batch_size or of_dataset), dataset.query.drop_last if drop_last is None else drop_last)
