"""cpstream against the best local loops that one can write in a process that holds all data: the first rows of the table.

X[perm[i:i+B]]                     indexing, without a DataLoader
BatchSampler(RandomSampler)        DataLoader(dataset, batch_size=None, sampler=BatchSampler(...)): one fetch a batch
DataLoader(shuffle=True)           what most people write: one fetch a sample, then collated
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch.utils.data import DataLoader

from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_client.torch import loader as make_loader
from cpstream_service.dataset import RegressionEmbeddingsDataset

from .bench import Bench, Measurement
from .data import SPLIT, Data, make_data
from .findings import Finding, Series, at_least, at_most, ratio
from .loaders import BATCH, batch_sampler, indexing, local, streaming
from .runner import Batches, Loader, Pass, samples_per_s
from .service import serving
from .training import mlp_step

SMALL = (28_539, 256)
"""Utterances of LibriSpeech-100, and a usual size of their embeddings."""


def idioms(data: Data, batch_size: int) -> tuple[Loader, Loader, Loader]:
    return indexing(data, batch_size), batch_sampler(data, batch_size), local(data, batch_size)


def best(passes: list[list[Pass]]) -> int:
    """Which side took least, by its median."""
    seconds = [sorted(each.seconds for each in side)[len(side) // 2] for side in passes]
    return seconds.index(min(seconds))


def _later_epochs(batch_size: int, bound: float) -> Measurement:
    """Default settings, from the second epoch on, against whichever of the three is the fastest."""

    def measure(bench: Bench) -> Iterator[Finding]:
        ours = streaming(bench, batch_size, cache="auto", label=f"cpstream, epoch 2 on, batch {batch_size}")
        sides = idioms(bench.data, batch_size)
        passes = bench.interleave(ours, *sides)
        found = best(passes[1:])
        side = samples_per_s(sides[found], passes[1 + found])
        what = f"default settings, epoch 2 on, against the best local loop, batch {batch_size}"
        yield ratio(what, samples_per_s(ours, passes[0]), side, at_least(bound), note=f"the best is {side.label}")

    return Measurement(f"idioms-{batch_size}", measure)


def measure_streaming(bench: Bench) -> Iterator[Finding]:
    """Every epoch streamed, service and trainer on the same cores; and the CPU of the trainer's process beside the idiom's."""
    ours, sides = streaming(bench, cache=None), idioms(bench.data, BATCH)
    passes = bench.interleave(ours, *sides)
    for side, done, bound in zip(sides, passes[1:], (0.85, 1.1, None), strict=True):
        what = f"streaming against {side.label}"
        target = None if bound is None else at_least(bound)
        yield ratio(what, samples_per_s(ours, passes[0]), samples_per_s(side, done), target)
    cpu = [Series(side.label, _cpu_us(done), "us/sample", side.kind) for side, done in ((ours, passes[0]), (sides[1], passes[2]))]
    what = f"trainer's CPU a sample, streaming against {sides[1].label}"
    yield ratio(what, *cpu, at_most(0.4))


def measure_workers(bench: Bench) -> Iterator[Finding]:
    """The same with a service of two workers, over which the connections of the stream are spread."""
    with serving(bench.data.folder, bench.folder / "snapshots", "--workers", "2") as service:
        ours = streaming(bench, cache=None, label="cpstream streaming, --workers 2, batch 256", url=service.url)
        sides = idioms(bench.data, BATCH)[:2]
        passes = bench.interleave(ours, *sides)
    for side, done, bound in zip(sides, passes[1:], (0.95, 1.2), strict=True):
        what = f"streaming from two service workers against {side.label}"
        yield ratio(what, samples_per_s(ours, passes[0]), samples_per_s(side, done), at_least(bound))


def measure_small(bench: Bench) -> Iterator[Finding]:
    """The typical user: 28,539 x 256, batch 32, a step of a real MLP for each batch; whole epochs, from the second on."""
    samples, dim = min(SMALL[0], bench.options.samples), SMALL[1]
    with bench.scratch("small") as folder:
        data = make_data(folder / "source", samples, dim)
        twin = DataLoader(RegressionEmbeddingsDataset(data.folder, SPLIT, progress=False), 32, shuffle=True)
        with serving(data.folder, folder / "snapshots") as service:
            dataset = StreamingEmbeddingsDataset(service.url, SPLIT, batch_size=32, shuffle=True)
            ours = Loader("cpstream, epoch 2 on, batch 32, MLP step", _epochs(dataset), samples, data.checksum())
            local_twin = Loader("the local twin", lambda _: twin, samples, data.checksum(), "local")
            sides = [replace(side, step=mlp_step(dim)) for side in (ours, *idioms(data, 32), local_twin)]
            passes = bench.interleave(*sides)
    ours, *others = (samples_per_s(side, done) for side, done in zip(sides, passes, strict=True))
    found = best(passes[1:-1])
    what = f"{samples:,} x {dim}, MLP step, default settings, epoch 2 on, against"
    yield ratio(f"{what} the best local loop, batch 32", ours, others[found], at_least(1.0), f"the best is {others[found].label}")
    yield ratio(f"{what} the local twin, batch 32", ours, others[-1], at_least(1.15))


def _epochs(dataset: StreamingEmbeddingsDataset) -> Callable[[int], Batches]:
    loader = make_loader(dataset)

    def epoch(number: int) -> Batches:
        dataset.set_epoch(number)
        return loader

    return epoch


def _cpu_us(passes: list[Pass]) -> list[float]:
    return [each.cpu_s / each.samples * 1e6 for each in passes]


MEASUREMENTS = (
    _later_epochs(32, 1.3),
    _later_epochs(256, 2.0),
    _later_epochs(4096, 2.0),
    Measurement("idioms-streaming", measure_streaming),
    Measurement("idioms-workers", measure_workers),
    Measurement("idioms-small", measure_small),
)
