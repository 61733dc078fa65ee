"""Loader: a DataLoader whose state is right with any number of workers, and which frameworks leave as it is."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, default_convert

from ..contract.plan import Indices
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
            yield from self._batches()
            return
        # Before the workers start, which read where it begins.
        begin = self.dataset.begin_run if self.num_workers else self.dataset.prepare_run
        run = begin(counted_by_loader=True, advances=self.advance)
        batches = self._batches()
        on_device = to_device(batches, self.device) if self.device is not None else batches
        for batch in self.dataset.tally.timed(cast("Iterator[Item]", on_device)):
            run.delivered += 1
            yield batch

    def _batches(self) -> Iterator[Item]:
        """Those of the dataset: as they are where torch's iterator would only hand them on, some microseconds each."""
        plain = not (self.num_workers or self.pin_memory) and self.collate_fn is default_convert
        if not plain or type(self.dataset).__iter__ is not StreamingEmbeddingsDataset.__iter__:
            return super().__iter__()
        # Drawn by torch's iterator for its workers, too: what the loop draws afterwards stays the same.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        return self.dataset.batches()

    def stats(self, *, reset: bool = False) -> dict[str, Any]:
        """As StreamingEmbeddingsDataset.stats, right where workers, or a copy to a device, are in between, too."""
        return self.dataset.stats(reset=reset)

    @property
    def steps_left(self) -> int:
        """Steps from where the loop is to the end of the epoch; len() is that of a whole epoch."""
        return self.dataset.steps_left

    def indices(self, step: int) -> Indices:
        """As StreamingEmbeddingsDataset.indices: which samples a batch holds."""
        return self.dataset.indices(step)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration. From then on the epoch is the caller's affair: it no longer advances."""
        self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """As StreamingEmbeddingsDataset.state_dict, right with any number of workers."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], *, accept_version: bool = False) -> None:
        """As StreamingEmbeddingsDataset.load_state_dict."""
        self.dataset.load_state_dict(state, accept_version=accept_version)

    def refresh(self) -> bool:
        """As StreamingEmbeddingsDataset.refresh."""
        return self.dataset.refresh()
