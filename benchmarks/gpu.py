"""A trainer with a GPU: batches copied ahead of the loop, or kept on the device. Skipped where there is none."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_client.torch import loader as make_loader

from .bench import Bench, Measurement
from .data import SPLIT
from .findings import Finding, Series, Skipped, ratio
from .loaders import BATCH, indexing, local_side
from .runner import Batches, Loader, Pass, samples_per_s
from .training import mlp_step

DEVICE = "cuda"


def measure_copies(bench: Bench) -> Iterator[Finding]:
    """Streamed through loader(device=), which copies from pinned memory on a stream of its own, against indexing and .to()."""
    _need_gpu()
    data = bench.data
    host = indexing(data, BATCH)

    def copied(number: int) -> Batches:
        for embeddings, cps in host.epoch(number):
            yield embeddings.to(DEVICE), cps.to(DEVICE)

    yield from _compare(bench, "streamed", _ours(bench, cache=None), local_side(data, "X[perm[i:i+B]].to('cuda')", copied))


def measure_kept(bench: Bench) -> Iterator[Finding]:
    """cache="device" from the second epoch on, against indexing what lies on the device."""
    _need_gpu()
    data = bench.data
    x, y = torch.from_numpy(data.embeddings).to(DEVICE), torch.from_numpy(data.cps).to(DEVICE)

    def epoch(number: int) -> Batches:
        generator = torch.Generator(DEVICE).manual_seed(number)
        for indices in torch.randperm(len(x), generator=generator, device=DEVICE).split(BATCH):
            yield x[indices], y[indices]

    yield from _compare(bench, 'cache="device"', _ours(bench, cache="device"), local_side(data, "X_on_device[perm[i:i+B]]", epoch))


def _compare(bench: Bench, what: str, ours: Loader, other: Loader) -> Iterator[Finding]:
    """Samples a second of the loaders alone, and what a step of an MLP waits for its batch."""
    passes = bench.interleave(ours, other)
    yield ratio(f"GPU: {what} against {other.label}", samples_per_s(ours, passes[0]), samples_per_s(other, passes[1]))
    step = mlp_step(bench.options.dim, DEVICE)
    alone_s = _step_s(step, bench)
    passes = bench.interleave(replace(ours, step=step), replace(other, step=step))
    for side, done in zip((ours, other), passes, strict=True):
        values = [_exposed_ms(each, alone_s) for each in done]
        series = Series(side.label, values, "ms", side.kind)
        yield Finding(what=f"GPU: exposed time a step, {side.label}", values=values, unit="ms", sides=(series,))


def _ours(bench: Bench, cache: str | None) -> Loader:
    dataset = StreamingEmbeddingsDataset(
        bench.service.url, SPLIT, batch_size=BATCH, shuffle=True, cache=cache, device=None if cache is None else DEVICE
    )
    batches = make_loader(dataset, device=DEVICE)

    def epoch(number: int) -> Batches:
        dataset.set_epoch(number)
        return batches

    return Loader(
        "cpstream, streamed" if cache is None else f"cpstream, cache={cache!r}", epoch, len(bench.data), bench.data.checksum()
    )


def _step_s(step: Callable[[Any, Any], None], bench: Bench) -> float:
    """Seconds of a step over a batch that is there already."""
    embeddings, cps = (
        torch.from_numpy(bench.data.embeddings[:BATCH]).to(DEVICE),
        torch.from_numpy(bench.data.cps[:BATCH]).to(DEVICE),
    )
    steps = bench.options.pick(1000, 20)
    for count in (20, steps):  # the first are the warm-up
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            step(embeddings, cps)
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def _exposed_ms(each: Pass, step_s: float) -> float:
    return max(0.0, each.seconds / -(-each.samples // BATCH) - step_s) * 1e3


def _need_gpu() -> None:
    if not torch.cuda.is_available():
        raise Skipped("this machine has no GPU that torch can use")


MEASUREMENTS = (Measurement("gpu-copies", measure_copies), Measurement("gpu-cache", measure_kept))
