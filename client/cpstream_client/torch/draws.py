"""What a sampler draws: batches of indices, checked, and its errors kept until the batches before them are delivered."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..contract.plan import Indices


def name_of(sampler: object) -> str:
    """As errors and states call it."""
    return type(sampler).__name__


class Draws:
    """A sampler, or a batch sampler, as batches of indices (B,) int64. batch_size: None for a batch sampler, which makes its own.

    Raises TypeError for what cannot be iterated over.
    """

    def __init__(self, sampler: Iterable[Any], batch_size: int | None, drop_last: bool) -> None:
        if isinstance(sampler, str | bytes) or not (hasattr(sampler, "__iter__") or hasattr(sampler, "__getitem__")):
            raise TypeError(f"the sampler is {sampler!r}; it must be a torch sampler, or anything that iterates over indices")
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self._iterator: Iterator[Any] | None = None
        self._error: Exception | None = None
        self._has_ended = False

    def __len__(self) -> int:
        """Batches of an epoch, as torch counts them. Raises TypeError where the sampler has no length."""
        try:
            length = len(self.sampler)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError) as error:
            raise TypeError(f"{name_of(self.sampler)} has no length, and neither has a loader with it") from error
        if self.batch_size is None:
            return length
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def begin(self) -> None:
        """Begin an epoch. Raises TypeError for a sampler that cannot begin again, as an iterator that is at its end."""
        if self._has_ended and iter(self.sampler) is self.sampler:
            raise TypeError(
                f"{name_of(self.sampler)} is an iterator, and at its end; give a sampler, which begins anew with each epoch: "
                "an object with __iter__"
            )
        # An array yields an object for each index, which takes ten times as long.
        is_row = self.batch_size is not None and isinstance(self.sampler, np.ndarray | torch.Tensor)
        self._iterator, self._error = iter(self.sampler.tolist() if is_row else self.sampler), None  # type: ignore[attr-defined]

    def draw(self, num_samples: int, split: str) -> Indices | None:
        """The next batch, its indices in [0, num_samples); None at the end of the epoch, and where the sampler has raised."""
        if self._iterator is None:
            return None
        try:
            if self.batch_size is None:
                drawn = next(self._iterator, None)
            else:
                drawn = list(islice(self._iterator, self.batch_size)) or None
                if drawn is not None and self.drop_last and len(drawn) < self.batch_size:
                    drawn = None
            if drawn is not None:
                return self._checked(drawn, num_samples, split)
        except Exception as error:  # the batches before it come first
            self._error = error
        self._iterator, self._has_ended = None, True
        return None

    @property
    def has_failed(self) -> bool:
        """Whether the sampler has raised what `raise_error` raises."""
        return self._error is not None

    def raise_error(self) -> None:
        """Raises what the sampler has raised, once the batches before it are delivered."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _checked(self, drawn: Any, num_samples: int, split: str) -> Indices:
        """As (B,) int64, of its own: a sampler may use an array again."""
        if hasattr(drawn, "__array__"):
            indices = np.asarray(drawn)
            if indices.ndim != 1 or (indices.dtype.kind not in "iu" and indices.size):
                raise TypeError(f"{name_of(self.sampler)} drew {_shown(drawn)}; a batch is a row of whole numbers")
            indices = indices.astype(np.int64)
        else:
            indices = np.frombuffer(self._whole_numbers(drawn), np.int64)
        if len(indices) and ((low := indices.min()) < 0 or indices.max() >= num_samples):
            raise IndexError(
                f"{name_of(self.sampler)} drew index {low if low < 0 else indices.max()}, which is outside split {split!r}; "
                f"indices: 0 to {num_samples - 1}"
            )
        return indices

    def _whole_numbers(self, drawn: Any) -> "array[int]":
        drawn = list(drawn)
        try:
            return array("q", drawn)
        except (TypeError, OverflowError):
            wrong = next(each for each in drawn if not _is_index(each))
            raise TypeError(f"{name_of(self.sampler)} drew {_shown(wrong)}, which is no index; indices are whole numbers") from None


def _is_index(value: object) -> bool:
    try:
        array("q", [value])  # type: ignore[type-var]
    except (TypeError, OverflowError):
        return False
    return True


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
