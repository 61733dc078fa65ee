"""Bodies that are held, that stop arriving, and that are too many at once."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import httpx
import numpy as np
import pytest
from conftest import Server, poll, serving
from test_costs import Process
from test_problems import problem_of

from cpstream_client.contract import wire
from cpstream_client.contract.index_batches import IndexBatches
from cpstream_service.api import arrivals
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

TAKE = "/v1/splits/train/take"
RAW = {"Content-Type": wire.OCTET_STREAM}


def connection(url: str, head: str, address: str = "127.0.0.1") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=60, source_address=(address, 0))
    sock.sendall(f"POST {head}\r\nHost: a\r\nContent-Type: {wire.OCTET_STREAM}\r\n\r\n".encode())
    return sock


def post(url: str, num_indices: int, address: str = "127.0.0.1") -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=60) as http:
        return http.post(f"{url}{TAKE}?columns=index", content=np.zeros(num_indices, "<i8").tobytes(), headers=RAW)


def answer(sock: socket.socket) -> bytes:
    """All that the service says until it closes the connection."""
    return b"".join(iter(lambda: sock.recv(2**16), b""))


def test_held_bodies_take_no_more_than_is_allowed_and_stop_nobody_else(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPSTREAM_MAX_BODIES_BYTES", str(40 * 2**20))
    process = Process(tmp_path)  # type: ignore[arg-type]
    url, body = str(process.http.base_url), bytes(8 * 2**20)
    sent: list[int] = []

    def hold(sock: socket.socket) -> None:
        with suppress(OSError):  # closed at the end
            sock.sendall(body[:-8])
            sent.append(1)

    try:
        post(url, 10**6).raise_for_status()
        idle = process.memory_mb("VmRSS")
        with ExitStack() as stack:
            for _ in range(35):
                sock = stack.enter_context(connection(url, f"{TAKE}?columns=index HTTP/1.1\r\nContent-Length: {len(body)}"))
                thread = threading.Thread(target=hold, args=(sock,))
                thread.start()
                stack.callback(thread.join)
                stack.callback(lambda sock=sock: sock.shutdown(socket.SHUT_RDWR))
            poll(lambda: len(sent) == 2)  # half of what there is, of one client
            assert post(url, 8000).status_code == 200  # of the same client: a small one waits for nothing
            assert post(url, 10**6, "127.0.0.2").status_code == 200  # of another one: there is room
            assert len(sent) == 2
            assert process.memory_mb("VmHWM") - idle < 100
        assert post(url, 10**6).status_code == 200
    finally:
        process.close()


@pytest.mark.parametrize("path", ["take", "batches"])
@pytest.mark.parametrize("length", [1000, 10**6])
def test_a_body_that_does_not_go_on_arriving_is_refused(run_server: Callable[..., Server], path: str, length: int) -> None:
    server = run_server(body_timeout_s=1)

    def names_all_that_came() -> bool:
        with connection(server.url, f"/v1/splits/train/{path} HTTP/1.1\r\nContent-Length: {length}") as sock:
            sock.sendall(bytes(length // 2))
            said = answer(sock)
        assert said.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b'"code": "body-timeout"' in said
        return f"{length // 2} bytes came, and then hardly any for 1 s (--body-timeout-s)".encode() in said

    poll(names_all_that_came)  # not where this process stood still for a second


def test_a_body_that_trickles_is_refused_and_one_that_is_slow_is_not(run_server: Callable[..., Server]) -> None:
    server = run_server(body_timeout_s=1)
    with connection(server.url, f"{TAKE}?columns=index HTTP/1.1\r\nContent-Length: 1000000") as sock, suppress(ConnectionError):
        for _ in range(600):
            sock.sendall(bytes(80))
            time.sleep(0.1)
        raise AssertionError("nobody has ended it")

    def is_answered() -> bool:
        with connection(server.url, f"{TAKE}?columns=index HTTP/1.1\r\nContent-Length: 240000") as sock, suppress(ConnectionError):
            for _ in range(30):
                sock.sendall(bytes(8000))
                time.sleep(0.1)
            return sock.recv(100).startswith(b"HTTP/1.1 200 ")
        return False

    poll(is_answered)  # not where this process stood still for a second


def test_a_body_is_not_late_because_the_service_stood_still(snapshot: Snapshot) -> None:
    app, stands_still = create_app(snapshot, ServeSettings(body_timeout_s=1)), threading.Event()
    with serving(app) as url, connection(url, f"{TAKE}?columns=index HTTP/1.1\r\nContent-Length: 160000") as sock:
        sock.sendall(bytes(80_000))
        poll(lambda: app.state.service.arrivals._arriving)
        (body,) = app.state.service.arrivals._arriving
        poll(lambda: body.counted)  # the first half: what comes now must be seen
        body.task.get_loop().call_soon_threadsafe(lambda: (stands_still.set(), time.sleep(3)))
        stands_still.wait(60)
        sock.sendall(bytes(80_000))
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_what_is_held_is_given_back(snapshot: Snapshot) -> None:
    app = create_app(snapshot, ServeSettings(max_bodies_bytes=2**20))
    raw = np.zeros(20_000, "<i8").tobytes()
    batches = IndexBatches.of([np.zeros(1000, np.int64)] * 20).pack()
    with serving(app) as url, httpx.Client(base_url=url) as http:
        held = app.state.service.arrivals.bytes
        for path, content, headers in (
            (TAKE, raw, RAW),
            (TAKE, raw[:-1], RAW),  # refused
            (TAKE, raw + b"\xff" * 8, RAW),
            ("/v1/splits/train/batches", batches, RAW),
            (TAKE, b'{"indices": [' + b"0," * 40_000 + b"0]}", {}),
            (TAKE, b'{"indices": [' + b"0," * 40_000 + b"]}", {}),
            (TAKE, iter([raw] * 3), RAW),  # in chunks, of whose length nothing is said
        ):
            http.post(path, content=content, headers=headers)
            poll(lambda: held.held == 0)
        for size in (1000, 80_000):
            with connection(url, f"{TAKE} HTTP/1.1\r\nContent-Length: 160000") as sock:
                sock.sendall(bytes(size))
                poll(lambda: held.held == 160_000)
            poll(lambda: held.held == 0)
        assert not app.state.service.arrivals._arriving


def test_indices_count_until_their_reply_has_ended_and_who_waits_too_long_is_told(
    run_server: Callable[..., Server], snapshot: Snapshot
) -> None:
    server = run_server(max_bodies_bytes=10**6, body_timeout_s=4)  # more than for what this process stands still
    body = np.zeros(100_000, "<i8").tobytes()
    with connection(server.url, f"{TAKE} HTTP/1.1\r\nContent-Length: {len(body)}") as sock:  # a reply of 62 MB, never read
        sock.sendall(body)
        poll(lambda: "cpstream_open_streams 1.0" in httpx.get(f"{server.url}/metrics").text)
        refused = post(server.url, 100_000)
        assert problem_of(refused)["code"] == "overloaded"
        assert "800000 bytes of request bodies are held, as many as allowed (--max-bodies-bytes)" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) == 1
        assert post(server.url, 8000).status_code == 200
        assert post(server.url, 20_000, "127.0.0.2").status_code == 200
    poll(lambda: post(server.url, 100_000).status_code == 200)


def test_a_body_that_is_announced_as_too_long_is_not_waited_for(server: Server) -> None:
    with connection(server.url, f"{TAKE} HTTP/1.1\r\nContent-Length: 100000000") as sock:
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_what_is_free_is_what_trainers_ask_for() -> None:
    assert arrivals.FREE_BYTES >= 8 * 8192  # indices of a batch
