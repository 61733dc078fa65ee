"""What came back, whoever received it: httpx, or our own sockets."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPMessage
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    import httpx

    from .socket_transport import Exchange


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and headers of a reply whose body is still to come. length: bytes of the body, None where unknown.

    readinto: fill the buffer, or as much of it as there is; close: when all was read; discard: after a failure, instead.
    """

    status: int
    reason: str
    headers: Union["httpx.Headers", HTTPMessage]
    length: int | None
    readinto: Callable[[memoryview], int]
    close: Callable[[], None]
    discard: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Call:
    """A request. receive: waits for the answer; exchange: by which it was sent, None where it is receive that sends it."""

    receive: Callable[[], Answer]
    exchange: "Exchange | None" = None


def answer_of_exchange(exchange: "Exchange") -> Answer:
    """What our own transport received."""
    response = exchange.response
    return Answer(
        response.status, response.reason, response.headers, exchange.length, exchange.readinto, exchange.close, exchange.discard
    )


def answer_of(response: "httpx.Response") -> Answer:
    """What httpx received, over our own transport or another."""
    status, reason, headers, close = response.status_code, response.reason_phrase, response.headers, response.close
    if response.is_stream_consumed:  # by a hook
        content = response.content
        return Answer(status, reason, headers, len(content), io.BytesIO(content).readinto, close, close)
    ours: Exchange | None = response.extensions.get("cpstream.body")
    if ours is not None:

        def discard() -> None:
            ours.discard()
            close()

        return Answer(status, reason, headers, ours.length, ours.readinto, close, discard)
    length = headers.get("Content-Length", "")
    pieces = _Pieces(response.iter_raw())
    return Answer(status, reason, headers, int(length) if length.isdecimal() else None, pieces.readinto, close, close)


class _Pieces:
    """The body that another transport gives, as readinto wants it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        at = 0
        while at < len(buffer):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            part = self._rest[: len(buffer) - at]
            buffer[at : at + len(part)] = part
            self._rest = self._rest[len(part) :]
            at += len(part)
        return at
