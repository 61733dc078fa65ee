"""Where the samples of the examples come from: a running service, or the same files read on this machine.

`open_samples(options)` gives a Remote or a Local. Both deliver the same batches in the same order, bit for bit.
"""

import itertools
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from cpstream_client import Client, Retry, TransportError
from cpstream_client.torch import StreamingEmbeddingsDataset, loader

PASS_BATCH = 512  # samples a batch of a plain pass over a split: statistics, evaluation, predictions
Batch = tuple[Tensor, Tensor, list[str]]  # embeddings (B, D) float32, cps (B,) float32, B file paths


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the samples come from."""

    url: tuple[str, ...] = ("http://localhost:8000",)
    """URL of the service. Give it once for each replica; the load is spread, and a lost replica is replaced by another."""
    local: bool = False
    """Read the files on this machine instead of asking a service. The result is the same, to the bit."""
    source_path: Path | None = None
    """With --local: folder of numpy_embs.npy, or of a Chroma database."""
    source_type: Literal["npy", "chromadb"] = "npy"
    """With --local: kind of source."""
    cps_csv: str = "{split}_cps.csv"
    """With --local: the CPS tables, {split} standing for the split. A bare file name is looked for in --source-path."""
    collection_name: str = "speed_embeddings"
    """With --local and chromadb: the collection."""
    workers: int = 0
    """DataLoader workers for training. A service needs none: the client already fetches ahead in the background."""


class TrainLoader(Protocol):
    """Shuffled batches (embeddings, cps) of this rank, that can stop anywhere and go on there."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int:
        """Steps of a whole epoch."""

    @property
    def steps_left(self) -> int:
        """Steps from here to its end."""

    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Samples(Protocol):
    """What training and probing need of their data."""

    def train_loader(self, batch_size: int, seed: int, rank: int, world_size: int) -> TrainLoader: ...
    def batches(self, split: str, rank: int = 0, world_size: int = 1) -> Iterable[Batch]:
        """This rank's part of a split, in order, each sample on exactly one rank: sums over ranks are exact."""

    def join(self, split: str, predicted: pd.DataFrame) -> pd.DataFrame:
        """A frame with a row for each file_path of the split, in its order, beside the true cps."""

    def publish(self, split: str, name: str, predicted: pd.DataFrame) -> None:
        """Have the service keep predictions by this name. Raises ValueError where there is none."""


def open_samples(options: DataOptions) -> Samples:
    """Raises CpstreamError when no service answers within a few seconds, DataError when the local files are bad."""
    if not options.local:
        try:
            with Client(options.url, retry=Retry(contact_timeout_s=3)) as client:
                client.splits()  # while a job runs, a service is waited for; before it, rather hear at once
        except TransportError as error:
            reason, _, _ = str(error).partition(";")  # what follows is advice to programmers
            remedy = "start one with `cpstream serve --source-path FOLDER`, or read files by --local --source-path FOLDER"
            raise TransportError(f"no service answers: {reason}; {remedy}") from error
        return Remote(options)
    if options.source_path is None:
        raise ValueError("--local needs --source-path: the folder of numpy_embs.npy, such as examples/speech/data")
    return Local(options, options.source_path)


class Remote:
    """A running service."""

    def __init__(self, options: DataOptions) -> None:
        self.client = Client(options.url)
        self.workers = options.workers
        self.passes: dict[tuple[str, int, int], Any] = {}  # kept, because a dataset refuses data other than at first

    def train_loader(self, batch_size: int, seed: int, rank: int, world_size: int) -> TrainLoader:
        dataset = StreamingEmbeddingsDataset(
            self.client, "train", batch_size=batch_size, shuffle=True, seed=seed, rank=rank, world_size=world_size
        )
        return loader(dataset, **_loader_options(self.workers))

    def batches(self, split: str, rank: int = 0, world_size: int = 1) -> Iterable[Batch]:
        if (split, rank, world_size) not in self.passes:
            dataset = StreamingEmbeddingsDataset(
                self.client,
                split,
                batch_size=PASS_BATCH,
                remainder="exact",
                columns=("embedding", "cps", "file_path"),
                rank=rank,
                world_size=world_size,
            )
            self.passes[split, rank, world_size] = loader(dataset, **_loader_options(0))
        return self.passes[split, rank, world_size]

    def join(self, split: str, predicted: pd.DataFrame) -> pd.DataFrame:
        self.batches(split)
        return self.client.join(split, predicted, info=self.passes[split, 0, 1].dataset.info)  # of the data that was predicted

    def publish(self, split: str, name: str, predicted: pd.DataFrame) -> None:
        self.client.publish(split, name, predicted, info=self.passes[split, 0, 1].dataset.info)


