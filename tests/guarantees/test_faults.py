"""Faults on the wire: whatever a proxy does to connections, full epochs arrive as torch's samplers have them, to the bit.

FAULTS_PER_CASE for each of four cases, over as many epochs as it takes; the proxy breaks every single connection. Replay a failure
by its seed, which the message of the assertion names.
"""

import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trustme
from conftest import Server, published, serving
from faultproxy import KINDS, FaultProxy
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from cpstream_client import Client, Retry
from cpstream_client.epochs import epochs as epochs_module
from cpstream_client.stream import course as course_module
from cpstream_client.stream.lanes import Flow
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

FAULTS_PER_CASE = 100
REQUEST_BYTES, RECORD_BYTES = 24_000, 6_000
RETRY = Retry(timeout_s=60, first_delay_s=0.002, max_delay_s=0.02, contact_timeout_s=60)
BATCH_SIZE, SEED = 8, 11


@pytest.fixture(autouse=True)
def _small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course_module, "WIRE_BATCH_BYTES", RECORD_BYTES)
    monkeypatch.setattr(epochs_module, "_WINDOW_BYTES", RECORD_BYTES)


def client(url: str | list[str], timeout_s: float = 0.3, max_connections: int = 1, **options: Any) -> Client:
    made = Client(url, timeout_s=timeout_s, retry=RETRY, max_connections=max_connections, **options)
    made.service = replace(made.service, request_bytes=REQUEST_BYTES)
    return made


def oracle(n: int, epoch: int, rank: int, world_size: int) -> list[list[int]]:
    sampler = DistributedSampler(range(n), num_replicas=world_size, rank=rank, shuffle=True, seed=SEED)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    return list(BatchSampler(sampler, BATCH_SIZE, drop_last=False))


