"""Arrow IPC messages whose header is made once and whose body is gathered straight into place.

The header of a record batch depends only on its schema, its number of rows and (with file_path) the length of the paths: for
batches of one size it is a constant. A frame is that header, the body, and a checksum in the last 8 bytes of the body, where no
buffer lies and every Arrow reader passes over it (an empty batch has no body, and so no checksum):

    prefix and header | embedding rows | cps | index | file_path | CRC-32C of all before, 8 bytes little endian
"""

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from crc32c import crc32c

from cpstream_client.contract.wire import CHECKSUM_BYTES, Column, Dtype, batch_schema

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True, slots=True)
class Frame:
    """The constant part of a record batch message. Offsets count from the start of the frame, in bytes.

    offsets: where each column's values begin; file_path has two, "file_path" for its (rows + 1,) int32 offsets and
    "file_path.data". head_checksum: that of the header alone, to go on from.
    """

    header: bytes
    offsets: dict[str, int]
    nbytes: int
    head_checksum: int


@lru_cache(maxsize=1024)
def frame(dim: int, dtype: Dtype, columns: tuple[Column, ...], num_rows: int, path_bytes: int = 0) -> Frame:
    """The frame of a batch of num_rows samples whose file paths are path_bytes long together."""
    schema = batch_schema(dim, dtype, columns)
    message = bytearray(_zero_batch(schema, num_rows, path_bytes).serialize())
    # Which buffer lies where is asked of Arrow's own reader, not assumed.
    encapsulated = pa.py_buffer(message)
    batch = pa.ipc.read_record_batch(encapsulated, schema)
    offsets: dict[str, int] = {}
    for name, column in zip(columns, batch.columns, strict=True):
        buffers = [buffer for buffer in column.buffers()[1:] if buffer is not None]
        offsets[name] = buffers[0].address - encapsulated.address if buffers else 0
        if name == "file_path" and len(buffers) > 1:
            offsets["file_path.data"] = buffers[1].address - encapsulated.address
    metadata_bytes: int = struct.unpack_from("<i", message, 4)[0]
    header_bytes = 8 + metadata_bytes
    body_bytes = len(message) - header_bytes
    checksum_bytes = CHECKSUM_BYTES if body_bytes else 0  # flatbuffers leave out a bodyLength of 0: nowhere to write another
    if checksum_bytes:
        _add_to_body_length(message, body_bytes, checksum_bytes)
    header = bytes(message[:header_bytes])
    return Frame(header, offsets, len(message) + checksum_bytes, crc32c(header))


def _zero_batch(schema: pa.Schema, num_rows: int, path_bytes: int) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        if field.name == "file_path":
            lengths = np.zeros(num_rows + 1, dtype=np.int32)
            lengths[1:] = path_bytes
            buffers = [None, pa.py_buffer(lengths), pa.py_buffer(bytes(path_bytes))]
            arrays.append(pa.StringArray.from_buffers(num_rows, buffers[1], buffers[2]))
        elif field.name == "embedding":
            width = field.type.list_size * field.type.value_type.bit_width // 8
            values = pa.Array.from_buffers(
                field.type.value_type, num_rows * field.type.list_size, [None, pa.py_buffer(np.zeros(num_rows * width, np.uint8))]
            )
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=field.type))
        else:
            arrays.append(
                pa.Array.from_buffers(
                    field.type, num_rows, [None, pa.py_buffer(np.zeros(num_rows * field.type.bit_width // 8, np.uint8))]
                )
            )
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _add_to_body_length(message: bytearray, body_bytes: int, extra: int) -> None:
    """Lengthen the body that the header announces. bodyLength is the fourth field of Arrow's flatbuffer table Message."""
    table = 8 + struct.unpack_from("<I", message, 8)[0]
    vtable = table - struct.unpack_from("<i", message, table)[0]
    position = table + struct.unpack_from("<H", message, vtable + 4 + 2 * 3)[0]
    announced = struct.unpack_from("<q", message, position)[0]
    if announced != body_bytes:
        raise AssertionError(f"Arrow header layout not understood: bodyLength {announced}, body of {body_bytes} bytes")
    struct.pack_into("<q", message, position, body_bytes + extra)
