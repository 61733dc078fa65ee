"""The loaders of this project, and the local one that they are measured against."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader

from .bench import Bench
from .data import SPLIT, Data
from .findings import Skipped
from .runner import Batches, Loader

BATCH = 256
"""The batch size of every comparison that names no other."""


def streaming(
    bench: Bench, batch_size: int = BATCH, dtype: str = "float32", label: str = "", url: str = "", **options: Any
) -> Loader:
    """An epoch as README shows it: StreamingEmbeddingsDataset through `loader`, shuffled; streamed, without `cache`.

    url: of another service than the run's.
    """
    options.setdefault("cache", None)
    dataset = StreamingEmbeddingsDataset(
        url or bench.service.url,
        SPLIT,
        batch_size=batch_size,
        shuffle=True,
        dtype=dtype,  # type: ignore[arg-type]
        **options,
    )
    batches = loader(dataset)

    def epoch(number: int) -> Batches:
        dataset.set_epoch(number)
        return batches

    half = "" if dtype == "float32" else f" {dtype}"
    label = label or f"cpstream streaming, batch {batch_size}{half}"
    return Loader(label, epoch, len(bench.data), bench.data.checksum(dtype=dtype))


def taking(bench: Bench, batch_size: int = BATCH, label: str = "", **options: Any) -> Loader:
    """An epoch of RemoteEmbeddingsDataset; without `cache`, one request a batch."""
    options.setdefault("cache", None)
    dataset = RemoteEmbeddingsDataset(bench.service.url, SPLIT, **options)
    sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)
    batches: DataLoader[Any] = DataLoader(dataset, batch_size=None, sampler=sampler)
    return Loader(label or f"cpstream take, batch {batch_size}", lambda _: batches, len(bench.data), bench.data.checksum())


def sampled(bench: Bench, batch_size: int = BATCH) -> Loader:
    """Streamed, in the order that a sampler of torch draws."""
    dataset = StreamingEmbeddingsDataset(bench.service.url, SPLIT, cache=None)
    sampler = RandomSampler(range(len(bench.data)))
    batches = loader(dataset, sampler=sampler, batch_size=batch_size)
    return Loader(f"cpstream by a sampler, batch {batch_size}", lambda _: batches, len(bench.data), bench.data.checksum())


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


def local(data: Data, batch_size: int = BATCH, num_workers: int = 0) -> Loader:
    """DataLoader(TensorDataset, shuffle=True): all data in this process's memory, fetched sample by sample."""
    loader = DataLoader(_tensors(data), batch_size, shuffle=True, num_workers=num_workers)
    workers = f", {num_workers} workers" if num_workers else ""
    return local_side(data, f"DataLoader(TensorDataset), batch {batch_size}{workers}", lambda _: loader)


def indexing(data: Data, batch_size: int) -> Loader:
    """X[perm[i:i+B]]: one indexing a batch, without a DataLoader."""
    x, y = _tensors(data).tensors

    def epoch(number: int) -> Batches:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
        for low in range(0, len(x), batch_size):
            indices = order[low : low + batch_size]
            yield x[indices], y[indices]

    return local_side(data, f"X[perm[i:i+B]], batch {batch_size}", epoch)


def batch_sampler(data: Data, batch_size: int) -> Loader:
    """The fastest way through a DataLoader: the dataset is asked for a batch of indices at once."""
    dataset = _tensors(data)
    sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, sampler=sampler)
    return local_side(data, f"DataLoader(BatchSampler), batch {batch_size}", lambda _: loader)


def local_side(data: Data, label: str, epoch: Callable[[int], Batches]) -> Loader:
    """A side whose epochs hold all of the data, which lies in this process's memory."""
    return Loader(label, epoch, len(data), data.checksum(), kind="local")


def _tensors(data: Data) -> TensorDataset:
    return TensorDataset(torch.from_numpy(data.embeddings), torch.from_numpy(data.cps))