@pytest.mark.parametrize(("num_workers", "max_connections"), [(0, 1), (0, 4), (2, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_epochs_through_faults_equal_torch(
    server: Server,
    forkserver: multiprocessing.context.BaseContext,
    long_path: list[Flow],
    max_connections: int,
    dtype: str,
    num_workers: int,
) -> None:
    split = server.snapshot.splits["train"]
    embeddings = split.embeddings.astype(dtype)
    bits = np.uint32 if dtype == "float32" else np.uint16
    seed = 100 * num_workers + 10 * (max_connections > 1) + (dtype == "float16")
    epoch = 0
    with FaultProxy(server.url, seed) as proxy:
        while proxy.counts.total() < FAULTS_PER_CASE or len(proxy.counts) < len(KINDS):
            rank, world_size = [(0, 1), (1, 2), (2, 3)][epoch % 3]
            # A new dataset each time, so that its metadata come through the faults, too.
            dataset = StreamingEmbeddingsDataset(
                client(proxy.url, max_connections=max_connections),
                "train",
                batch_size=BATCH_SIZE,
                shuffle=True,
                seed=SEED,
                dtype=dtype,  # type: ignore[arg-type]
                columns=("embedding", "cps", "index"),
                rank=rank,
                world_size=world_size,
            )
            dataset.set_epoch(epoch)
            # Not forked from here: a child would inherit the proxy's sockets and keep them open.
            context = forkserver if num_workers else None
            loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, multiprocessing_context=context)
            expected = oracle(len(embeddings), epoch, rank, world_size)
            where = f"seed {seed}, epoch {epoch}, rank {rank} of {world_size}, after {dict(proxy.counts)}"
            steps = 0
            for (embedding, cps, index), indices in zip(loader, expected, strict=True):
                assert index.tolist() == indices, f"step {steps}: {where}"
                assert np.array_equal(embedding.numpy().view(bits), embeddings[indices].view(bits)), f"step {steps}: {where}"
                assert np.array_equal(cps.numpy(), split.cps[indices]), f"step {steps}: {where}"
                steps += 1
            assert steps == len(dataset), where
            epoch += 1
            assert epoch < 60, f"too few faults: {where}"
    if not num_workers:  # in single epochs they may be fewer, for the proxy refuses some requests as an overloaded service does
        assert max((flow.connections for flow in long_path), default=1) == max_connections
    case = f"{dtype}, {num_workers} workers, {max_connections} connections"
    print(f"{case}: {proxy.counts.total()} faults in {epoch} epochs: {dict(proxy.counts)}")


@pytest.mark.parametrize("max_connections", [1, 4])
def test_epochs_over_tls_through_faults_equal_torch(
    snapshot: Snapshot, tmp_path: Path, long_path: list[Flow], max_connections: int
) -> None:
    ca, pem = trustme.CA(), tmp_path / "server.pem"
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    split = snapshot.splits["train"]
    without_flips = tuple(kind for kind in KINDS if kind not in ("flip_reply", "flip_request", "bad_gateway"))
    epoch = 0
    with (
        serving(create_app(snapshot, ServeSettings()), ssl_certfile=str(pem)) as url,
        FaultProxy(url, seed=40 + max_connections, kinds=without_flips) as proxy,
    ):
        remote = client(proxy.url, timeout_s=0.5, max_connections=max_connections, verify=str(tmp_path / "ca.pem"))
        remote.splits()  # what damages the very first handshakes is told as what it could be: a wrong setting
        proxy.kinds = (*without_flips, "flip_reply", "flip_request")
        while proxy.counts.total() < FAULTS_PER_CASE // 4 or "flip_reply" not in proxy.counts:
            dataset = StreamingEmbeddingsDataset(
                remote, "train", batch_size=BATCH_SIZE, shuffle=True, seed=SEED, columns=("embedding", "cps", "index"), cache=None
            )
            dataset.set_epoch(epoch)
            for (embedding, cps, index), indices in zip(dataset, oracle(len(split.cps), epoch, 0, 1), strict=True):
                assert index.tolist() == indices
                assert np.array_equal(embedding.numpy().view(np.uint32), split.embeddings[indices].view(np.uint32))
                assert np.array_equal(cps.numpy(), split.cps[indices])
            epoch += 1
            assert epoch < 60, f"too few faults: {dict(proxy.counts)}"
    assert max((flow.connections for flow in long_path), default=1) == max_connections


def test_epochs_of_two_ranks_through_faults_while_their_caches_fill(server: Server) -> None:
    """What a rank's first epoch did not bring comes with its second: by then it holds the whole split, and each row is right."""
    split = server.snapshot.splits["train"]
    generation = 0
    # A flipped index may lie outside of the split, and such a refusal is final when it comes twice in a row, as it does here.
    kinds = tuple(kind for kind in KINDS if kind != "flip_request")
    with FaultProxy(server.url, seed=11, kinds=kinds) as proxy:
        while proxy.counts.total() < FAULTS_PER_CASE:
            rank = generation % 2
            dataset = StreamingEmbeddingsDataset(
                client(proxy.url),
                "train",
                batch_size=BATCH_SIZE,
                shuffle=True,
                seed=SEED,
                columns=("embedding", "index"),
                rank=rank,
                world_size=2,
            )
            for epoch in range(3):
                dataset.set_epoch(epoch)
                got = list(dataset)
                where = f"epoch {epoch}, rank {rank}, after {dict(proxy.counts)}"
                assert [index.tolist() for _, index in got] == oracle(len(split.cps), epoch, rank, 2), where
                for embedding, index in got:
                    assert np.array_equal(embedding.numpy(), split.embeddings[index.numpy()]), where
            assert "(memory: " in repr(dataset)
            generation += 1
    print(f"caches that fill: {proxy.counts.total()} faults in {generation} runs: {dict(proxy.counts)}")


def test_take_and_metadata_through_faults(server: Server) -> None:
    split = server.snapshot.splits["train"]
    generator = np.random.default_rng(5)
    paths = split.file_paths.to_pylist()
    with FaultProxy(server.url, seed=7, reply_bytes=3000) as proxy, client(proxy.url) as remote:
        while proxy.counts.total() < FAULTS_PER_CASE:
            where = f"seed 7, after {dict(proxy.counts)}"
            indices = generator.integers(0, len(paths), 5)
            batch = remote.take("train", indices)
            assert batch.embeddings is not None, where
            assert np.array_equal(batch.embeddings, split.embeddings[indices]), where
            assert remote.split("train") == published(split), where
            offset = int(generator.integers(0, 1700))
            page = remote.rows("train", offset, 3)
            assert [row.file_path for row in page.rows] == paths[offset : offset + 3], where
    print(f"take and metadata: {dict(proxy.counts)}")


@pytest.mark.parametrize("max_connections", [1, 4])
def test_two_proxies_on_the_way_to_the_replicas(server: Server, long_path: list[Flow], max_connections: int) -> None:
    split = server.snapshot.splits["train"]
    with FaultProxy(server.url, seed=1) as one, FaultProxy(server.url, seed=2) as two:
        two.damaged = one.damaged  # what one has damaged is asked for again at the other
        remote = client([one.url, two.url], max_connections=max_connections)
        dataset = StreamingEmbeddingsDataset(remote, "train", batch_size=BATCH_SIZE, shuffle=True, seed=SEED, columns=("index",))
        for epoch in range(3):
            dataset.set_epoch(epoch)
            got = [index.tolist() for (index,) in dataset]
            assert got == oracle(len(split.cps), epoch, 0, 1), f"epoch {epoch}: {Counter(one.counts) + Counter(two.counts)}"
    assert one.counts.total() > 0
    assert two.counts.total() > 0


def test_torch_is_not_fooled() -> None:
    """The oracle itself: two epochs differ, and the ranks of one share no sample."""
    assert oracle(100, 0, 0, 1) != oracle(100, 1, 0, 1)
    seen = torch.tensor([index for rank in range(2) for batch in oracle(100, 0, rank, 2) for index in batch])
    assert torch.equal(seen.sort().values, torch.arange(100))
