"""What a StreamingEmbeddingsDataset takes by keyword, and what its items are, for type checkers."""

import os
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import TypeVar

from ..contract.plan import Remainder
from ..contract.wire import Dtype
from ..transport.options import ClientOptions

Item = TypeVar("Item", bound=tuple[Any, ...], default=tuple[Any, ...])
"""A ready batch: what `columns` names, in that order."""
Usual = tuple[Tensor, Tensor]
"""A ready batch of the default columns: embeddings (B, D), cps (B,)."""


class StreamingOptions(ClientOptions, total=False):
    """All but `columns`, which decides what an item is. StreamingEmbeddingsDataset says what they mean."""

    batch_size: int
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
