"""Who iterates over a StreamingEmbeddingsDataset, and what would silently lose, repeat or reshape its batches.

The dataset delivers this rank's share, in ready batches. A framework that takes every n-th batch of it, skips some that are
skipped already, or stacks ready batches along a new axis gets an error with the remedy. What cannot be seen is let pass.
"""

import sys
import warnings
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_collate

from ..errors import CpstreamError

REMEDY = "make it by cpstream_client.torch.loader(dataset), which every framework leaves alone"


def caller() -> object:
    """The object whose method called the method that calls this, or None."""
    return _self_of(sys._getframe(2))


def is_own_counting(dataset: object, who: object) -> bool:
    """Whether a method of a DataLoader, of `who`, called the method of `who` that called the method that calls this."""
    within = sys._getframe(2).f_back
    holds = isinstance(who, DataLoader) and who.dataset is dataset
    return holds and within is not None and _self_of(within) is who


def _self_of(frame: FrameType) -> object:
    """Whose method runs in the frame. Others are left alone: until Python 3.13, what f_locals showed lives as long as the frame."""
    code = frame.f_code
    return frame.f_locals.get("self") if "self" in code.co_varnames or "self" in code.co_freevars else None


def refuse_collation(dataset: object, who: object) -> None:
    """torch's fetcher would collate: DataLoader(dataset) without batch_size=None adds an axis to batches that are ready."""
    # The attributes are those of _BaseDatasetFetcher, which every torch since 1.2 has and torchdata's loaders use.
    fetches = getattr(who, "dataset", None) is dataset
    if fetches and getattr(who, "auto_collation", False) and getattr(who, "collate_fn", None) is default_collate:
        raise CpstreamError(
            "a DataLoader with a batch_size would stack batches that are ready, along a new axis; "
            "use cpstream_client.torch.loader(dataset), or DataLoader(dataset, batch_size=None)"
        )


def refuse_sharding(dataset: object, who: object) -> None:
    """An IterableDatasetShard, of Accelerate or transformers, would keep every num_processes-th batch of a rank's share."""
    # A dataset only: a trainer of the user's own may hold one and know how many processes there are.
    if isinstance(who, IterableDataset) and getattr(who, "dataset", None) is dataset and getattr(who, "num_processes", 1) > 1:
        raise CpstreamError(
            f"{type(who).__name__} would take a share of this rank's share, and samples would be lost: do not prepare() a plain "
            f"DataLoader, {REMEDY}"
        )


def refuse_replacing(who: object, chosen: tuple[int, int], epoch: int, *, shuffled: bool) -> None:
    """An epoch of a loader's own counting, as Accelerate's have, in place of the epoch and start that were chosen."""
    if epoch == chosen[0] or (not chosen[1] and not shuffled):
        return
    name = type(who).__name__
    raise CpstreamError(
        f"{name} would begin epoch {epoch}, by its own counting, and drop epoch {chosen[0]} from sample {chosen[1]} on, which "
        f"load_state_dict or set_epoch chose: call set_epoch({chosen[0]}) of the {name}, too, or do not prepare() a plain "
        f"DataLoader, {REMEDY}"
    )


