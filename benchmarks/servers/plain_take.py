"""np.take of random rows of a mapped file for a while: what a server without read-ahead of its own would do."""

import sys
import time

import numpy as np

BATCH = 256


def main() -> None:
    embeddings = np.load(sys.argv[1], mmap_mode="r")
    seconds, seed = float(sys.argv[2]), int(sys.argv[3])
    order = np.random.default_rng(seed).permutation(len(embeddings))
    out = np.empty((BATCH, embeddings.shape[1]), np.float32)
    taken, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        indices = np.take(order, range(taken, taken + BATCH), mode="wrap")
        np.take(embeddings, indices, axis=0, out=out, mode="clip")
        taken += BATCH
    print(taken / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()
