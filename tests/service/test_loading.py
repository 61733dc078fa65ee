"""The start: it listens at once, and says how far loading is; what is wrong with the data ends it."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from command import COMMAND, answers, environment
from conftest import DEMO_DATA, poll
from data import make_settings

from cpstream_client import Client, Retry
from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.inputs import Files, identity_of
from cpstream_service.snapshot.locks import writing


@contextmanager
def listening(settings: DataSettings, folder: Path, *options: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A service that has no data yet. Yields its URL and process."""
    log = folder / "log"
    places = ["--source-path", str(settings.source_path), "--snapshot-dir", str(settings.snapshot_dir)]
    with log.open("wb") as stderr:
        command = [*COMMAND, "serve", *places, "--host", "127.0.0.1", "--port", "0", *options]
        process = subprocess.Popen(command, env=environment(), stderr=stderr)
    try:
        poll(lambda: process.poll() is not None or "listening at" in log.read_text())
        found = re.search(r"listening at (http://[\w.:]+),", log.read_text())
        assert found, log.read_text()
        yield found[1], process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def settings(tmp_path: Path) -> DataSettings:
    return make_settings(DEMO_DATA, snapshot_dir=tmp_path / "snapshots")


@contextmanager
def held_up(settings: DataSettings) -> Iterator[None]:
    """Within, no other process can write the snapshot of these settings: loading waits."""
    settings.snapshot_dir.mkdir()
    key = Files.of(settings).key(identity_of(settings), settings.snapshot_dir)
    with writing(settings.snapshot_dir, key):
        yield


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_answers_while_it_loads(settings: DataSettings, tmp_path: Path, workers: str) -> None:
    with held_up(settings), listening(settings, tmp_path, "--workers", workers) as (url, process):
        poll(lambda: is_alive(url))
        for path in ("/readyz", "/v1/splits", "/v1/splits/train/batches", "/v1/splits/train?fingerprint=x"):
            reply = httpx.get(url + path)
            assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "not-ready", "1"), path
            assert "the data is being loaded: " in reply.json()["detail"]
        told = httpx.get(f"{url}/v1/versions").json()
        assert (told["versions"], told["reload"]["number"], told["progress"]["rows"]) == ([], 0, None)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0


def test_a_client_waits_for_a_service_that_loads(settings: DataSettings, tmp_path: Path) -> None:
    with held_up(settings):
        starting = listening(settings, tmp_path)
        url, _ = starting.__enter__()
        poll(lambda: is_alive(url))
        assert not answers(url)
    try:
        assert Client(url, retry=Retry(timeout_s=90)).split("train").num_samples == 1800
    finally:
        starting.__exit__(None, None, None)


def is_alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == 200
    except httpx.TransportError:
        return False