def refuse_accelerate(dataset: object, world_size: int, *, announced: bool, start: int, sampler: str) -> None:
    """What an Accelerate loader that is iterating over the dataset would lose or repeat."""
    accelerate: Any = sys.modules.get("accelerate")
    if accelerate is None:
        return
    active = accelerate.state.GradientState().active_dataloader
    if active is None or getattr(active, "dataset", None) is not dataset:
        return
    if world_size > 1 and isinstance(active, accelerate.data_loader.DataLoaderDispatcher):
        raise CpstreamError(
            f"Accelerate would dispatch the batches of rank 0 alone, and lose those of the others, of {world_size} in all: do not "
            f"prepare() a plain DataLoader, {REMEDY}"
        )
    if sampler:
        raise CpstreamError(
            f"{type(active).__name__} of Accelerate would go through the dataset's own order, without {sampler}: use the loader "
            "that has the sampler as it is; its load_state_dict goes on in mid-epoch, and nothing is to be skipped (Hugging Face "
            "Trainer: TrainingArguments(ignore_data_skip=True))"
        )
    if not getattr(active, "skip_batches", 0):
        return
    if start:
        raise CpstreamError(
            f"load_state_dict has gone on to sample {start}, and skip_first_batches would skip {active.skip_batches} batches more: "
            "do one of the two (Hugging Face Trainer: TrainingArguments(ignore_data_skip=True))"
        )
    if not announced:
        raise CpstreamError(
            f"skip_first_batches would skip {active.skip_batches} batches of an epoch that nobody chose: call set_epoch(epoch) "
            "before (Hugging Face Trainer: in on_epoch_begin of a TrainerCallback, see docs/frameworks.md), or "
            "load_state_dict(state) and skip nothing (TrainingArguments(ignore_data_skip=True))"
        )


def refuse_state_ahead(dataset: object, taker: str) -> None:
    """A state that would count a batch that the model has not seen. taker: who is iterating over a Loader and takes one ahead."""
    accelerate: Any = sys.modules.get("accelerate")
    active = accelerate.state.GradientState().active_dataloader if accelerate is not None else None
    ahead = getattr(active, "dataset", None) is dataset and not getattr(active, "use_stateful_dataloader", False)
    if ahead and isinstance(active, (accelerate.data_loader.DataLoaderShard, accelerate.data_loader.DataLoaderDispatcher)):
        taker = "a loader of Accelerate"
    if taker:
        raise CpstreamError(
            f"{taker} takes a batch ahead of the loop, and the state would count it although the model has not seen it: use the "
            "loader of cpstream_client.torch.loader(dataset, device=...) as it is"
        )


def taker_ahead(loader: object, who: object) -> str:
    """The name of what takes batches of a Loader one ahead of the loop, as Ray Train's prepare_data_loader does; "" if nothing."""
    return "Ray Train's prepare_data_loader" if getattr(who, "_dataloader", None) is loader and hasattr(who, "next_batch") else ""


def prefetcher() -> str:
    """The name of what takes batches ahead from a loader without length, as Lightning's fetcher does; "" if nothing."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        who = frame.f_locals.get("self")
        if getattr(who, "prefetch_batches", 0) and getattr(who, "length", 0) is None:
            return type(who).__module__.partition(".")[0].capitalize()
        frame = frame.f_back
    return ""


def refuse_saving(taker: str, sampler: str) -> None:
    """In mid-epoch, where a prefetcher is at work. taker: its name, "" if there is none."""
    if taker:
        raise CpstreamError(
            f"{taker} takes a batch ahead of the loop from a loader without length, and the state would count it although the "
            f"model has not seen it: give {sampler} a __len__, or save at the end of the epoch"
        )


def refuse_resuming(taker: str, sampler: str) -> None:
    """Where a prefetcher is at work: it begins before a state is loaded, and once more after that."""
    if taker:
        raise CpstreamError(
            f"{taker} takes a batch of a loader without length before it goes on from a state, and samples would be lost: give "
            f"{sampler} a __len__"
        )


def warn_of_epoch(epoch: int, sampler: str) -> None:
    warnings.warn(
        f"epoch {epoch} was chosen, and {sampler} knows nothing of epochs: it goes on where its generator is, in a new process "
        "from the beginning. load_state_dict brings it to where it was (Lightning calls it only for checkpoints in mid-epoch)",
        stacklevel=3,
    )


def warn_of_repetition(dataset: object) -> None:
    warnings.warn(
        f"{dataset!r} begins the same shuffled epoch again, in the same order: call set_epoch(epoch) before each, or use "
        "cpstream_client.torch.loader(dataset), which goes on to the next by itself",
        stacklevel=2,
    )
