"""The same gather behind Arrow Flight: the rows of a permutation, np.take into a new buffer, handed to Flight without a copy."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight


class EmbeddingsServer(flight.FlightServerBase):  # type: ignore[misc]
    """A ticket is {"batch_size": B, "seed": S}. Sends record batches of B rows: embedding, cps."""

    def __init__(self, embeddings: Any, cps: Any) -> None:
        super().__init__("grpc+tcp://127.0.0.1:0")
        self._embeddings, self._cps = embeddings, cps
        self._type = pa.list_(pa.field("item", pa.float32(), nullable=False), embeddings.shape[1])
        self._schema = pa.schema([pa.field("embedding", self._type, nullable=False), pa.field("cps", pa.float32(), nullable=False)])

    def do_get(self, context: Any, ticket: Any) -> Any:
        query = json.loads(ticket.ticket)
        order = np.random.default_rng(query["seed"]).permutation(len(self._cps))
        return flight.GeneratorStream(self._schema, self._batches(order, query["batch_size"]))

    def _batches(self, order: Any, batch_size: int) -> Iterator[pa.RecordBatch]:
        dim = self._embeddings.shape[1]
        for low in range(0, len(order), batch_size):
            indices = order[low : low + batch_size]
            rows = np.empty((len(indices), dim), np.float32)
            np.take(self._embeddings, indices, axis=0, out=rows, mode="clip")
            values = pa.Array.from_buffers(pa.float32(), rows.size, [None, pa.py_buffer(rows)])
            embedding = pa.FixedSizeListArray.from_arrays(values, type=self._type)
            yield pa.RecordBatch.from_arrays([embedding, pa.array(self._cps[indices])], schema=self._schema)


def main() -> None:
    embeddings, cps = (np.load(path, mmap_mode="r") for path in sys.argv[1:3])
    server = EmbeddingsServer(embeddings, np.asarray(cps))
    print(server.port, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
