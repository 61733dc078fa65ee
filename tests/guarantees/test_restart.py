"""The service as a process that is killed, restarted, replaced and drained under a client in the middle of an epoch."""

import csv
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import poll
from torch.utils.data import BatchSampler, DistributedSampler

from cpstream_client import Client, CpstreamError, DatasetChanged, Retry
from cpstream_client.stream.lanes import Flow
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_client.transport import endpoints as replicas
from cpstream_client.transport.retry import Patience
from cpstream_client.transport.service import REQUEST_BYTES

N, DIM, BATCH_SIZE = 20_000, 768, 64
"""61 MB: more than the kernel's socket buffers take, so that a kill hits a reply that is being sent."""
RETRY = Retry(timeout_s=120, first_delay_s=0.05, max_delay_s=0.2, contact_timeout_s=120, changed_timeout_s=0)


class Service:
    """`cpstream serve` on a port that stays reserved while it is down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "cpstream_service", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--source-path", str(self.folder / "data"), "--snapshot-dir", str(self.folder / "snapshots")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CPSTREAM_")}
        log = (self.folder / "log.txt").open("ab")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reserved.close()


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    made = Service(folder)
    try:
        made.start()
        yield made
    finally:
        made.close()


def write_data(folder: Path, seed: int) -> npt.NDArray[np.float32]:
    """A source of one split. Returns its embeddings, (N, DIM) float32, in index order."""
    embeddings = np.random.default_rng(seed).random((N, DIM), np.float32)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    rows = [{"embedding": embeddings[i], "file_path": f"{i:06}.wav"} for i in range(N)]
    temporary = data / "new.npy"
    np.save(temporary, {"train": rows}, allow_pickle=True)  # type: ignore[arg-type]
    temporary.rename(data / "numpy_embs.npy")
    with (data / "train_cps.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audio_path", "cps"])
        table.writerows([f"{i:06}.wav", 5 + i % 20] for i in range(N))
    return embeddings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("restart")


@pytest.fixture(scope="module")
def embeddings(folder: Path) -> npt.NDArray[np.float32]:
    return write_data(folder, seed=1)


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[CpstreamError]:
    """What the client had to retry."""
    seen: list[CpstreamError] = []
    wait_s = Patience.wait_s

    def noting(self: Patience, error: CpstreamError, endpoint: str = "") -> float:
        seen.append(error)
        return wait_s(self, error, endpoint)

    monkeypatch.setattr(Patience, "wait_s", noting)
    return seen


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the kernel does not hold megabytes of a reply, which would still arrive when its sender is long dead."""

    def connect(address: tuple[str, int], timeout: float, *_: object) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.settimeout(timeout)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    monkeypatch.setattr(socket, "create_connection", connect)


def dataset(urls: list[str], request_bytes: int = REQUEST_BYTES, max_connections: int = 1) -> StreamingEmbeddingsDataset:
    """Almost nothing is fetched ahead: what is lost must come from the service again."""
    client = Client(urls, timeout_s=10, retry=RETRY, max_connections=max_connections)
    client.service = replace(client.service, request_bytes=request_bytes)
    return StreamingEmbeddingsDataset(
        client,
        "train",
        batch_size=BATCH_SIZE,
        shuffle=True,
        seed=9,
        columns=("embedding", "index"),
        prefetch_bytes=1 if max_connections == 1 else 2 * max_connections * BATCH_SIZE * DIM * 4,
        cache=None,
        rank=0,
        world_size=1,
    )


def oracle(epoch: int) -> list[list[int]]:
    sampler = DistributedSampler(range(N), num_replicas=1, rank=0, shuffle=True, seed=9)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    return list(BatchSampler(sampler, BATCH_SIZE, drop_last=False))


@pytest.mark.parametrize("max_connections", [1, 4])
def test_killed_ten_times_in_one_epoch(
    folder: Path,
    embeddings: npt.NDArray[np.float32],
    failures: list[CpstreamError],
    small_windows: None,
    long_path: list[Flow],
    max_connections: int,
) -> None:
    generator = random.Random(3)
    kills: list[int] = []
    with service(folder) as served, ThreadPoolExecutor(1) as supervisor:

        def restart(seen: int) -> None:
            poll(lambda: len(failures) > seen, timeout_s=60)  # the stream broke under the client
            served.start()

        train = dataset([served.url], max_connections=max_connections)
        train.set_epoch(5)
        steps = len(train)
        failures.clear()
        next_kill, seen = 2, 0
        restarted: Future[None] | None = None
        for step, ((embedding, index), expected) in enumerate(zip(train, oracle(5), strict=True)):
            assert index.tolist() == expected, f"step {step}, kills {kills}"
            assert torch.equal(embedding, torch.from_numpy(embeddings[expected])), f"step {step}, kills {kills}"
            if restarted is not None and len(failures) > seen:
                restarted.result()  # or a fast loop would end the epoch before it sees that the service is back
                restarted = None
                next_kill = step + generator.randint(3, 6)  # what comes so late is of the new process
            elif restarted is None and step >= next_kill and len(kills) < 10:
                seen = len(failures)
                served.kill()
                kills.append(step)
                restarted = supervisor.submit(restart, seen)
        assert step == steps - 1
    assert len(kills) == 10
    assert [flow.connections for flow in long_path] == [4] * (max_connections > 1)
    assert len(failures) >= 10
    print(f"killed after the steps {kills} of {steps}; {len(failures)} tries failed")


