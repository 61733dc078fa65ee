"""What the machine itself allows: bytes over loopback, the gather, and the least that a stream of both takes."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from crc32c import crc32c

from .bench import Bench, Measurement
from .data import SPLIT
from .findings import Finding, Kind, Series, at_least, ratio
from .loaders import BATCH, batch_sampler, indexing, streaming
from .processes import cpu_s, first_line, helper
from .runner import Batches, Loader, Pass, Side, Work, gb_per_s, samples_per_s
from .servers.bare import BATCHES_A_RECORD

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


@dataclass
class BothEnds:
    """A side whose CPU is that of this process and of another one together."""

    side: Side
    pid: int

    @property
    def label(self) -> str:
        return self.side.label

    @property
    def kind(self) -> Kind:
        return self.side.kind

    def warm_up(self) -> None:
        self.side.warm_up()

    def run(self, epoch: int) -> Pass:
        before = cpu_s(self.pid)
        done = self.side.run(epoch)
        return replace(done, cpu_s=done.cpu_s + cpu_s(self.pid) - before)


def measure_bare(bench: Bench) -> Iterator[Finding]:
    """What remains of a stream in Python without all but gather, checksum, send and receive: its bounds on these processors.

    The same snapshot, records as large as the service's chunks, batches as views of one buffer; no HTTP, no Arrow, no thread, and
    nothing that could be resumed or repeated.
    """
    service = bench.service
    (folder,) = (bench.folder / "snapshots").glob(f"*/{SPLIT}")
    with helper("servers.bare", str(folder)) as server, socket.create_connection(("127.0.0.1", int(first_line(server)))) as sock:

        def epoch(number: int) -> Batches:
            return _bare(sock, number, len(bench.data), bench.options.dim)

        bare = Loader(f"bare loop, batch {BATCH}", epoch, len(bench.data), bench.data.checksum(), "limit")
        ours, limit = BothEnds(streaming(bench), service.pid), BothEnds(bare, server.pid)
        sides = indexing(bench.data, BATCH), batch_sampler(bench.data, BATCH)
        passes = bench.interleave(ours, limit, *sides)
    speeds = [samples_per_s(side, done) for side, done in zip((ours, limit, *sides), passes, strict=True)]
    yield ratio(f"streaming against a bare loop of gather, checksum and socket, batch {BATCH}", speeds[0], speeds[1])
    cpus = [
        Series(side.label, [each.cpu_s / each.nbytes * 1e9 for each in done], "CPU s/GB", side.kind)
        for side, done in ((ours, passes[0]), (limit, passes[1]))
    ]
    yield ratio(f"CPU of both ends per GB, streaming against the bare loop, batch {BATCH}", *cpus)
    for speed in speeds[2:]:
        yield ratio(f"the bare loop against {speed.label}", speeds[1], speed)


def _bare(sock: socket.socket, seed: int, samples: int, dim: int) -> Batches:
    rows = BATCH * BATCHES_A_RECORD
    place = memoryview(bytearray(rows * (dim + 1) * 4 + 4))
    sock.sendall(seed.to_bytes(8, "little"))
    for low in range(0, samples, rows):
        count = min(rows, samples - low)
        nbytes = count * (dim + 1) * 4
        checksum = 0
        for at in range(0, nbytes, RECEIVE_BYTES // 2):  # summed while it is in the processor's cache
            piece = place[at : min(at + RECEIVE_BYTES // 2, nbytes)]
            assert sock.recv_into(piece, len(piece), socket.MSG_WAITALL) == len(piece), "the sender has gone"
            checksum = crc32c(piece, checksum)
        assert sock.recv(4, socket.MSG_WAITALL) == checksum.to_bytes(4, "little"), (
            "the bytes that came are not those that were sent"
        )
        embeddings = torch.frombuffer(place, dtype=torch.float32, count=count * dim).view(count, dim)
        cps = torch.frombuffer(place, dtype=torch.float32, count=count, offset=count * dim * 4)
        yield from zip(embeddings.split(BATCH), cps.split(BATCH), strict=True)


MEASUREMENTS = (
    Measurement("raw-tcp", measure_raw_tcp),
    Measurement("np-take", measure_np_take),
    Measurement("bare", measure_bare),
)
