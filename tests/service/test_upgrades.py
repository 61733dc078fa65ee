"""Requests that offer another protocol, as curl --http2 and Java's HTTP client send them, at a real `cpstream serve`."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from command import Service, serve

from cpstream_client import Client

INDICES = np.arange(50, dtype="<i8").tobytes()
TAKE = "/v1/splits/dev/take?columns=index"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(tmp_path_factory.mktemp("upgrades")) as served:
        yield served


def post(offer: bytes, body: bytes = INDICES, more: bytes = b"") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\n" % TAKE.encode()
    return head + b"Content-Length: %d\r\n%s%s\r\n" % (len(body), offer, more) + body


class Connected:
    """A connection to the service, kept alive."""

    def __init__(self, service: Service) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        self.sock = socket.create_connection((host, int(port)), timeout=60)
        self.reader = self.sock.makefile("rb")

    def close(self) -> None:
        self.reader.close()
        self.sock.close()

    def reply(self) -> tuple[bytes, bytes]:
        """Status line and body."""
        status, length = self.reader.readline().strip(), 0
        while line := self.reader.readline().strip():
            name, _, value = line.partition(b": ")
            if name.lower() == b"content-length":
                length = int(value)
        return status, self.reader.read(length)


@pytest.fixture
def connected(service: Service) -> Iterator[Connected]:
    with closing(Connected(service)) as made:
        yield made


@pytest.mark.parametrize(
    "offer", [OFFER, b"connection: keep-alive, upgrade\r\nupgrade: TLS/1.0, IRC/6.9\r\n"], ids=["h2c", "others"]
)
def test_a_post_is_answered_with_its_body_and_the_connection_goes_on(connected: Connected, offer: bytes) -> None:
    connected.sock.sendall(post(b""))
    expected = connected.reply()
    assert expected[0] == b"HTTP/1.1 200 OK"
    for _ in range(2):
        connected.sock.sendall(post(offer))
        assert connected.reply() == expected
    request = post(offer)
    for i in range(len(request)):  # however the network parts it
        connected.sock.sendall(request[i : i + 1])
    assert connected.reply() == expected
    chunked = post(offer).replace(b"Content-Length: 400", b"Transfer-Encoding: chunked")
    head, _, body = chunked.partition(b"\r\n\r\n")
    connected.sock.sendall(head + b"\r\n\r\n190\r\n" + body + b"\r\n0\r\n\r\n")
    assert connected.reply() == expected


def test_many_in_one_piece_are_answered_in_turn(connected: Connected) -> None:
    get = b"GET /v1/splits/dev HTTP/1.1\r\nHost: a\r\n" + OFFER + b"\r\n"
    connected.sock.sendall(200 * (post(OFFER) + get))
    first = connected.reply(), connected.reply()
    assert all(status == b"HTTP/1.1 200 OK" for status, _ in first)
    for _ in range(199):
        assert (connected.reply(), connected.reply()) == first


def test_a_body_that_is_waited_for_is_asked_for(connected: Connected) -> None:
    connected.sock.sendall(post(OFFER, more=b"Expect: 100-continue\r\n").removesuffix(INDICES))
    assert connected.reply() == (b"HTTP/1.1 100 Continue", b"")
    connected.sock.sendall(INDICES)
    assert connected.reply()[0] == b"HTTP/1.1 200 OK"


def test_a_websocket_and_a_tunnel_are_none(connected: Connected, service: Service) -> None:
    connected.sock.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert connected.reply()[0] == b"HTTP/1.1 200 OK"
    connected.sock.sendall(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert connected.reply()[0] == b"HTTP/1.1 400 Bad Request"
    log = service.log.read_text()
    assert "Traceback" not in log
    assert "Unsupported upgrade" not in log


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_with_http2(service: Service, tmp_path: Path) -> None:
    (tmp_path / "indices").write_bytes(INDICES)
    command = [
        "curl",
        "-sf",
        "--http2",
        "--data-binary",
        f"@{tmp_path / 'indices'}",
        "-H",
        "Content-Type: application/octet-stream",
    ]
    done = subprocess.run([*command, service.url + TAKE], capture_output=True, check=True)
    plain = subprocess.run([*command[:2], *command[3:], service.url + TAKE], capture_output=True, check=True)
    assert done.stdout == plain.stdout
    assert len(done.stdout) > len(INDICES)
    with Client(service.url) as client:
        assert client.take("dev", range(3)).num_rows == 3
