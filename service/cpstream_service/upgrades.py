"""Requests that ask for another protocol are answered in this one, as RFC 9110 allows, body and all.

`curl --http2` and Java's HTTP client send `Connection: Upgrade, HTTP2-Settings` and `Upgrade: h2c` by default. httptools takes what
follows such a head for the other protocol, so that uvicorn answers without the body, and not at all what the connection asks next.
"""

from array import array
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFERS = frozenset({b"upgrade", b"http2-settings"})


class HttpOnly(HttpToolsProtocol):
    """uvicorn's protocol, which reads a head that asks for an upgrade again, without the offer."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.parser = _Parser(self)

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def head_without_offer(self) -> bytes:
        """The head that was just read, as it would be without the offer."""
        first = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [first]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(part for part in map(bytes.strip, value.split(b",")) if part.lower() not in _OFFERS)
            if name not in _OFFERS:
                lines.append(b"%s: %s\r\n" % (name, value))
        return b"".join([*lines, b"\r\n"])


class _Parser(httptools.HttpRequestParser):
    """httptools' parser, which goes on with the next one where it would have another protocol begin."""

    def __init__(self, protocol: HttpOnly) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets its own
        self._protocol = protocol

    def feed_data(self, data: "bytes | bytearray | memoryview | array[int]") -> None:
        """Raises httptools.HttpParserError, for a CONNECT, too: this is no proxy."""
        protocol, feed = self._protocol, super().feed_data
        while True:
            try:
                feed(data)
            except httptools.HttpParserUpgrade as upgrade:
                if protocol.parser.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("CONNECT") from None
                head = protocol.head_without_offer()
                protocol.parser = _Parser(protocol)
                feed = super(_Parser, protocol.parser).feed_data
                feed(head)
                data = memoryview(data)[upgrade.args[0] :]
            else:
                return
