"""cpstream against itself: what float16 and the caches bring, and what the client costs."""

from collections.abc import Iterator

import torch

from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset

from .bench import Bench, Measurement
from .findings import Finding, Series, at_least, at_most, ratio
from .loaders import cached, local, sampled, streaming, taking
from .runner import Batches, Loader, samples_per_s


def _streaming_against_local(batch_size: int, bound: float | None) -> Measurement:
    def measure(bench: Bench) -> Iterator[Finding]:
        ours, other = streaming(bench, batch_size), local(bench.data, batch_size)
        passes = bench.interleave(ours, other)
        yield ratio(
            f"streaming against local DataLoader(TensorDataset), batch {batch_size}",
            samples_per_s(ours, passes[0]),
            samples_per_s(other, passes[1]),
            at_least(bound) if bound else None,
        )

    return Measurement(f"streaming-{batch_size}", measure)


def measure_half(bench: Bench) -> Iterator[Finding]:
    half, whole = streaming(bench, dtype="float16"), streaming(bench)
    passes = bench.interleave(half, whole)
    what = "streaming float16 against float32, batch 256"
    yield ratio(what, samples_per_s(half, passes[0]), samples_per_s(whole, passes[1]), at_least(1.5))


def measure_take(bench: Bench) -> Iterator[Finding]:
    ours, other = taking(bench), local(bench.data)
    passes = bench.interleave(ours, other)
    what = "RemoteEmbeddingsDataset, BatchSampler, against local DataLoader, batch 256"
    yield ratio(what, samples_per_s(ours, passes[0]), samples_per_s(other, passes[1]), at_least(1.0))


def _cache(name: str, cache: str, what: str, bound: float | None, dataset: type = StreamingEmbeddingsDataset) -> Measurement:
    def measure(bench: Bench) -> Iterator[Finding]:
        with bench.scratch(f"cache-{name}") as folder:
            device = "" if cache != "device" else f" ({'cuda' if torch.cuda.is_available() else 'cpu'})"
            place = str(folder) if cache == "disk" else cache
            ours = cached(bench, place, f"cpstream, epoch 2, {what}{device}", dataset)
            other = local(bench.data)
            passes = bench.interleave(ours, other)
        yield ratio(
            f"epoch 2 with {what}{device} against local DataLoader, batch 256",
            samples_per_s(ours, passes[0]),
            samples_per_s(other, passes[1]),
            at_least(bound) if bound else None,
        )

    return Measurement(name, measure)


def measure_second_run(bench: Bench) -> Iterator[Finding]:
    """A new run on a disk cache that an earlier one filled: from making the dataset to the end of its epoch."""
    with bench.scratch("cache-second-run") as folder:
        first = cached(bench, str(folder), "cpstream first run")
        first.warm_up()

        def epoch(number: int) -> Batches:
            return cached(bench, str(folder), "").epoch(number)

        again = Loader("cpstream, later run, cache on disk", epoch, len(bench.data), first.content)
        other = local(bench.data)
        passes = bench.interleave(again, other)
    what = "first epoch of a later run with cache on disk against local DataLoader, batch 256"
    yield ratio(what, samples_per_s(again, passes[0]), samples_per_s(other, passes[1]))


def measure_client_cpu(bench: Bench) -> Iterator[Finding]:
    """CPU of this process, the thread that fetches ahead included."""
    ours = streaming(bench)
    (passes,) = bench.interleave(ours)
    values = [each.cpu_s / (each.nbytes / 1e9) for each in passes]
    side = Series(ours.label, values, "CPU s/GB")
    yield Finding(what="client CPU per GB streamed, batch 256", values=values, unit="s", target=at_most(0.25), sides=(side,))


def measure_sampled(bench: Bench) -> Iterator[Finding]:
    """Batches that a sampler draws in the loop's process, against those of a plan that the service has."""
    ours, planned = sampled(bench), streaming(bench)
    passes = bench.interleave(ours, planned)
    what = "streaming by a RandomSampler against streaming by the plan, batch 256"
    yield ratio(what, samples_per_s(ours, passes[0]), samples_per_s(planned, passes[1]), at_least(0.9))


def measure_first_epoch(bench: Bench) -> Iterator[Finding]:
    """What it costs to keep a split while it is streamed: a new dataset for each pass, of both sides."""

    def side(cache: str | None) -> Loader:
        def epoch(number: int) -> Batches:
            return streaming(bench, cache=cache).epoch(number)

        return Loader(f"cpstream, first epoch, cache={cache!r}", epoch, len(bench.data), bench.data.checksum())

    keeping, without = side("auto"), side(None)
    passes = bench.interleave(keeping, without)
    what = "first epoch by default, which keeps the split, against cache=None, batch 256"
    yield ratio(what, samples_per_s(keeping, passes[0]), samples_per_s(without, passes[1]), at_least(0.95))


MEASUREMENTS = (
    _streaming_against_local(256, 2.5),
    _streaming_against_local(32, 2.5),
    _streaming_against_local(4096, None),
    Measurement("float16", measure_half),
    Measurement("take", measure_take),
    Measurement("sampled", measure_sampled),
    Measurement("first-epoch", measure_first_epoch),
    _cache("cache-memory", "memory", 'cache="memory"', 4.0),
    _cache("cache-disk", "disk", "cache on disk", None),
    _cache("cache-device", "device", 'cache="device"', None),
    _cache("cache-take", "memory", 'take and cache="memory"', None, RemoteEmbeddingsDataset),
    Measurement("cache-second-run", measure_second_run),
    Measurement("client-cpu", measure_client_cpu),
)
