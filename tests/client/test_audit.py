"""The audit: what the service says of a step is what every rank got in it."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server
from oracle import local

from cpstream_client import BatchQuery, Client
from cpstream_client.contract.bodies import PlanStep
from cpstream_client.torch import StreamingEmbeddingsDataset

Delivered = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]]


def delivered(server: Server, query: BatchQuery) -> Delivered:
    """What a rank's loop gets."""
    dataset = StreamingEmbeddingsDataset(
        server.url,
        "dev",
        batch_size=query.batch_size,
        shuffle={"none": False, "uniform": True, "blocks": "blocks"}[query.shuffle],  # type: ignore[arg-type]
        seed=query.seed,
        remainder=query.remainder,
        drop_last=query.drop_last,
        columns=("embedding", "cps", "index", "file_path"),
        rank=query.rank,
        world_size=query.world_size,
    )
    dataset.load_state_dict({**dataset.state_dict(), "epoch": query.epoch, "start": query.start})
    return list(dataset)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": "uniform", "seed": 3, "epoch": 2},
        {"shuffle": "blocks", "seed": 3, "epoch": 2, "world_size": 2},
        {"shuffle": "uniform", "world_size": 7, "remainder": "pad"},
        {"shuffle": "uniform", "world_size": 7, "remainder": "drop"},
        {"shuffle": "uniform", "world_size": 7, "remainder": "exact", "batch_size": 42},
        {"shuffle": "uniform", "world_size": 3, "drop_last": True, "start": 50},
        {"shuffle": "uniform", "world_size": 2, "start": 123, "seed": -5, "epoch": 1},
    ],
    ids=str,
)
def test_the_plan_of_a_step_is_what_every_rank_got(server: Server, options: dict[str, Any]) -> None:
    query = BatchQuery(**{"batch_size": 40, **options})
    ranks = [delivered(server, replace(query, rank=rank)) for rank in range(query.world_size)]
    with Client(server.url) as client:
        for step in range(len(ranks[0])):
            audit = client.plan("dev", step, query)
            assert (audit.step, audit.num_steps, audit.split) == (step, len(ranks[0]), "dev")
            assert audit.fingerprint == server.snapshot.splits["dev"].fingerprint
            assert audit.next_start == min(query.start + (step + 1) * query.batch_size * query.world_size, 300)
            assert [rank.rank for rank in audit.ranks] == list(range(query.world_size))
            for planned, batches in zip(audit.ranks, ranks, strict=True):
                embeddings, cps, index, paths = batches[step]
                assert [sample.index for sample in planned.samples] == index.tolist()
                assert [sample.file_path for sample in planned.samples] == paths
                assert np.float32([sample.cps for sample in planned.samples]).tolist() == cps.tolist()
                assert torch.equal(embeddings, local("dev").audio_data[index])


def test_a_batch_can_be_replayed_from_its_audit(server: Server) -> None:
    query = BatchQuery(batch_size=32, shuffle="uniform", seed=1, epoch=3, world_size=2, rank=1)
    embeddings, cps, _, _ = delivered(server, query)[4]
    with Client(server.url) as client:
        samples = client.plan("dev", 4, query).ranks[1].samples
        again = client.take("dev", [sample.index for sample in samples])
    assert again.embeddings is not None
    assert torch.equal(torch.from_numpy(again.embeddings), embeddings)
    assert torch.equal(torch.from_numpy(again.cps), cps)


def test_the_command_prints_the_same_as_json(server: Server) -> None:
    fingerprint = server.snapshot.splits["dev"].fingerprint
    query = BatchQuery(batch_size=4, shuffle="uniform", seed=9, epoch=2, world_size=2, start=100, fingerprint=fingerprint)
    arguments = "--step 3 --batch-size 4 --shuffle uniform --seed 9 --epoch 2 --world-size 2 --start 100 --json --fingerprint"

    def run(fingerprint: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cpstream_service", "plan", server.url, "dev", *arguments.split(), fingerprint]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    done = run(fingerprint)
    assert done.returncode == 0, done.stderr
    with Client(server.url) as client:
        assert PlanStep.model_validate_json(done.stdout) == client.plan("dev", 3, query)
    other = run("0" * 32)
    assert other.returncode == 1
    assert "dataset-changed" in other.stderr
