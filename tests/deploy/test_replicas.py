"""Replicas behind HAProxy: the configuration by haproxy itself, the profile by what it says, both for real where an engine is."""

import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme
import yaml
from command import serve
from conftest import Server, bound, poll
from reloading import Trainer as ReloadTrainer
from reloading import current, reload, source
from soak.engine import compose_command, has_engine, output
from soak.replicas import kill_in_turn, running
from soak.trainers import Size, Trainers

from cpstream_client import Client
from cpstream_service.snapshot.store import Snapshot

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROXY, REPLICA = COMPOSE["services"]["proxy"], COMPOSE["services"]["replica"]
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
SIZE = Size(60_000, 768)


def test_clients_are_told_apart() -> None:
    """Replicas believe those in the proxy's network, where nobody else is."""
    assert "option forwardfor" in CONFIGURATION.read_text()
    (subnet,) = COMPOSE["networks"]["replicas"]["ipam"]["config"]
    assert REPLICA["environment"]["CPSTREAM_TRUSTED_PROXIES"] == subnet["subnet"]
    assert COMPOSE["networks"]["replicas"]["internal"]
    members = {name for name, service in COMPOSE["services"].items() if "replicas" in service.get("networks", ())}
    assert members == {"proxy", "replica", "prometheus"}
    assert "ports" not in REPLICA


