"""What a client and a service say to each other, recorded from both, and said again by a server with one reply altered."""

import re
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256

from crc32c import crc32c

from cpstream_client.contract.wire import ARROW_STREAM, CHECKSUM_BYTES

Replies = dict[bytes, bytes]
"""A reply, head and body, by its request: first line and body."""
_TIMEOUT_S = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_DATE = re.compile(rb"\r\ndate: [^\r]*", re.IGNORECASE)
_DIGEST = re.compile(rb"(\r\ncontent-digest: )[^\r]*", re.IGNORECASE)


def parted(message: bytes) -> tuple[bytes, bytes]:
    """Head, without the empty line behind it, and body."""
    head, _, body = message.partition(b"\r\n\r\n")
    return head, body


@contextmanager
def recording(url: str) -> Iterator[tuple[str, Replies]]:
    """A relay to the service, by the URL of its own, and what passed through it."""
    host, port = url.removeprefix("http://").split(":")
    seen: Replies = {}

    def handle(sock: socket.socket) -> None:
        with socket.create_connection((host, int(port)), _TIMEOUT_S) as service:
            while request := _message(sock):
                service.sendall(request)
                reply = _message(service)
                seen[_key(request)] = _DATE.sub(b"\r\nDate: Wed, 25 Nov 2026 00:00:00 GMT", reply)
                sock.sendall(reply)

    with _listening(handle) as own:
        yield own, seen


class Speaker:
    """`with Speaker() as speaker`: a server at speaker.url that answers by what is set last."""

    def __init__(self) -> None:
        self._replies: Mapping[bytes, bytes] = {}
        self._altered: Mapping[bytes, bytes] = {}

    def __enter__(self) -> "Speaker":
        self._context = _listening(self._handle)
        self.url = self._context.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def say(self, replies: Mapping[bytes, bytes], altered: Mapping[bytes, bytes]) -> None:
        """Behind an altered reply the connection ends; behind another it goes on."""
        self._replies, self._altered = replies, altered

    def _handle(self, sock: socket.socket) -> None:
        replies, altered = self._replies, self._altered
        while request := _message(sock):
            key = _key(request)
            if key in altered or key not in replies:
                sock.sendall(altered.get(key, b""))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
                return
            sock.sendall(replies[key])


def framed(reply: bytes, how: str) -> bytes:
    """The reply as a proxy frames it anew: length, chunked or close."""
    head, body = parted(reply)
    if how == "length":
        return reply
    head = _LENGTH.sub(b"", head)
    if how == "close":
        return head + b"\r\nConnection: close\r\n\r\n" + body
    pieces = (body[:700], body[700:701], body[701:])
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def forged(reply: bytes, body: bytes) -> bytes:
    """The reply with another body, its length and digest right."""
    head, _ = parted(reply)
    digest = b"sha-256=:" + b64encode(sha256(body).digest()) + b":"
    return _DIGEST.sub(rb"\g<1>" + digest, _LENGTH.sub(b"\r\nContent-Length: %d" % len(body), head)) + b"\r\n\r\n" + body


def is_arrow(reply: bytes) -> bool:
    return ARROW_STREAM.encode() in parted(reply)[0]


def checked(message: bytes) -> bytes:
    """An Arrow message with the checksum that fits it."""
    return message[:-CHECKSUM_BYTES] + crc32c(message[:-CHECKSUM_BYTES]).to_bytes(CHECKSUM_BYTES, "little")


def _key(request: bytes) -> bytes:
    head, body = parted(request)
    return head.partition(b"\r\n")[0] + b"\n" + body


def _message(sock: socket.socket) -> bytes:
    """A request or a reply whose body has a length, or none; empty where the connection has ended."""
    message = b""
    while b"\r\n\r\n" not in message:
        piece = sock.recv(65536)
        if not piece:
            return b""
        message += piece
    head, body = parted(message)
    found = _LENGTH.search(head)
    missing = (int(found[1]) if found else 0) - len(body)
    while missing > 0:
        piece = sock.recv(missing)
        if not piece:
            return b""
        message, missing = message + piece, missing - len(piece)
    return message


@contextmanager
def _listening(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Hand each connection to `handle` in a thread of its own. Yields the URL."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)

    def one(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(_TIMEOUT_S)
        with sock, suppress(OSError):
            handle(sock)

    def accept() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield "http://{}:{}".format(*server.getsockname())
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
