"""What /metrics says, by its numbers: a known stream gives exactly these, by two workers and after the death of one, too."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which

import httpx
import numpy as np
from command import serve, workers_of
from conftest import Server, grown, poll, stalled_stream
from looked_at import look
from prometheus_client.parser import text_string_to_metric_families
from reloading import current, reload, source

from cpstream_client import Client
from cpstream_service.api.metrics import MAX_TOKENS, OTHER_TOKENS, Metrics
from cpstream_service.snapshot.store import Snapshot

BATCHES = "/v1/splits/{split}/batches"


def figures(url: str) -> dict[str, float]:
    """Each number by its name and labels, in the order of their names and without empty ones: cpstream_samples_total{split=dev}."""
    return parsed(httpx.get(f"{url}/metrics").text)


def parsed(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if value)
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def arrow(url: str, split: str, **parameters: object) -> httpx.Response:
    return httpx.get(f"{url}/v1/splits/{split}/batches", params=parameters)  # type: ignore[arg-type]


def test_a_known_stream_gives_these_numbers(run_server: Callable[..., Server]) -> None:
    url = run_server().url
    nbytes = len(arrow(url, "dev", batch_size=10, limit=3).content)
    httpx.post(f"{url}/v1/splits/dev/take", json={"indices": [1, 2]})
    httpx.post(f"{url}/v1/splits/dev/batches", json={"batches": [[1, 2, 3], [], [4]]})
    json = {"Accept": "application/json"}
    httpx.get(f"{url}/v1/splits/test/batches", params={"batch_size": 4, "limit": 2}, headers=json)
    httpx.head(f"{url}/v1/splits/dev/batches")
    arrow(url, "nowhere")
    arrow(url, "dev", batch_size=0)
    httpx.get(f"{url}/nothing")
    found = figures(url)
    assert {name: value for name, value in found.items() if name.startswith(("cpstream_samples_t", "cpstream_batches_t"))} == {
        "cpstream_samples_total{split=dev}": 36.0,
        "cpstream_batches_total{split=dev}": 7.0,
        "cpstream_samples_total{split=test}": 8.0,
        "cpstream_batches_total{split=test}": 2.0,
    }
    refusals = {name: value for name, value in found.items() if name.startswith("cpstream_refusals_total")}
    assert refusals == {
        "cpstream_refusals_total{code=unknown-split}": 1.0,
        "cpstream_refusals_total{code=invalid-parameter}": 1.0,
        "cpstream_refusals_total{code=not-found}": 1.0,
    }
    assert found[f"cpstream_requests_total{{method=GET,route={BATCHES},status=200}}"] == 2.0
    assert found[f"cpstream_sent_bytes_total{{route={BATCHES}}}"] > nbytes
    for part in ("gather", "wait", "send"):
        assert found[f"cpstream_stream_{part}_seconds_count"] == 3.0  # the Arrow replies that had a body
        assert found[f"cpstream_stream_{part}_seconds_bucket{{le=+Inf}}"] == 3.0
    assert found["cpstream_stream_gather_seconds_sum"] > 0
    # those without a body, as of HEAD, have no first byte
    assert found[f"cpstream_time_to_first_byte_seconds_count{{route={BATCHES}}}"] == 5.0
    assert found[f"cpstream_request_duration_seconds_count{{route={BATCHES}}}"] == 6.0
    took = found[f"cpstream_request_duration_seconds_sum{{route={BATCHES}}}"]
    assert 0 < found[f"cpstream_time_to_first_byte_seconds_sum{{route={BATCHES}}}"] < took
    assert (found["cpstream_open_streams"], found["cpstream_turn_waits_total"], found["cpstream_versions"]) == (0.0, 0.0, 1.0)


def test_a_stream_that_is_cut_counts_for_what_was_sent(run_server: Callable[..., Server], snapshot: Snapshot) -> None:
    server = run_server(snapshot=grown(snapshot, "train", 50_000))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(f"GET /v1/splits/train/batches?batch_size=100 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        left = 10_000_000
        while left > 0:
            left -= len(sock.recv(65536))
    poll(lambda: figures(server.url)["cpstream_open_streams"] == 0)
    found = figures(server.url)
    samples, batches = found["cpstream_samples_total{split=train}"], found["cpstream_batches_total{split=train}"]
    row_bytes = snapshot.splits["train"].embeddings.shape[1] * 4
    assert 8_000_000 < samples * row_bytes <= found[f"cpstream_sent_bytes_total{{route={BATCHES}}}"] < 50_000 * row_bytes
    assert samples == 100 * batches
    assert found["cpstream_stream_send_seconds_count"] == 1.0


def test_a_long_stream_counts_while_it_is_sent(run_server: Callable[..., Server], snapshot: Snapshot) -> None:
    """Not in one heap when it is over, which may be minutes later."""
    url = run_server(snapshot=grown(snapshot, "train", 100_000)).url
    samples, sent = "cpstream_samples_total{split=train}", f"cpstream_sent_bytes_total{{route={BATCHES}}}"
    with stalled_stream(url, "/v1/splits/train/batches?batch_size=100") as sock:

        def counted() -> bool:
            sock.recv(65536)
            return figures(url).get(samples, 0) > 0

        poll(counted)
        found = figures(url)
        assert found["cpstream_open_streams"] == 1
        assert found[samples] < 100_000
        assert found[samples] % 100 == 0
        assert found[sent] >= found[samples] * snapshot.splits["train"].embeddings.shape[1] * 4
    poll(lambda: figures(url)["cpstream_open_streams"] == 0)


def test_numbers_of_two_workers_outlive_one_of_them(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", "2") as service:
        for _ in range(6):
            assert arrow(service.url, "train", batch_size=100).status_code == 200
        poll(lambda: figures(service.url).get("cpstream_stream_send_seconds_count") == 6)  # a worker counts what it has sent
        before = figures(service.url)
        assert before["cpstream_samples_total{split=train}"] == 6 * 1800
        assert before["cpstream_batches_total{split=train}"] == 6 * 18
        assert before["cpstream_load_seconds"] > 0
        poll(lambda: httpx.get(f"{service.url}/page/live.json").json()["samples"] == 6 * 1800)
        killed, kept = workers_of(service)
        os.kill(killed, signal.SIGKILL)
        poll(lambda: len(workers := workers_of(service)) == 2 and killed not in workers)
        assert kept in workers_of(service)
        for _ in range(4):
            assert arrow(service.url, "train", batch_size=100).status_code == 200
        poll(lambda: figures(service.url)["cpstream_stream_send_seconds_count"] == 10)
        after = figures(service.url)
        assert after["cpstream_samples_total{split=train}"] == 10 * 1800
        assert after["cpstream_batches_total{split=train}"] == before["cpstream_batches_total{split=train}"] + 4 * 18
        streams = f"cpstream_requests_total{{method=GET,route={BATCHES},status=200}}"
        assert after["cpstream_stream_gather_seconds_count"] == after[streams] == before[streams] + 4
        assert after["cpstream_open_streams"] == 0.0
        poll(lambda: httpx.get(f"{service.url}/page/live.json").json()["samples"] == 10 * 1800)
        with httpx.Client(base_url=service.url) as http:
            assert "Of all 2 worker processes of this service together" in look(http, "/page/live").text
        samples = [name for name in after if name.startswith("cpstream_split_samples")]
        assert len(samples) == 3, samples


def test_tokens_are_told_apart_by_name_up_to_a_number() -> None:
    metrics = Metrics()
    for i in range(3 * MAX_TOKENS):
        metrics.sent("dev", f"team-{i}", 10, 1)
        metrics.refused("overloaded", f"team-{i}")
        metrics.sent_to(BATCHES, f"team-{i}", 5)
    names = ("cpstream_samples", "cpstream_batches", "cpstream_refusals", "cpstream_sent_bytes")
    for family in metrics.registry.collect():
        if family.name in names:
            by_token = {each.labels["token"]: each.value for each in family.samples if each.name.endswith("_total")}
            assert len(by_token) == MAX_TOKENS + 1
            assert by_token[OTHER_TOKENS] == 2 * MAX_TOKENS * by_token["team-0"]


def test_names_and_units_are_prometheus(server: Server, tmp_path: Path) -> None:
    """By Prometheus' own linter, and by its naming rules where that is not there."""
    text = httpx.get(f"{server.url}/metrics").text
    families = [family for family in text_string_to_metric_families(text) if family.name.startswith("cpstream_")]
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert family.type != "counter" or all(each.name.endswith(("_total", "_created")) for each in family.samples)
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)\b", family.name)
    assert len(families) > 15
    if which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        assert "cpstream_" not in done.stdout + done.stderr, done.stderr


