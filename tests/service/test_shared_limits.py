"""What a token may have holds for the service, however many workers it has: real services of two."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import httpx
import pytest
from command import Service, serve, workers_of
from conftest import poll, stalled_stream
from hypothesis import given
from hypothesis import strategies as st

from cpstream_service.api.allowance import SAVED_S, Allowance
from cpstream_service.batches.limits import SharedMoment

TOKENS = """
[few]
token = "f3w"
max_streams = 3

[ops]
token = "0ps"
scopes = ["metrics"]

[slow]
token = "sl0w"
max_bytes_per_s = 1_000_000
"""
BATCHES = "/v1/splits/train/batches"
FEW, SLOW, OPS = ({"Authorization": f"Bearer {value}"} for value in ("f3w", "sl0w", "0ps"))


@pytest.fixture(scope="module")
def service(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("two-workers")
    (folder / "tokens.toml").write_text(TOKENS)
    arguments = ["--workers", "2", "--tokens-file", str(folder / "tokens.toml"), "--log-format", "json"]
    with serve(folder, *arguments, source=large) as service:
        yield service


def answered(service: Service, status: int, token: str) -> set[int]:
    """The ids of the workers that have answered requests of a token so."""
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return {line["pid"] for line in lines if line.get("status") == status and line.get("token") == token}


def test_streams(service: Service) -> None:
    def statuses() -> set[int]:
        return {httpx.get(f"{service.url}{BATCHES}?limit=1", headers=FEW).status_code for _ in range(4)}

    header = f"Authorization: {FEW['Authorization']}\r\n"
    with ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(stalled_stream(service.url, BATCHES, headers=header))
        # Wherever the three are, and whichever worker is asked.
        poll(lambda: [statuses() == {429}, len(answered(service, 429, "few"))] == [True, 2])
        refused = httpx.get(f"{service.url}{BATCHES}", headers=FEW).json()
        assert refused["code"] == "too-many-streams"
        assert "3 streams of token few are open, as many as it may have (max_streams)" in refused["detail"]
    poll(lambda: statuses() == {200})
    poll(
        lambda: "\ncpstream_open_streams 0.0" in httpx.get(f"{service.url}/metrics", headers=OPS).text
    )  # or the third is one too many
    # A worker that dies takes its streams along.
    with ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(stalled_stream(service.url, BATCHES, headers=header))
        for worker in workers_of(service):
            os.kill(worker, signal.SIGKILL)
        poll(lambda: _has_answered(service))
        poll(lambda: statuses() == {200})


def _has_answered(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}{BATCHES}?limit=1", headers=FEW).status_code == 200
    except httpx.TransportError:
        return False


def test_bytes_per_second(service: Service) -> None:
    ended = Event()

    def read() -> None:
        with httpx.stream("GET", f"{service.url}{BATCHES}", headers=SLOW) as stream:
            for _ in stream.iter_raw():
                if ended.is_set():
                    return

    def status() -> int:
        return httpx.get(f"{service.url}/v1/splits/train", headers=SLOW).status_code

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read)
        try:
            poll(lambda: status() == 429)  # from now on what is ahead takes more than a second
            poll(lambda: status() and len(answered(service, 429, "slow")) == 2)  # the worker that sends nothing refuses, too
        finally:
            ended.set()
        reading.result(90)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 2), st.integers(1, 10_000_000)), min_size=1, max_size=30),
    st.integers(1_000_000, 10**8),
)
def test_workers_send_no_more_together_than_one_would(tmp: Path, chunks: list[tuple[float, int, int]], rate: int) -> None:
    path = tmp / os.urandom(8).hex()
    workers, alone, now_s = [Allowance(SharedMoment(path)) for _ in range(3)], Allowance(), SAVED_S
    for pause_s, worker, nbytes in chunks:
        now_s += pause_s
        assert workers[worker].delay_s(nbytes, rate, now_s) == alone.delay_s(nbytes, rate, now_s)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moments")
