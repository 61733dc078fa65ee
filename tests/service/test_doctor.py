"""cpstream doctor, where something is made ten times slower: it must be what it names."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from command import COMMAND, Service, environment, serve
from conftest import poll

from cpstream_client.contract.bodies import Measurement
from cpstream_client.cpus import cpu_limit, throttled_s
from cpstream_client.diagnosis.measure import Figures, Rate
from cpstream_client.diagnosis.verdict import Loop, judge
from cpstream_client.torch import StreamingEmbeddingsDataset, loader
from cpstream_service.cli.app import run

ONLY_CLI = [sys.executable, str(Path(__file__).parents[1] / "only_cli.py")]
LINK_BYTES_S = 3_000_000


@pytest.fixture(scope="module")
def service(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(tmp_path_factory.mktemp("doctor"), source=large) as started:
        yield started


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """The process runs for a tenth of the time: stopped and continued, as a CPU quota does it."""
    over = threading.Event()

    def cycle() -> None:
        with suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                over.wait(0.09)
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.01)

    thread = threading.Thread(target=cycle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def slow_link(url: str) -> Iterator[str]:
    """A TCP proxy that lets LINK_BYTES_S through, all connections together."""
    host, port = url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    turn, sockets = threading.Lock(), [listener]

    def pump(source: socket.socket, sink: socket.socket, bytes_per_s: float) -> None:
        with suppress(OSError):
            while piece := source.recv(16384):
                with turn:
                    time.sleep(len(piece) / bytes_per_s)
                sink.sendall(piece)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                far.connect((host, int(port)))
                sockets.extend((near, far))
                threading.Thread(target=pump, args=(near, far, 1e9), daemon=True).start()
                threading.Thread(target=pump, args=(far, near, LINK_BYTES_S), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield "http://{}:{}".format(*listener.getsockname())
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for sock in sockets:
            sock.close()


def diagnosed(url: str, *options: str, seconds: float = 1.5, around: Callable[[int], Any] | None = None) -> dict[str, Any]:
    """What it prints as JSON. around: a context manager for its process."""
    command = [*COMMAND, "doctor", url, "--seconds", str(seconds), "--batch-size", "64", "--json", *options]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        if around is None:
            out, err = process.communicate(timeout=120)
        else:
            with around(process.pid):
                out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def test_a_slow_link(service: Service) -> None:
    with slow_link(service.url) as url:
        told = diagnosed(url)
    assert told["limit"] == "network", told
    assert told["data_bound"] is None
    assert told["figures"]["stream"]["bytes_per_s"] < 1.5 * LINK_BYTES_S
    assert "The network is the limit" in told["sentence"]
    assert "dtype='float16' halves the bytes" in told["sentence"]
    assert "--step-ms or --stats" in told["sentence"]


def test_over_tls_what_encrypts_is_the_limit_and_not_the_network(large: Path, tmp_path: Path) -> None:
    authority, pem = trustme.CA(), tmp_path / "server.pem"
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with serve(tmp_path, "--tls-cert-file", str(pem), source=large, verify=trust) as secured:
        told = diagnosed(secured.url, "--ca-bundle", str(tmp_path / "ca.pem"), seconds=6)  # of which 2 may stand still
    assert told["limit"] in ("server", "client"), told


def test_a_slow_server(service: Service) -> None:
    with slowed(service.process.pid):
        told = diagnosed(service.url, "--step-ms", "0.01")
    assert (told["limit"], told["data_bound"]) == ("server", True), told
    assert "The server is the limit" in told["sentence"]
    assert "the training loop waits for data" in told["sentence"]


def test_a_slow_client(service: Service) -> None:
    told = diagnosed(service.url, "--step-ms", "0.01", around=slowed)
    assert (told["limit"], told["data_bound"]) == ("client", True), told
    assert "The client is the limit" in told["sentence"]


def test_a_slow_loop_by_its_stats(service: Service, tmp_path: Path) -> None:
    dataset = StreamingEmbeddingsDataset(service.url, "train", batch_size=64, cache=None)
    batches = loader(dataset)
    for step, _ in enumerate(batches):
        time.sleep(0.05)
        if step == 9:
            break
    stats = batches.stats()
    assert 50 <= stats["loop_ms"]["mean"] < 2000
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    told = diagnosed(service.url, "--stats", str(tmp_path / "stats.json"))
    assert (told["limit"], told["data_bound"]) == ("loop", False), told
    assert "The training loop is the limit" in told["sentence"]
    assert told["figures"]["loop"]["step_s"] == stats["loop_ms"]["mean"] / 1e3


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_loop_takes_by_itself_is_told_from_what_it_waits(service: Service, workers: int) -> None:
    batches = loader(StreamingEmbeddingsDataset(service.url, "train", batch_size=500, cache=None), num_workers=workers)
    for _ in range(2):
        for _ in batches:
            time.sleep(0.01)
        time.sleep(0.5)  # between epochs it does something else
    stats = batches.stats()
    assert stats["steps"] == 24
    assert stats["loop_ms"]["total"] >= 240
    began = time.perf_counter()
    batches.stats(reset=True)
    for _ in batches:
        pass
    stats = batches.stats()
    assert stats["loop_ms"]["total"] + stats["exposed_ms"]["total"] <= (time.perf_counter() - began) * 1e3


def test_it_runs_with_the_client_and_the_command_alone(service: Service) -> None:
    command = [*ONLY_CLI, "doctor", service.url, "--seconds", "0.3", "--step-ms", "1000"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for shown in ("train, batches of 256, float32", "server alone", "client alone", "training loop", "round trip"):
        assert shown in done.stdout
    assert "The training loop is the limit: it takes 1,000 ms a step by itself (256 samples/s in batches of 256)" in " ".join(
        done.stdout.split()
    )


def test_what_is_wrong_is_one_line(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text('{"steps": 3}')
    for code, options, said in (
        (2, ["--stats", str(stats)], "does not hold a loop's figures; write it by json.dumps(loader.stats())"),
        (2, ["--stats", str(tmp_path / "none.json")], "No such file or directory"),
        (2, ["--step-ms", "0"], "step_ms is 0; it must be more than 0 milliseconds"),
        (2, ["--step-ms", "3", "--stats", str(stats)], "leave one out"),
        (2, ["--seconds", "0"], "seconds is 0; it must be above 0"),
        (2, ["--batch-size", "0"], "batch_size is 0"),
        (1, ["--split", "trian"], "split 'trian' is not served"),
        (1, ["http://127.0.0.1:9"], "http://127.0.0.1:9"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(["doctor", *([service.url] if options[0].startswith("--") else []), *options])
        out, err = capsys.readouterr()
        assert (ended.value.code, out, err.count("\n")) == (code, "", 1), err
        assert said in err


def test_the_server_measures_itself_beside_others(service: Service) -> None:
    def is_idle() -> bool:
        return "cpstream_open_streams 0.0" in httpx.get(f"{service.url}/metrics").text

    poll(is_idle)  # streams that other tests have left behind
    reply = httpx.get(f"{service.url}/v1/splits/train/measure", params={"batch_size": 100, "shuffle": "true"})
    found = Measurement.model_validate_json(reply.content)
    described = httpx.get(f"{service.url}/openapi.json").json()["components"]["schemas"]["Measurement"]["properties"]
    assert set(reply.json()) == set(described)
    assert reply.headers["cache-control"] == "no-store"
    assert 0.5 <= found.seconds < found.bytes
    assert found.samples % 100 == 0
    assert found.samples * 4096 < found.bytes
    assert found.gather_seconds + found.wait_seconds + found.send_seconds <= found.seconds
    assert (found.other_streams, found.in_memory) == (0, True)
    assert httpx.get(f"{service.url}/v1/splits/train/measure", params={"rank": 1}).json()["code"] == "invalid-parameter"
    metrics = httpx.get(f"{service.url}/metrics").text
    assert 'cpstream_samples_total{split="train",token=""} ' in metrics
    poll(is_idle)


RATE = Rate(samples=100_000, nbytes=100_000_000, seconds=1.0, cpu_s=0.9)
SERVER = Measurement(
    split="train",
    fingerprint="0" * 32,
    seconds=0.5,
    samples=500_000,
    batches=100,
    bytes=500_000_000,
    gather_seconds=0.2,
    wait_seconds=0.0,
    send_seconds=0.2,
    cpu_seconds=0.5,
    cpus=2.0,
    throttled_seconds=None,
    other_streams=0,
    in_memory=True,
)
FIGURES = Figures("train", 100, "float32", RATE, replace(RATE, samples=1_000_000), SERVER, 0.01, 0.001, 0.0001, 1, 1, 2.0)


FAR = replace(FIGURES, dtype="float16", round_trip_s=0.08, connections=8)


def slow_server(**figures: object) -> Figures:
    return replace(FIGURES, server=SERVER.model_copy(update={"samples": 60_000, **figures}))


@pytest.mark.parametrize(
    ("figures", "limit", "said"),
    [
        (FIGURES, "network", "look at what is in between: a proxy, a slow link"),
        (FAR, "network", "move the trainer closer (a packet takes 80 ms there and back, over 8 connections at most)"),
        (slow_server(), "server", "more workers or replicas, on a machine whose CPUs have less to do"),
        (slow_server(throttled_seconds=0.4, cpus=0.2), "server", "now 0.2 CPUs, which stopped it for 0.40"),
        (slow_server(in_memory=False), "server", "shuffle='blocks'"),
        (slow_server(wait_seconds=0.4, other_streams=7), "server", "7 other streams take their turns"),
        (slow_server(cpu_seconds=0.1), "server", "it got 20% of one"),
        (replace(FIGURES, client=RATE), "client", "several DataLoader workers, ask for dtype='float16'"),
        (replace(FIGURES, client=RATE, stream=replace(RATE, throttled_s=0.7)), "client", "CPU limit of the trainer, now 2"),
        (replace(FIGURES, stream=replace(RATE, stopped_s=0.8)), "client", "for 0.80 s of 1.00 it wanted to run and did not"),
        (replace(FIGURES, client=replace(RATE, cpu_s=0.2)), "client", "it got 20% of one"),
    ],
)  # fmt: skip
def test_what_to_change(figures: Figures, limit: str, said: str) -> None:
    for loop in (None, Loop(0.0001)):
        verdict = judge(figures, loop)
        assert (verdict.limit, verdict.is_bound) == (limit, None if loop is None else True)
        assert said in verdict.sentence
        assert verdict.sentence.startswith(
            f"The {limit} is the limit: the stream gives 100,000 samples/s (100 MB/s), and the server alone"
        )
    assert judge(figures, Loop(0.01, 0.0001)).limit == "loop"  # 10,000 samples/s
    assert "is not explained by what was measured now" in judge(figures, Loop(0.01, 0.02)).sentence


def test_what_a_token_may_be_sent_is_no_slow_network() -> None:
    figures = replace(FIGURES, server=SERVER.model_copy(update={"allowed_bytes_per_second": 120_000_000}))
    verdict = judge(figures, None)
    assert verdict.limit == "server"
    assert "raise max_bytes_per_s of the token, now 120 MB/s" in verdict.sentence
    assert judge(replace(figures, stream=replace(RATE, nbytes=50_000_000)), None).limit == "network"


def test_a_stream_by_several_workers_is_compared_with_as_many() -> None:
    figures = replace(slow_server(), connections=8, workers=4)  # one worker could do 120,000 a second, four 480,000
    verdict = judge(figures, None)
    assert verdict.limit == "network"
    assert "the server alone could do 480,000 by 4 workers" in verdict.sentence


def test_quotas_are_those_of_the_cgroup_and_the_ones_above(tmp_path: Path) -> None:
    inner = tmp_path / "two" / "pod" / "container"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 1500000\n")
    (inner.parent / "cpu.max").write_text("25000 100000\n")
    (tmp_path / "cgroup").write_text("0::/pod/container\n")
    assert cpu_limit(str(tmp_path / "cgroup"), str(tmp_path / "two")) == 0.25
    assert throttled_s(str(tmp_path / "cgroup"), str(tmp_path / "two")) == 1.5
    one = tmp_path / "one" / "cpu,cpuacct"
    one.mkdir(parents=True)
    (one / "cpu.cfs_quota_us").write_text("50000\n")
    (one / "cpu.cfs_period_us").write_text("100000\n")
    (one / "cpu.stat").write_text("nr_periods 4\nthrottled_time 2500000000\n")
    (tmp_path / "cgroup").write_text("4:memory:/x\n2:cpu,cpuacct:/of/the/host\n")
    assert cpu_limit(str(tmp_path / "cgroup"), str(tmp_path / "one")) == 0.5
    assert throttled_s(str(tmp_path / "cgroup"), str(tmp_path / "one")) == 2.5
    assert cpu_limit(str(tmp_path / "none"), str(tmp_path)) >= 1
    assert throttled_s(str(tmp_path / "none"), str(tmp_path)) is None
