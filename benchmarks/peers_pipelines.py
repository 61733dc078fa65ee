"""Loaders that fetch in threads or processes of their own, over data in this process's memory: SPDL, Grain, Ray Data."""

import logging
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from .bench import Bench, Measurement
from .findings import Finding
from .loaders import BATCH, local_side
from .peers_local import SLOW_SAMPLES, against, arrow_table, pairs, peer
from .runner import Batches, Loader


def measure_spdl(bench: Bench) -> Iterator[Finding]:
    """A source of batches of indices, one stage that gathers them in a thread, a sink.

    Source: facebookresearch.github.io/spdl, "Building and Running Pipeline" and "Migrating from PyTorch DataLoader".
    """
    pipeline = peer("spdl.pipeline", "spdl-core")
    x, y = torch.from_numpy(bench.data.embeddings), torch.from_numpy(bench.data.cps)

    def epoch(number: int) -> Batches:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
        builder = pipeline.PipelineBuilder().add_source(iter(order.split(BATCH)))
        built = builder.pipe(lambda indices: (x[indices], y[indices])).add_sink(8).build(num_threads=1)
        with built.auto_stop():
            yield from built

    yield from against(bench, "SPDL", local_side(bench.data, "SPDL", epoch))


def measure_grain(bench: Bench) -> Iterator[Finding]:
    """Indices shuffled and batched by MapDataset, gathered by a map, read ahead by a thread.

    Source: google-grain.readthedocs.io, "Dataset basics".
    """
    grain = peer("grain", "grain")
    logging.getLogger("absl").setLevel(logging.ERROR)  # says at every start that it has no jax
    embeddings, cps = bench.data.embeddings, bench.data.cps

    def gathered(indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[type-arg]
        return torch.from_numpy(embeddings[indices]), torch.from_numpy(cps[indices])

    def epoch(number: int) -> Batches:
        indices = grain.MapDataset.range(len(cps)).shuffle(seed=number).batch(BATCH)
        yield from indices.map(gathered).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))

    yield from against(bench, "Grain", local_side(bench.data, "Grain", epoch))


def measure_ray(bench: Bench) -> Iterator[Finding]:
    """A dataset in Ray's object store, iter_torch_batches with a local shuffle buffer of a tenth of it.

    Source: docs.ray.io, "Iterating over batches with shuffling".
    """
    ray = peer("ray", "ray[data]")
    data_module = peer("ray.data", "ray[data]")
    data, samples = bench.data, min(SLOW_SAMPLES, len(bench.data))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        data_module.DataContext.get_current().enable_progress_bars = False
        dataset = data_module.from_arrow(arrow_table(data, samples)).materialize()
        batches = partial(dataset.iter_torch_batches, batch_size=BATCH, local_shuffle_buffer_size=max(BATCH, samples // 10))
        side = Loader(
            "Ray Data", lambda number: pairs(batches(local_shuffle_seed=number)), samples, data.checksum(samples), "local"
        )
        yield from against(bench, "Ray Data", side, note="Ray shuffles within a buffer of a tenth of the data here")
    finally:
        ray.shutdown()


MEASUREMENTS = (Measurement("spdl", measure_spdl), Measurement("grain", measure_grain), Measurement("ray-data", measure_ray))
