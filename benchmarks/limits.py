"""What the machine itself allows: bytes over loopback, and the gather."""

import socket
from collections.abc import Iterator

import numpy as np

from .bench import Bench, Measurement
from .findings import Finding, at_least, ratio
from .loaders import BATCH, streaming
from .processes import first_line, helper
from .runner import Work, gb_per_s

RECEIVE_BYTES = 2 * 1024**2


def measure_raw_tcp(bench: Bench) -> Iterator[Finding]:
    """As many bytes as an epoch has, by recv_into from another process that only sends."""
    nbytes = bench.data.embeddings.nbytes + bench.data.cps.nbytes
    buffer = memoryview(bytearray(RECEIVE_BYTES))
    with helper("servers.raw_tcp") as server, socket.create_connection(("127.0.0.1", int(first_line(server)))) as sock:

        def receive() -> None:
            sock.sendall(nbytes.to_bytes(8, "little"))
            left = nbytes
            while left:
                count = sock.recv_into(buffer[: min(left, RECEIVE_BYTES)])
                assert count, "the sender has gone"
                left -= count

        ours, other = streaming(bench), Work("raw TCP, recv_into", receive, nbytes)
        passes = bench.interleave(ours, other)
    what = f"streaming, batch {BATCH}, GB/s against raw TCP over loopback"
    yield ratio(what, gb_per_s(ours, passes[0]), gb_per_s(other, passes[1]), at_least(0.5))


def measure_np_take(bench: Bench) -> Iterator[Finding]:
    """The rows of a permutation gathered into one buffer, and nothing else."""
    data = bench.data
    order = np.random.default_rng(0).permutation(len(data))
    out = np.empty((BATCH, bench.options.dim), np.float32)

    def gather() -> None:
        for low in range(0, len(order), BATCH):
            indices = order[low : low + BATCH]
            np.take(data.embeddings, indices, axis=0, out=out[: len(indices)], mode="clip")

    ours = streaming(bench)
    other = Work("np.take of random rows", gather, data.embeddings.nbytes, len(data))
    passes = bench.interleave(ours, other)
    yield ratio(f"streaming, batch {BATCH}, GB/s against np.take alone", gb_per_s(ours, passes[0]), gb_per_s(other, passes[1]))


MEASUREMENTS = (Measurement("raw-tcp", measure_raw_tcp), Measurement("np-take", measure_np_take))
