"""A batch stream at the socket: what the concurrency and memory measurements open in numbers, with no client in the way."""

import socket
import time
from contextlib import closing
from pathlib import Path

from cpstream_client.contract.wire import BatchQuery, split_path
from cpstream_service.snapshot.store import SMALL_PAGES

from .data import SPLIT
from .processes import START_TIMEOUT_S
from .service import Service

REQUEST_SAMPLES = 20_000
"""Of one request: about the 64 MB that the client asks for at a time."""
BATCH = 256
_RECEIVE_BYTES = 1024**2
_HEAD_BYTES = 8192


def warm(service: Service, snapshots: Path) -> None:
    """Read a little of a stream, and wait until the service has put its files into huge pages, once for all."""
    with closing(RawStream(service, 1, None)) as stream:
        stream.read_until(time.perf_counter() + 0.2)
    deadline = time.monotonic() + START_TIMEOUT_S
    while any(snapshots.glob(f"*/*/{SMALL_PAGES}")) and time.monotonic() < deadline:
        time.sleep(0.1)


class RawStream:
    """One trainer's connection. Every stream has a seed, and so an order, of its own.

    epoch_samples: what an epoch has, through which its requests go one after the other; 0: each is for the first of the next epoch.
    """

    def __init__(self, service: Service, seed: int, limit_steps: int | None, epoch_samples: int = 0) -> None:
        self._seed, self._limit_steps, self._epoch_samples = seed, limit_steps, epoch_samples
        self._epoch = self._start = 0
        self._host = service.url.removeprefix("http://")
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._sock = socket.create_connection(service.address, timeout=60)

    def ask(self) -> None:
        """Send a request for the next epoch's first batches."""
        order = {"shuffle": "uniform", "seed": self._seed, "epoch": self._epoch}
        query = BatchQuery(batch_size=BATCH, start=self._start, limit=self._limit_steps, **order)  # type: ignore[arg-type]
        self._start += BATCH * (self._limit_steps or self._epoch_samples)
        if self._start >= self._epoch_samples:
            self._epoch, self._start = self._epoch + 1, 0
        params = "&".join(f"{name}={value}" for name, value in query.to_params().items())
        request = f"GET {split_path(SPLIT, 'batches')}?{params} HTTP/1.1\r\nHost: {self._host}\r\n\r\n"
        self._sock.sendall(request.encode())

    def pause(self) -> None:
        """Take the beginning of the reply, and then nothing more."""
        assert self._sock.recv(12) == b"HTTP/1.1 200"

    def read_until(self, deadline: float) -> int:
        """Read replies and throw them away. Returns the bytes that came before the deadline (time.perf_counter)."""
        total = 0
        self.ask()
        while True:
            left = self._head()
            self.ask()  # the next reply shall follow this one without a round trip
            while left:
                count = self._sock.recv_into(self._buffer[: min(left, _RECEIVE_BYTES)])
                if time.perf_counter() >= deadline:
                    return total
                if not count:
                    raise ConnectionError("the service closed a stream")
                left -= count
                total += count

    def close(self) -> None:
        self._sock.close()

    def _head(self) -> int:
        """Take the head of a reply, and nothing behind it. Returns its Content-Length."""
        seen = b""
        while b"\r\n\r\n" not in seen:
            piece = self._sock.recv(_HEAD_BYTES, socket.MSG_PEEK)
            if not piece:
                raise ConnectionError("the service closed a stream")
            if len(piece) == len(seen):  # it waits for more
                time.sleep(0.001)
            seen = piece
        head = self._sock.recv(seen.index(b"\r\n\r\n") + 4)
        status, *lines = head.decode("latin-1").strip().split("\r\n")
        if " 200 " not in status:
            raise ConnectionError(f"the service answered {status}")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(headers["content-length"])