@pytest.mark.parametrize("max_connections", [1, 4])
def test_killed_and_replaced_by_other_data(
    folder: Path,
    embeddings: npt.NDArray[np.float32],
    failures: list[CpstreamError],
    small_windows: None,
    long_path: list[Flow],
    max_connections: int,
) -> None:
    with service(folder) as served:
        train = dataset([served.url], max_connections=max_connections)
        fingerprint = train.info.fingerprint
        delivered = 0
        with pytest.raises(DatasetChanged) as caught:  # noqa: PT012
            for (embedding, index), expected in zip(train, oracle(0), strict=True):
                assert index.tolist() == expected
                assert torch.equal(embedding, torch.from_numpy(embeddings[expected])), "new data was delivered"
                delivered += 1
                if delivered == 20:
                    served.kill()
                    try:
                        write_data(folder, seed=2)
                        rmtree(folder / "snapshots")  # or the old data would be served to whoever pins it
                        served.start()
                        with Client(served.url, retry=RETRY) as client:
                            now = client.split("train").fingerprint
                    finally:
                        write_data(folder, seed=1)
    assert 20 <= delivered < 100
    assert now != fingerprint
    assert (caught.value.expected, caught.value.actual) == (fingerprint, now)
    assert caught.value.url.startswith(f"{served.url}/v1/splits/train/batches?")


def test_killed_and_started_over_other_data_an_epoch_goes_on_with_its_own(
    folder: Path, embeddings: npt.NDArray[np.float32], failures: list[CpstreamError], small_windows: None
) -> None:
    """The version that it pins lies in the snapshot folder, and is kept."""
    with service(folder) as served:
        train = dataset([served.url])
        fingerprint, delivered = train.info.fingerprint, 0
        for (embedding, index), expected in zip(train, oracle(0), strict=True):
            assert index.tolist() == expected
            assert torch.equal(embedding, torch.from_numpy(embeddings[expected]))
            delivered += 1
            if delivered == 20:
                served.kill()
                try:
                    write_data(folder, seed=2)
                    served.start()
                    with Client(served.url, retry=RETRY) as client:
                        assert client.split("train").fingerprint != fingerprint
                finally:
                    write_data(folder, seed=1)
        assert delivered == len(oracle(0))


@pytest.mark.parametrize("max_connections", [1, 4])
def test_drained_in_mid_epoch_with_a_second_replica(
    folder: Path,
    embeddings: npt.NDArray[np.float32],
    failures: list[CpstreamError],
    long_path: list[Flow],
    monkeypatch: pytest.MonkeyPatch,
    max_connections: int,
) -> None:
    monkeypatch.setattr(replicas, "_COOLDOWN_S", 1000.0)  # or a slow machine asks it again, and counts that, too
    monkeypatch.setattr(replicas, "_MAX_COOLDOWN_S", 1000.0)
    with ExitStack() as stack:
        first, second = (stack.enter_context(service(folder)) for _ in range(2))
        for each in (first, second):
            stack.enter_context(Client(each.url, retry=RETRY)).split("train")
        train = dataset([first.url, second.url], 8 * 1024**2, max_connections)
        failures.clear()
        assert first.process is not None
        for step, ((embedding, index), expected) in enumerate(zip(train, oracle(0), strict=True)):
            assert index.tolist() == expected, f"step {step}"
            assert torch.equal(embedding, torch.from_numpy(embeddings[expected])), f"step {step}"
            if step == 30:
                first.process.terminate()
        assert step == -(-N // BATCH_SIZE) - 1
        assert first.process.wait(30) == 0
    # One request of each connection may find it gone or draining; the replies that it had begun were not cut.
    assert len(failures) <= 2 * max_connections
    assert not [failure for failure in failures if "early" in str(failure)]
