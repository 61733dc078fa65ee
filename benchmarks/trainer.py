"""A trainer as a process: `python benchmarks/trainer.py URL` answers each line of JSON on stdin with one on stdout.

It imports the public names of cpstream_client and nothing of this package, so that PYTHONPATH decides which commit it measures.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset

Batches = Iterable[tuple[Any, Any]]
SPLIT = "train"


def streaming(url: str, batch_size: int, cache: str | None) -> Callable[[int], Batches]:
    dataset = StreamingEmbeddingsDataset(url, SPLIT, batch_size=batch_size, shuffle=True, seed=0, cache=cache)
    batches = DataLoader(dataset, batch_size=None)

    def epoch(number: int) -> Batches:
        dataset.set_epoch(number)
        return batches

    return epoch


def taking(url: str, batch_size: int) -> Callable[[int], Batches]:
    dataset = RemoteEmbeddingsDataset(url, SPLIT, cache=None)
    sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)
    return lambda number: DataLoader(dataset, batch_size=None, sampler=sampler)


def timed(batches: Batches) -> dict[str, float]:
    """One epoch: samples, bytes, seconds, and seconds of CPU of this process, its fetching thread included."""
    samples = nbytes = 0
    gc.collect()
    gc.disable()
    began, began_cpu = time.perf_counter(), time.process_time()
    for embeddings, cps in batches:
        samples += len(cps)
        nbytes += embeddings.nbytes + cps.nbytes
    took = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - began_cpu}
    gc.enable()
    return {"samples": samples, "bytes": nbytes, **took}


def answers(url: str, asked: Iterator[str]) -> Iterator[dict[str, float]]:
    """asked: lines of {"kind": "stream" | "take" | "cached", "batch_size": B, "epoch": e}."""
    made: dict[tuple[str, int], Callable[[int], Batches]] = {}
    for line in asked:
        wish = json.loads(line)
        key = wish["kind"], wish["batch_size"]
        if key not in made:
            cache = "memory" if key[0] == "cached" else None
            made[key] = taking(url, key[1]) if key[0] == "take" else streaming(url, key[1], cache)
        yield timed(made[key](wish["epoch"]))


if __name__ == "__main__":
    for reply in answers(sys.argv[1], sys.stdin):
        print(json.dumps(reply), flush=True)
