"""The bytes of Arrow streams, looked at without the client."""

import struct

import pyarrow as pa
from crc32c import crc32c

from cpstream_client.contract.wire import CHECKSUM_BYTES
from cpstream_service.batches.frames import END_OF_STREAM


def messages(body: bytes) -> list[bytes]:
    """The stream's messages by their own lengths, schema first; the end mark is checked and left out."""
    found, at = [], 0
    while True:
        mark, length = struct.unpack_from("<Ii", body, at)
        assert mark == 0xFFFFFFFF
        if not length:
            assert body[at:] == END_OF_STREAM
            return found
        header = pa.ipc.read_message(body[at:])
        size = 8 + length + (header.body.size if header.body is not None else 0)
        found.append(body[at : at + size])
        at += size


def check_checksums(body: bytes, num_batches: int) -> None:
    schema, *rest = messages(body)
    assert len(schema) % 8 == 0
    assert len(rest) == num_batches
    for message in rest:
        if pa.ipc.read_message(message).body:
            sent = int.from_bytes(message[-CHECKSUM_BYTES:], "little")
            assert crc32c(message[:-CHECKSUM_BYTES]) == sent