def test_chunks_that_wait_for_another_client_are_counted(run_server: Callable[..., Server], snapshot: Snapshot) -> None:
    server = run_server(snapshot=grown(snapshot, "train", 20_000))
    host, port = server.url.removeprefix("http://").split(":")
    nbytes = int(httpx.head(f"{server.url}/v1/splits/train/batches").headers["content-length"])

    found: dict[str, float] = {}

    def two_at_once() -> float:
        socks = [socket.create_connection((host, int(port)), source_address=(f"127.0.0.{i}", 0)) for i in (2, 3)]
        try:
            for sock in socks:
                sock.sendall(f"GET /v1/splits/train/batches HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            got, buffer = np.zeros(2, np.int64), bytearray(2**20)
            while (got < nbytes).any():
                for i, sock in enumerate(socks):
                    got[i] += sock.recv_into(buffer, 1 if got[i] >= nbytes else len(buffer))
        finally:
            for sock in socks:
                sock.close()
        poll(lambda: figures(server.url)["cpstream_open_streams"] == 0)
        found.update(figures(server.url))
        return found["cpstream_turn_waits_total"]

    poll(two_at_once)  # once the one may have all before the other is heard
    assert found["cpstream_stream_wait_seconds_sum"] > 0


def test_reloads_are_counted_and_what_was_served_before_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    source(folder, seed=1)
    with serve(tmp_path, "--workers", "2", source=folder) as service:
        first = figures(service.url)
        assert (first["cpstream_versions"], first["cpstream_stale"]) == (1.0, 0.0)
        assert first["cpstream_load_seconds"] > 0
        source(folder, seed=2)
        assert reload(service.url)["outcome"] == "succeeded"
        assert reload(service.url)["outcome"] == "unchanged"
        second = figures(service.url)
        assert second["cpstream_versions"] == 2.0
        served = {name for name in second if name.startswith("cpstream_split_samples") and "train" in name}
        assert served == {f"cpstream_split_samples{{fingerprint={current(service.url)},split=train}}"}
        (folder / "numpy_embs.npy").write_bytes(b"no array")
        assert reload(service.url)["outcome"] == "failed"
        counts = {"succeeded": 2.0, "unchanged": 1.0, "failed": 1.0}  # that at the start included

        def is_told() -> bool:
            """By the worker that is asked: another one has told of the end of the reload."""
            found = figures(service.url)
            loads = {outcome: found[f"cpstream_loads_total{{outcome={outcome}}}"] for outcome in counts}
            return (loads, found["cpstream_stale"], found["cpstream_versions"]) == (counts, 1.0, 2.0)

        poll(is_told)


def test_what_is_sent_is_counted_by_the_names_of_tokens(tmp_path: Path) -> None:
    secrets = {"team-a": "a" * 32, "team-b": "b" * 32, "prometheus": "c" * 32}
    scopes = {"team-a": "read", "team-b": "read", "prometheus": "metrics"}
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("".join(f'[{name}]\ntoken = "{secret}"\nscopes = ["{scopes[name]}"]\n' for name, secret in secrets.items()))
    with serve(tmp_path, "--workers", "2", "--tokens-file", str(tokens), "--log-format", "json") as service:
        for _ in range(3):
            with Client(service.url, token=secrets["team-a"]) as client:
                assert sum(batch.num_rows for batch in client.batches("dev", batch_size=50)) == 300
        with httpx.Client(base_url=service.url) as http:
            headers = {"Authorization": f"Bearer {secrets['team-b']}"}
            nbytes = len(http.get("/v1/splits/dev/batches", params={"limit": 1}, headers=headers).content)
            http.get("/v1/splits/nowhere", headers=headers)
            http.get("/v1/splits/dev", headers={"Authorization": "Bearer wrong"})
            asked = {"Authorization": f"Bearer {secrets['prometheus']}"}

            def is_counted() -> bool:
                """A worker counts what it has sent: another one may be asked before."""
                counts = parsed(http.get("/metrics", headers=asked).text)
                streams = counts.get("cpstream_stream_send_seconds_count", 0) >= 4
                refused = "cpstream_refusals_total{code=unauthorized}", "cpstream_refusals_total{code=unknown-split,token=team-b}"
                samples = [counts.get(f"cpstream_samples_total{{split=dev,token={name}}}", 0) for name in ("team-a", "team-b")]
                return streams and samples[0] >= 900 and samples[1] >= 256 and all(name in counts for name in refused)

            poll(is_counted)
            text = http.get("/metrics", headers=asked).text
        found = parsed(text)
        assert found["cpstream_samples_total{split=dev,token=team-a}"] == 900.0
        assert found["cpstream_samples_total{split=dev,token=team-b}"] == 256.0
        assert found[f"cpstream_sent_bytes_total{{route={BATCHES},token=team-b}}"] == nbytes
        assert found["cpstream_refusals_total{code=unknown-split,token=team-b}"] == 1.0
        assert found["cpstream_refusals_total{code=unauthorized}"] == 1.0
        assert service.stop() == 0
        log = service.log.read_text()
    assert not any(secret in text + log for secret in secrets.values())
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["token"] for line in lines if line.get("route") == BATCHES} == {"team-a", "team-b"}
