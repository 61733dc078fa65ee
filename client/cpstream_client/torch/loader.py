"""loader(): a DataLoader whose state is right with any number of workers, and which frameworks leave as it is."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from .device import to_device
from .guard import caller, taker_ahead
from .items import Item
from .streaming import StreamingEmbeddingsDataset


class Loader(DataLoader[Item]):
    """A DataLoader over a StreamingEmbeddingsDataset that counts what its loop received, whatever its workers fetched ahead."""

    dataset: StreamingEmbeddingsDataset[Item]
    device: torch.device | None = None
    advance: bool = True
    _is_accelerate_prepared = True  # Accelerate and Hugging Face Trainer do not shard it again
    use_stateful_dataloader = True  # Accelerator.save_state and load_state ask it for its state

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        """Begins at the first next(), as the dataset's own iterator."""
        self.dataset.taker_ahead = taker_ahead(self, caller())
        yield from self._iterate()
        self.dataset.taker_ahead = ""

    def _iterate(self) -> Iterator[Item]:
        if not self.num_workers and self.device is None:
            self.dataset.prepare_run(advances=self.advance)
            yield from super().__iter__()
            return
        # Before the workers start, which read where it begins.
        begin = self.dataset.begin_run if self.num_workers else self.dataset.prepare_run
        run = begin(counted_by_loader=True, advances=self.advance)
        batches = super().__iter__()
        on_device = to_device(batches, self.device) if self.device is not None else batches
        for batch in cast("Iterator[Item]", on_device):
            run.delivered += 1
            yield batch

    @property
    def steps_left(self) -> int:
        """Steps from where the loop is to the end of the epoch; len() is that of a whole epoch."""
        return self.dataset.steps_left

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration. From then on the epoch is the caller's affair: it no longer advances."""
        self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """As StreamingEmbeddingsDataset.state_dict, right with any number of workers."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As StreamingEmbeddingsDataset.load_state_dict."""
        self.dataset.load_state_dict(state)


def loader(
    dataset: StreamingEmbeddingsDataset[Item],
    *,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    advance: bool = True,
    **options: Any,
) -> Loader[Item]:
    """A DataLoader over ready batches, whose state_dict() is right with any num_workers. options: as DataLoader's.

    device: where the batches shall be; they are copied there from pinned memory, one ahead of the loop, while it computes.
    advance: where set_epoch is never called, a complete pass is followed by the next epoch, also after a resume; a pass that was
    left begins again. False: by the same epoch, as with DistributedSampler.

    Frameworks use it as it is: its batches are this rank's, on `device`, and not to be sharded again (docs/frameworks.md). Those
    that tell a loader's sampler of a new epoch, as Lightning does, thereby tell the dataset.
    """
    if not isinstance(dataset, StreamingEmbeddingsDataset):
        raise TypeError(f"loader takes a StreamingEmbeddingsDataset, not a {type(dataset).__name__}; give that to a DataLoader")
    if not options.get("in_order", True):
        raise ValueError("in_order is False; the state of a loader counts batches in order, so leave it True")
    if options.pop("batch_size", None) is not None:
        raise ValueError("the dataset makes the batches: give batch_size to StreamingEmbeddingsDataset, not to loader")
    on = torch.device(device) if device is not None else None
    if on is not None and on.type == "cpu":
        on = None
    if on is not None:
        dataset.device = dataset.device or on
        dataset.pin_memory = not num_workers  # workers hand their batches over in shared memory, which pin_memory pins
        options.setdefault("pin_memory", bool(num_workers))
    made = Loader(dataset, batch_size=None, num_workers=num_workers, **options)
    made.device, made.advance = on, advance
    made.sampler.set_epoch = dataset.set_epoch  # type: ignore[attr-defined]
    return made
