"""Who a client is, and what one may have of what there is for all. 127.0.0.2 is another client than 127.0.0.3."""

import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import Server, grown, poll, stalled_stream
from test_connections import connect, serving
from test_problems import problem_of

from cpstream_client import Client
from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

ONE_BATCH = "/v1/splits/train/batches?limit=1"


def client_at(url: str, address: str) -> httpx.Client:
    return httpx.Client(base_url=url, transport=httpx.HTTPTransport(local_address=address))


def test_one_client_cannot_take_all_streams(run_server: Callable[..., Server], snapshot: Snapshot) -> None:
    server = run_server(snapshot=grown(snapshot, "train", 50_000), max_streams=4, max_streams_per_client=2)
    path = "/v1/splits/train/batches"
    with client_at(server.url, "127.0.0.1") as same, client_at(server.url, "127.0.0.2") as other:
        with stalled_stream(server.url, path), stalled_stream(server.url, path):
            poll(lambda: "cpstream_open_streams 2.0" in same.get("/metrics").text)
            refused = same.get(ONE_BATCH)
            assert problem_of(refused)["code"] == "too-many-streams"
            assert "2 streams of 127.0.0.1 are open" in refused.json()["detail"]
            assert (refused.status_code, int(refused.headers["retry-after"])) == (429, 1)
            assert same.post("/v1/splits/train/take", json={"indices": [1]}).status_code == 429
            assert same.get("/v1/splits/train/cps.npy").status_code == 429
            assert same.get("/v1/splits/train").status_code == 200
            assert other.get(ONE_BATCH).status_code == other.get("/v1/splits/train/cps.npy").status_code == 200
        poll(lambda: same.get(ONE_BATCH).status_code == 200)


def test_a_python_client_waits_out_a_429(run_server: Callable[..., Server], snapshot: Snapshot) -> None:
    server = run_server(snapshot=grown(snapshot, "train", 50_000), max_streams_per_client=1)
    with ThreadPoolExecutor(1) as thread, Client(server.url) as client:
        with stalled_stream(server.url, "/v1/splits/train/batches"):
            poll(lambda: "cpstream_open_streams 1.0" in httpx.get(f"{server.url}/metrics").text)
            batches = thread.submit(lambda: [batch.index for batch in client.batches("dev", batch_size=64)])
            poll(lambda: 'status="429"' in httpx.get(f"{server.url}/metrics").text)
        assert np.array_equal(np.concatenate(batches.result()), np.arange(300))


def test_a_trusted_proxy_says_who_asks(run_server: Callable[..., Server], snapshot: Snapshot) -> None:
    server = run_server(
        snapshot=grown(snapshot, "train", 50_000), max_streams_per_client=1, trusted_proxies=("127.0.0.2", "10.0.0.0/8")
    )

    def status(peer: str, forwarded: str) -> int:
        with client_at(server.url, peer) as client:
            return client.get(ONE_BATCH, headers={"X-Forwarded-For": forwarded}).status_code

    with stalled_stream(server.url, "/v1/splits/train/batches", "127.0.0.2", "X-Forwarded-For: 2001:db8::1\r\n"):
        poll(lambda: "cpstream_open_streams 1.0" in httpx.get(f"{server.url}/metrics").text)
        # the last address that is not trusted; of IPv6 the /64
        for forwarded in ("2001:db8::2", "192.0.2.9, 2001:db8::3", "2001:db8::1, 10.1.2.3"):
            assert status("127.0.0.2", forwarded) == 429, forwarded
        for peer, forwarded in (("127.0.0.2", "2001:db8:0:1::1"), ("127.0.0.2", "unknown"), ("127.0.0.3", "2001:db8::1")):
            assert status(peer, forwarded) == 200, (peer, forwarded)


@pytest.mark.parametrize("trusted", ["", "192.0.2.1", "127.0.0.1"])
def test_nobody_is_believed_unless_it_is_said(trusted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own setting
    monkeypatch.setenv("CPSTREAM_LOG_FORMAT", "json")
    if trusted:
        monkeypatch.setenv("CPSTREAM_TRUSTED_PROXIES", trusted)
    with serving(tmp_path) as (url, log):
        httpx.get(f"{url}/v1/splits", headers={"X-Forwarded-For": "203.0.113.7"}).raise_for_status()
        poll(lambda: "/v1/splits" in log.read_text())
        lines = [json.loads(line) for line in re.findall(r"^\{.*\}$", log.read_text(), re.MULTILINE)]
        (client,) = {line["client"] for line in lines if line.get("path") == "/v1/splits"}
    assert client == ("203.0.113.7" if trusted == "127.0.0.1" else "127.0.0.1")


@pytest.mark.parametrize("proxy", ["haproxy", "10.0.0.1/8", "*", ""])
def test_what_is_no_address_is_refused(proxy: str) -> None:
    with pytest.raises(SettingsError, match=r"trusted_proxies holds .* or a network, as in .*CPSTREAM_TRUSTED_PROXIES"):
        ServeSettings(trusted_proxies=(proxy,))


V2 = b"\r\n\r\n\x00\r\nQUIT\n"
IPV6 = bytes.fromhex("20010db8" + "00" * 11 + "07")
PREFACES = [
    (b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n", "203.0.113.7"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", "2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "127.0.0.1"),
    (V2 + b"\x21\x11\x00\x0c" + bytes([203, 0, 113, 7, 198, 51, 100, 1]) + b"\xdc\x04\x01\xbb", "203.0.113.7"),
    (V2 + b"\x21\x21\x00\x2b" + IPV6 * 2 + b"\xdc\x04\x01\xbb\x04\x00\x04abcd", "2001:db8::7"),
    (V2 + b"\x20\x00\x00\x00", "127.0.0.1"),  # its own health check
    (b"", "127.0.0.1"),
]  # fmt: skip
"""Prefaces of the PROXY protocol, as its specification has them, and the client that each names."""


def ask(url: str, preface: bytes) -> bytes:
    """What comes back, the preface and the request being sent byte by byte."""
    with connect(url) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            for byte in preface:
                sock.sendall(bytes([byte]))
            sock.sendall(b"GET /v1/splits HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: sock.recv(2**16), b""))
    return b""


def test_a_trusted_proxy_says_it_by_the_proxy_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPSTREAM_LOG_FORMAT", "json")
    monkeypatch.setenv("CPSTREAM_TRUSTED_PROXIES", "127.0.0.1")
    with serving(tmp_path) as (url, log):
        for preface, client in PREFACES:
            before = len(log.read_text())
            assert ask(url, preface).startswith(b"HTTP/1.1 200 "), preface
            poll(lambda before=before: '"/v1/splits"' in log.read_text()[before:])
            lines = [json.loads(line) for line in re.findall(r"^\{.*\}$", log.read_text()[before:], re.MULTILINE)]
            assert [line["client"] for line in lines if line.get("path") == "/v1/splits"] == [client], preface
        for wrong in (b"PROXY TCP4 a b 1 2\r\n", b"PROXY \r\n", b"PROXY " + b"a" * 200, V2 + b"\x31", V2 + b"\x21\x11\x00\x01a"):
            assert not ask(url, wrong + b"a" * 16), wrong
        assert "Traceback" not in log.read_text()


def test_the_proxy_protocol_of_others_is_no_http(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, _):
        for preface, _ in PREFACES[:-1]:
            assert not ask(url, preface).startswith(b"HTTP/1.1 200 ")
