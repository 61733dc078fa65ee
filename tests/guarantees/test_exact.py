"""remainder="exact" under torch.distributed: the sums of one process, and no rank that waits for another."""

import json
import math
import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from conftest import Server, grown, lengthen
from oracle import FORKING, local

from cpstream_client.torch import StreamingEmbeddingsDataset, loader
from cpstream_service.snapshot.store import Snapshot

pytestmark = FORKING
N, BATCH_SIZE = 299, 149
"""Rank 0 has 150 samples and rank 1 has 149: one step more, were it not for the empty batch."""


def losses_of(embeddings: torch.Tensor, cps: torch.Tensor) -> torch.Tensor:
    """Squared error of each sample, of a model whose result for one does not depend on the others. (B,) float64."""
    return (embeddings.double().sum(1) / 1000 - cps.double()) ** 2


def evaluate(rank: int, url: str, folder: Path, options: dict[str, Any], is_far: bool) -> None:
    """One rank. Every step ends in an all_reduce, which waits for the other rank. is_far: all connections that may be are used."""
    flows = lengthen() if is_far else []
    store = torch.distributed.FileStore(str(folder / "store"), 2)  # by file, since a port could be taken
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    dev = StreamingEmbeddingsDataset(url, "dev", batch_size=BATCH_SIZE, remainder="exact")
    losses, shapes, total = [], [], torch.zeros(2, dtype=torch.float64)
    for embeddings, cps in loader(dev, **options):
        loss = losses_of(embeddings, cps)
        step = torch.stack([loss.sum(), torch.tensor(float(len(cps)), dtype=torch.float64)])
        torch.distributed.all_reduce(step)
        total += step
        losses += loss.tolist()
        shapes.append([*embeddings.shape])
    torch.distributed.destroy_process_group()
    assert bool(flows) == is_far  # a rank's whole share is one or two requests
    (folder / f"{rank}.json").write_text(json.dumps({"losses": losses, "shapes": shapes, "total": total.tolist()}))


# Workers that are no copies of the rank's process have no torch.distributed to ask, and are told.
@pytest.mark.parametrize(
    ("options", "is_far"), [({}, False), ({}, True), ({"num_workers": 2, "multiprocessing_context": "forkserver"}, False)], ids=str
)
def test_two_processes_sum_what_one_does(
    run_server: Callable[..., Server], snapshot: Snapshot, tmp_path: Path, options: dict[str, Any], is_far: bool
) -> None:
    server = run_server(snapshot=grown(snapshot, "dev", N))
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=evaluate, args=(rank, server.url, tmp_path, options, is_far)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]

    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    dim = local("dev").audio_data.shape[1]
    assert results[0]["shapes"] == [[149, dim], [1, dim]]
    assert results[1]["shapes"] == [[149, dim], [0, dim]]
    alone = losses_of(local("dev").audio_data[:N], local("dev").labels[:N]).tolist()
    assert sorted(results[0]["losses"] + results[1]["losses"]) == sorted(alone)  # each sample once, to the bit
    for result in results:
        assert result["total"] == pytest.approx([math.fsum(alone), N], rel=1e-12)
