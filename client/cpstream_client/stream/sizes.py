"""How many bytes a reply can have, from above: no request asks for more than the service's max_reply_bytes. Pure arithmetic."""

from dataclasses import dataclass
from functools import lru_cache

from ..contract.bodies import SplitInfo
from ..contract.wire import CHECKSUM_BYTES, BatchQuery, Column, Dtype, batch_schema, stream_metadata

_QUERY_BYTES = 1024
"""By which a schema may be longer than that of the default query: 16 further parameters, numbers of 19 digits at most."""
_HEADER_BYTES, _COLUMN_BYTES = 256, 104
"""Of a record batch's header; and of each column in it: two nodes, three buffers, and what fills these up to multiples of 8."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a reply at most: `reply` for its schema and its end, `record` for each record batch, `row` for each sample.

    limit: bytes that the service sends in one reply, None where it does not say.
    """

    reply: int
    record: int
    row: int
    limit: int | None

    def rows(self) -> int | None:
        """How many samples one record batch may hold, at least 1; None: any number."""
        return None if self.limit is None else max(1, (self.limit - self.reply - self.record) // self.row)

    def records(self, num_rows: int) -> int | None:
        """How many record batches of num_rows samples a reply may hold, at least 1; None: any number."""
        return None if self.limit is None else max(1, (self.limit - self.reply) // (self.record + num_rows * self.row))


def sizes_of(dtype: Dtype, columns: tuple[Column, ...], info: SplitInfo) -> Sizes:
    """Those of any reply with these columns, in the wire's order, about this split."""
    return _sizes(dtype, columns, info.embedding_dim, info.split, info.fingerprint, info.max_path_bytes or 0, info.max_reply_bytes)


@lru_cache(maxsize=64)  # random access asks each time
def _sizes(
    dtype: Dtype, columns: tuple[Column, ...], dim: int, split: str, fingerprint: str, path_bytes: int, limit: int | None
) -> Sizes:
    query = BatchQuery(dtype=dtype, columns=columns, fingerprint=fingerprint)
    schema = batch_schema(dim, dtype, columns, stream_metadata(split, fingerprint, query, 0, 0)).serialize().size
    of_row = {"embedding": dim * (2 if dtype == "float16" else 4), "index": 8, "file_path": 4 + path_bytes}
    record = _HEADER_BYTES + _COLUMN_BYTES * len(columns) + CHECKSUM_BYTES
    return Sizes(schema + _QUERY_BYTES, record, sum(of_row.get(name, 4) for name in columns), limit)
