"""The loaders of this project, and the local one that they are measured against."""

import inspect
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset

from .bench import Bench
from .data import SPLIT
from .findings import Skipped
from .runner import Batches, Loader

BATCH = 256
"""The batch size of every comparison that names no other."""


def streaming(bench: Bench, batch_size: int = BATCH, dtype: str = "float32", label: str = "", **options: Any) -> Loader:
    """An epoch as README shows it: StreamingEmbeddingsDataset through DataLoader(batch_size=None), shuffled."""
    dataset = StreamingEmbeddingsDataset(
        bench.service.url,
        SPLIT,
        batch_size=batch_size,
        shuffle=True,
        dtype=dtype,  # type: ignore[arg-type]
        **options,
    )
    loader = DataLoader(dataset, batch_size=None)

    def epoch(number: int) -> Batches:
        dataset.set_epoch(number)
        return loader

    half = "" if dtype == "float32" else f" {dtype}"
    label = label or f"cpstream streaming, batch {batch_size}{half}"
    return Loader(label, epoch, len(bench.data), bench.data.checksum(dtype=dtype))


def taking(bench: Bench, batch_size: int = BATCH, label: str = "", **options: Any) -> Loader:
    """An epoch of RemoteEmbeddingsDataset, one request a batch."""
    dataset = RemoteEmbeddingsDataset(bench.service.url, SPLIT, **options)
    sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, sampler=sampler)
    return Loader(label or f"cpstream take, batch {batch_size}", lambda _: loader, len(bench.data), bench.data.checksum())


def cached(bench: Bench, cache: str, label: str, dataset: type = StreamingEmbeddingsDataset) -> Loader:
    """A later epoch: the first one, which fills the cache, is the warm-up."""
    accepted = inspect.signature(dataset).parameters
    if "cache" not in accepted:
        raise Skipped(f"{dataset.__name__}(cache=...) is not available yet")
    options: dict[str, Any] = {"cache": cache}
    if cache == "device":
        options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    make = taking if dataset is RemoteEmbeddingsDataset else streaming
    return make(bench, label=label, **options)


def local(bench: Bench, batch_size: int = BATCH, num_workers: int = 0) -> Loader:
    """DataLoader(TensorDataset, shuffle=True): all data in this process's memory."""
    data = bench.data
    dataset = TensorDataset(torch.from_numpy(data.embeddings), torch.from_numpy(data.cps))
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=num_workers)
    workers = f", {num_workers} workers" if num_workers else ""
    label = f"DataLoader(TensorDataset), batch {batch_size}{workers}"
    return Loader(label, lambda _: loader, len(data), data.checksum(), kind="local")
