"""Samplers over a bad network and a service that is killed: the batches are those of torch's DataLoader, each once, bit for bit."""

import random
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server, poll
from drawing import BATCH_SAMPLERS, SAMPLERS, N, seeded, torchs
from faultproxy import KINDS, FaultProxy
from oracle import assert_same, local
from test_faults import FAULTS_PER_CASE, RECORD_BYTES, client
from test_restart import BATCH_SIZE, DIM, RETRY, service, write_data
from test_restart import N as LARGE
from torch.utils.data import BatchSampler, RandomSampler

from cpstream_client import Client, CpstreamError
from cpstream_client.stream import chosen as chosen_module
from cpstream_client.stream.lanes import Flow
from cpstream_client.torch import Loader, StreamingEmbeddingsDataset, loader
from cpstream_client.transport import pace
from cpstream_client.transport.retry import Patience


@pytest.mark.parametrize("max_connections", [1, 4])
def test_samplers_through_faults_equal_torch(server: Server, monkeypatch: pytest.MonkeyPatch, max_connections: int) -> None:
    """With resuming in the midst of it, by another loader."""
    monkeypatch.setattr(chosen_module, "WIRE_BATCH_BYTES", RECORD_BYTES)
    monkeypatch.setattr(pace, "ROUND_TRIP_PER_CONNECTION_S", 1e-9)  # as many connections as there may be
    seed, run = 31 + max_connections, 0
    generator = random.Random(seed)
    with FaultProxy(server.url, seed) as proxy:
        while proxy.counts.total() < FAULTS_PER_CASE or len(proxy.counts) < len(KINDS):
            name = generator.choice([*SAMPLERS, *BATCH_SAMPLERS])
            number = run

            def options(name: str = name, number: int = number) -> dict[str, Any]:
                if name in BATCH_SAMPLERS:
                    return {"batch_sampler": BATCH_SAMPLERS[name](number)}
                return {"sampler": SAMPLERS[name](number), "batch_size": 5}

            def made(options: Any = options) -> Loader[Any]:
                # A new client each time, so that metadata come through the faults, too.
                remote = client(proxy.url, max_connections=max_connections)
                return loader(
                    StreamingEmbeddingsDataset(remote, "dev", cache=None), ahead=generator.choice([None, 0, 9]), **options()
                )

            (expected,) = torchs(local("dev"), options())
            at = generator.randint(0, max(0, len(expected) - 1))
            first = made()
            left = iter(first)
            where = f"seed {seed}, run {run}: {name}, {dict(proxy.counts)}"
            assert_same([next(left) for _ in range(at)], expected[:at])
            second = made()
            second.load_state_dict(first.state_dict())
            assert_same(second, expected[at:])
            del left
            run += 1
            assert run < 200, f"too few faults: {where}"
    print(f"{max_connections} connections: {proxy.counts.total()} faults in {run} epochs: {dict(proxy.counts)}")


@pytest.mark.parametrize("max_connections", [1, 4])
def test_killed_several_times_in_one_sampled_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_path: list[Flow], max_connections: int
) -> None:
    failures: list[CpstreamError] = []
    wait_s = Patience.wait_s

    def noting(self: Patience, error: CpstreamError, endpoint: str = "") -> float:
        failures.append(error)
        return wait_s(self, error, endpoint)

    monkeypatch.setattr(Patience, "wait_s", noting)
    embeddings = write_data(tmp_path, seed=1)
    expected = list(BatchSampler(RandomSampler(range(LARGE), generator=seeded(2)), BATCH_SIZE, drop_last=False))
    with service(tmp_path) as served, ThreadPoolExecutor(1) as supervisor:

        def restart(seen: int) -> None:
            poll(lambda: len(failures) > seen, timeout_s=60)
            served.start()

        remote = Client(served.url, timeout_s=10, retry=RETRY, max_connections=max_connections)
        remote.service = replace(remote.service, request_bytes=2 * 1024**2)
        # Almost nothing is fetched ahead: what is lost must come from the service again.
        dataset: StreamingEmbeddingsDataset[Any] = StreamingEmbeddingsDataset(
            remote,
            "train",
            columns=("embedding", "index"),
            prefetch_bytes=1 if max_connections == 1 else 2 * max_connections * BATCH_SIZE * DIM * 4,
            cache=None,
        )
        train = loader(dataset, sampler=RandomSampler(range(LARGE), generator=seeded(2)), batch_size=BATCH_SIZE, ahead=8)
        kills, seen, next_kill = 0, 0, 20
        restarted: Future[None] | None = None
        steps = 0
        for step, ((embedding, index), indices) in enumerate(zip(train, expected, strict=True)):
            assert index.tolist() == indices, f"step {step}, {kills} kills"
            assert torch.equal(embedding, torch.from_numpy(np.ascontiguousarray(embeddings[indices]))), f"step {step}"
            steps += 1
            if restarted is not None and len(failures) > seen:
                restarted.result()
                restarted, next_kill = None, step + 30
            elif restarted is None and step >= next_kill and kills < 4:
                seen = len(failures)
                served.kill()
                kills += 1
                restarted = supervisor.submit(restart, seen)
        assert (steps, kills) == (len(expected), 4)
    assert [flow.connections > 1 for flow in long_path] == [True] * (max_connections > 1)


def test_the_split_is_as_large_as_the_samplers_think(server: Server) -> None:
    assert len(server.snapshot.splits["dev"].cps) == N
