"""What a StreamingEmbeddingsDataset takes by keyword, and what its items are."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from ..contract.plan import Remainder
from ..contract.wire import Column, Dtype
from ..stream.course import parts
from ..stream.reader import Batch
from ..transport.options import ClientOptions

Item = TypeVar("Item", bound=tuple[Any, ...], default=tuple[Any, ...])
"""A ready batch: what `columns` names, in that order."""
Usual = tuple[Tensor, Tensor]
"""A ready batch of the default columns: embeddings (B, D), cps (B,)."""


class StreamingOptions(ClientOptions, total=False):
    """All but `columns`, which decides what an item is. StreamingEmbeddingsDataset says what they mean."""

    batch_size: int | None
    shuffle: bool | Literal["blocks"]
    seed: int
    remainder: Remainder
    drop_last: bool
    dtype: Dtype
    prefetch_bytes: int
    cache: str | os.PathLike[str] | None
    device: str | torch.device | None
    pin_memory: bool
    rank: int | None
    world_size: int | None


def cut(record: Batch, columns: Sequence[Column], batch_size: int) -> Iterator[Any]:
    """The training batches of a record batch. Made together: each is a few microseconds of Python, and they add up."""
    values = {"embedding": record.embeddings, "cps": record.cps, "index": record.index, "file_path": record.file_paths}
    if record.labels:
        values |= record.labels
    whole = record.num_rows <= batch_size
    cut_columns: list[Sequence[Any]] = []
    for name in columns:
        value: Any = values[name]
        if isinstance(value, list):
            cut_columns.append([value] if whole else [value[part] for part in parts(record.num_rows, batch_size)])
            continue
        # No copy: a tensor keeps its buffer from being used again. With cache="device" there are tensors already.
        tensor: Any = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        # Unsafe is what split would do here: batches that count as views of one tensor share its version, and a loop that works
        # in place on one could no longer go backward through the one before.
        cut_columns.append((tensor,) if whole else torch.unsafe_split(tensor, batch_size))
    return zip(*cut_columns, strict=True)


def cut_at(record: Batch, columns: Sequence[Column], sizes: Sequence[int]) -> Iterator[Any]:
    """The same for training batches of these sizes."""
    values = {"embedding": record.embeddings, "cps": record.cps, "index": record.index, "file_path": record.file_paths}
    values |= record.labels
    ends = np.cumsum(sizes).tolist()
    slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    cut_columns = []
    for name in columns:
        value: Any = values[name]
        pieces = [value] if len(sizes) == 1 else [value[part] for part in slices]
        cut_columns.append([torch.from_numpy(piece) for piece in pieces] if isinstance(value, np.ndarray) else pieces)
    return zip(*cut_columns, strict=True)
