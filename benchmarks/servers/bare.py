"""The least that a stream takes: random rows of a snapshot gathered, summed and sent, with no framework and no format.

`bare FOLDER`, a split's within the snapshot. A connection says a seed (8 bytes, little endian) and gets the split in an order of
that seed: records of BATCHES_A_RECORD batches, each the embeddings, the rates and the CRC-32C of both.
"""

import socket
import sys
from pathlib import Path

import numpy as np
from crc32c import crc32c

BATCH = 256
BATCHES_A_RECORD = 3
"""About 2 MiB of 768 floats, as the service sends at once."""


def main() -> None:
    folder = Path(sys.argv[1])
    embeddings, cps = np.load(folder / "embeddings.npy", mmap_mode="r").view(np.ndarray), np.load(folder / "cps.npy")
    rows = BATCH * BATCHES_A_RECORD
    place = memoryview(bytearray(rows * (embeddings.shape[1] + 1) * 4 + 4))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                while seed := connection.recv(8, socket.MSG_WAITALL):
                    order = np.random.default_rng(int.from_bytes(seed, "little")).permutation(len(cps))
                    for low in range(0, len(order), rows):
                        _send(connection, place, embeddings, cps, order[low : low + rows])


def _send(connection: socket.socket, place: memoryview, embeddings: np.ndarray, cps: np.ndarray, indices: np.ndarray) -> None:  # type: ignore[type-arg]
    tail = len(indices) * embeddings.shape[1] * 4
    end = tail + len(indices) * 4
    embeddings.take(indices, 0, np.ndarray((len(indices), embeddings.shape[1]), np.float32, place), "clip")
    cps.take(indices, 0, np.ndarray(len(indices), np.float32, place, tail), "clip")
    place[end : end + 4] = crc32c(place[:end]).to_bytes(4, "little")
    connection.sendall(place[: end + 4])


if __name__ == "__main__":
    main()