class Local:
    """The files on this machine, through torch's own DataLoader and DistributedSampler."""

    def __init__(self, options: DataOptions, source_path: Path) -> None:
        self.options = options
        self.source_path = source_path
        self.datasets: dict[str, Any] = {}

    def dataset(self, split: str) -> Any:
        from cpstream_service.dataset import RegressionEmbeddingsDataset  # here: a training machine may not have the service

        if split not in self.datasets:
            self.datasets[split] = RegressionEmbeddingsDataset(
                self.source_path,
                split,
                source_type=self.options.source_type,
                cps_csv=self.options.cps_csv,
                collection_name=self.options.collection_name,
            )
        return self.datasets[split]

    def train_loader(self, batch_size: int, seed: int, rank: int, world_size: int) -> TrainLoader:
        sampler: DistributedSampler[Any] = DistributedSampler(self.dataset("train"), world_size, rank, seed=seed)
        return LocalTrainLoader(
            DataLoader(self.dataset("train"), batch_size, sampler=sampler, **_loader_options(self.options.workers))
        )

    def batches(self, split: str, rank: int = 0, world_size: int = 1) -> Iterable[Batch]:
        dataset = self.dataset(split)
        mine = range(rank, len(dataset), world_size)
        batches = DataLoader(dataset, PASS_BATCH, sampler=mine, **_loader_options(0))
        for (embeddings, cps), at in zip(batches, itertools.count(0, PASS_BATCH), strict=False):
            yield embeddings, cps, [dataset.filenames[i] for i in mine[at : at + PASS_BATCH]]

    def join(self, split: str, predicted: pd.DataFrame) -> pd.DataFrame:
        dataset = self.dataset(split)
        samples = pd.DataFrame({"file_path": dataset.filenames, "cps": dataset.labels.numpy()})
        joined = samples.merge(predicted, on="file_path", validate="one_to_one")
        if not len(joined) == len(samples) == len(predicted):
            raise ValueError(f"{len(joined)} of {len(samples)} samples of {split} are among {len(predicted)} predictions")
        return joined

    def publish(self, split: str, name: str, predicted: pd.DataFrame) -> None:
        raise ValueError("--publish sends predictions to a service, and --local asks none; leave out one of them")


class LocalTrainLoader:
    """A DataLoader over a DistributedSampler, with the position that cpstream's own loader keeps."""

    def __init__(self, batches: DataLoader[Any]) -> None:
        self.batches = batches
        self.sampler: Any = batches.sampler
        self.epoch, self.step = 0, 0

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.step = epoch, 0

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def steps_left(self) -> int:
        return len(self.batches) - self.step

    def __iter__(self) -> Iterator[Any]:
        self.sampler.set_epoch(self.epoch)
        # A plain DataLoader cannot begin in the middle of an epoch: read what was done, and drop it.
        for batch in itertools.islice(self.batches, self.step, None):
            self.step += 1
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, "batch_size": self.batches.batch_size, "ranks": self.sampler.num_replicas}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        here = self.state_dict()
        for name in ("batch_size", "ranks"):
            if state.get(name) != here[name]:
                raise ValueError(
                    f"the checkpoint's {name} is {state.get(name)}, now it is {here[name]}; --local goes on with "
                    "the same only (a service goes on with any)"
                )
        self.epoch, self.step = state["epoch"], state["step"]


def _loader_options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": _default_signals,
        # Every DataLoader draws a number when it starts. From the global generator it would change the dropout that follows.
        "generator": torch.Generator(),
    }


def _default_signals(worker: int) -> None:
    """Ctrl-C is for the process of the training loop, which finishes its step first; a worker ends when that lets go of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
