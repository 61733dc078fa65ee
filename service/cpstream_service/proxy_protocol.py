"""The PROXY protocol: what a TCP proxy writes before the first byte of a connection, to say who is behind it.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, versions 1 (a line of text) and 2 (binary).
"""

import struct
from ipaddress import ip_address

_SIGNATURE_1, _SIGNATURE_2 = b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n"
_MAX_LINE_BYTES = 107
_HEAD = struct.Struct(">BBH")
_LOCAL, _PROXY = 0x20, 0x21
_ADDRESS_BYTES = {0x11: 4, 0x21: 16}
"""By family and transport: TCP over IPv4, and over IPv6."""

Peer = tuple[str, int]


def read_preface(data: bytes) -> tuple[int, Peer | None] | None:
    """How many of these bytes are a preface, and the client that it names, if it names one. None: more bytes are needed.

    (0, None) where there is no preface. Raises ValueError for one that is malformed.
    """
    if _SIGNATURE_2.startswith(data[: len(_SIGNATURE_2)]):
        return _read_2(data)
    if _SIGNATURE_1.startswith(data[: len(_SIGNATURE_1)]):
        return _read_1(data)
    return 0, None


def _read_1(data: bytes) -> tuple[int, Peer | None] | None:
    line, ended, _ = data[:_MAX_LINE_BYTES].partition(b"\r\n")
    if not ended and len(data) < _MAX_LINE_BYTES:
        return None
    _, family, *rest = line.decode("latin-1").split(" ")
    if ended and family == "UNKNOWN":
        return len(line) + 2, None
    if not ended or family not in ("TCP4", "TCP6") or len(rest) != 4:
        raise ValueError(f"{line!r} is no line of the PROXY protocol")
    return len(line) + 2, (str(ip_address(rest[0])), int(rest[2]))


def _read_2(data: bytes) -> tuple[int, Peer | None] | None:
    at = len(_SIGNATURE_2) + _HEAD.size
    if len(data) < at:
        return None
    command, family, length = _HEAD.unpack_from(data, len(_SIGNATURE_2))
    if command not in (_LOCAL, _PROXY):
        raise ValueError(f"command {command:#x} is none of the PROXY protocol, version 2")
    if len(data) < at + length:
        return None
    size = _ADDRESS_BYTES.get(family)
    if command == _LOCAL or size is None:  # the proxy's own health checks; or what has no address that counts here
        return at + length, None
    if length < 2 * size + 4:
        raise ValueError(f"{length} bytes are too few for two addresses of family {family:#x}")
    (port,) = struct.unpack_from(">H", data, at + 2 * size)
    return at + length, (str(ip_address(data[at : at + size])), port)