def test_replicas_share_one_snapshot_that_is_written_once() -> None:
    assert REPLICA["scale"] == 3
    assert REPLICA["volumes"] == COMPOSE["services"]["prepare"]["volumes"]
    assert REPLICA["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}


def test_every_container_is_confined_limited_and_pinned() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["image"] == "${IMAGE:-cpstream}" or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert "healthcheck" in service or service["image"] == "${IMAGE:-cpstream}", name  # ours has one of its own
        if name != "chroma":  # whose image writes beside its data
            assert service["read_only"], name


@contextmanager
def proxied(folder: Path, *urls: str, add: str = "", until: int = 200) -> Iterator[str]:
    """HAProxy with the configuration of this tree, its replicas at addresses instead of a name.

    add: a line of its backend. until: the status of /readyz from which on it is ready for the test.
    """
    for _ in range(5):  # another process may take a port before HAProxy does
        with _started(folder, urls, add) as (process, url):
            poll(lambda: process.poll() is not None or answers(url, until))
            if process.poll() is None:
                yield url
                return
    raise AssertionError((folder / "haproxy.log").read_text())


@contextmanager
def _started(folder: Path, urls: tuple[str, ...], add: str) -> Iterator["tuple[subprocess.Popen[bytes], str]"]:
    with bound() as one, bound() as other:
        ports = [sock.getsockname()[1] for sock in (one, other)]
    text = CONFIGURATION.read_text()
    text = text.replace("bind :8000", f"bind 127.0.0.1:{ports[0]}").replace("bind :8404", f"bind 127.0.0.1:{ports[1]}")
    servers = [f"    server replica{number} {url.partition('://')[2]}" for number, url in enumerate(urls)]
    text = re.sub(r"    server-template replica \d+ \S+", "\n".join([f"    {add}", *servers]), text)
    (folder / "haproxy.cfg").write_text(
        text.replace("init-addr none", "").replace("resolvers engine resolve-prefer", "resolve-prefer")
    )
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([str(HAPROXY), "-db", "-f", str(folder / "haproxy.cfg")], stdout=log, stderr=log)
    try:
        yield process, f"http://127.0.0.1:{ports[0]}"
    finally:
        process.kill()
        process.wait()


def answers(url: str, status: int) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == status
    except httpx.TransportError:
        return False


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@needs_haproxy
def test_haproxy_takes_the_configuration() -> None:
    for name in ("localhost", "tasks.localhost"):
        done = subprocess.run(
            [str(HAPROXY), "-c", "-f", str(CONFIGURATION)], env={"REPLICAS": name}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower()


@needs_haproxy
def test_a_stream_through_it_is_the_stream(server: Server, tmp_path: Path) -> None:
    with proxied(tmp_path, server.url) as url, Client(url) as remote, Client(server.url) as direct:
        streams = [client.batches("train", batch_size=64, shuffle="uniform", seed=1) for client in (remote, direct)]
        for got, expected in zip(*streams, strict=True):
            assert np.array_equal(got.embeddings, expected.embeddings)
            assert np.array_equal(got.cps, expected.cps)


@needs_haproxy
def test_metrics_of_one_replica_are_not_those_of_all(server: Server, tmp_path: Path) -> None:
    with proxied(tmp_path, server.url) as url:
        reply = httpx.get(f"{url}/metrics")
        assert reply.status_code == 404
        assert "ask each by its own address" in reply.text
        assert httpx.get(f"{url}/proxy-livez").status_code == 200


@needs_haproxy
def test_replicas_are_reloaded_one_after_the_other_behind_it(tmp_path: Path) -> None:
    """While trainers stream through it, of which some begin when the replicas do not agree."""
    held = {}
    with ExitStack() as stack:
        first, replicas = source(tmp_path / "source", 1), []
        for name in "abc":
            (tmp_path / name).mkdir()
            shared = ["--snapshot-dir", str(tmp_path / "snapshots")]
            replicas.append(stack.enter_context(serve(tmp_path / name, *shared, source=tmp_path / "source")).url)
        held[current(replicas[0])] = first
        url = stack.enter_context(proxied(tmp_path, *replicas))
        threads = stack.enter_context(ThreadPoolExecutor(8))
        trainers = [ReloadTrainer(url, seed) for seed in range(4)]
        epochs = [threads.submit(trainer.run, 0) for trainer in trainers]
        for trainer in trainers:
            assert trainer.pauses.wait(90)
        second = source(tmp_path / "source", 2)
        for number, replica in enumerate(replicas):
            assert reload(replica)["outcome"] == "succeeded"
            held[current(replica)] = second
            trainers[number].go_on.set()  # over a proxy that goes to any of them
            late = ReloadTrainer(url, 10 + number)
            late.go_on.set()
            came = late.run(0)
            late.check(0, came, held[late.dataset.info.fingerprint])
        trainers[3].go_on.set()
        for trainer, epoch in zip(trainers, epochs, strict=True):
            trainer.check(0, epoch.result(), first)
            trainer.check(1, trainer.run(1), first)
    assert len(held) == 2


@needs_haproxy
def test_to_a_service_with_tls(snapshot: Snapshot, tmp_path: Path) -> None:
    """By the line that docs/docker.md has for it. A service whose certificate another authority issued gets no request."""
    found = re.search(r"`(default-server ssl [^`]+)`", (ROOT / "docs" / "docker.md").read_text())
    assert found
    ours, other = trustme.CA(), trustme.CA()
    for name, authority in (("ca.pem", ours), ("other.pem", other)):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    ours.issue_cert("data.example").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    (tmp_path / "server.pem").chmod(0o600)
    with serve(tmp_path, "--tls-cert-file", str(tmp_path / "server.pem"), verify=unverified()) as service:
        line = found[1].replace("/run/secrets/ca.pem", str(tmp_path / "ca.pem"))
        with proxied(tmp_path, service.url, add=line) as url, Client(url) as client:
            batch = client.take("train", [3, 1])
            assert np.array_equal(batch.embeddings, snapshot.splits["train"].embeddings[[3, 1]])
        with proxied(tmp_path, service.url, add=line.replace("ca.pem", "other.pem"), until=503) as url:
            poll(lambda: "SSL handshake failure" in (tmp_path / "haproxy.log").read_text())


@pytest.mark.skipif(not (has_engine() and compose_command()), reason="no Docker Engine with Compose answers")
@pytest.mark.timeout(1800)
def test_replicas_are_killed_through_an_epoch_of_two_trainers(tmp_path: Path) -> None:
    image = "cpstream-test"
    output("docker", "build", "--tag", image, ".")
    SIZE.write(tmp_path / "source")
    for folder in (tmp_path, *tmp_path.parents[:2]):  # a container's user reads it
        folder.chmod(0o755)
    with (
        running(f"cpstream-replicas-{os.getpid()}", tmp_path / "source", image) as replicas,
        Trainers(replicas.url, SIZE, seconds=30) as trainers,
    ):
        containers = replicas.containers()
        kills = kill_in_turn(containers, trainers, every_s=2)
        epochs = trainers.results()
    assert len(containers) == 3
    assert kills > 0
    assert [epoch.samples for epoch in epochs] == [SIZE.samples // 2] * 2
