"""A long or lossy line between two network interfaces: `link RATE_MBIT ROUND_TRIP_MS LOSS_PERCENT INTERFACE INTERFACE`.

In user space, over TUN devices that it makes, because many kernels lack netem. Packets of both ways wait for their turn on the wire
and then for half the round trip; one is lost by chance, or when a bandwidth-delay product waits already. They travel as the large
segments of the kernel, of up to 64 KB; the chance counts for each 1,448 bytes of them. Prints a line when the interfaces are there.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x04
"""Checksums, and segments of TCP over IPv4 and IPv6."""
_SEGMENT_BYTES = 1448
_MOST_BYTES = 65536 + 64
_LEAST_QUEUE_BYTES = 256 * 1024


@dataclass
class Way:
    """From one interface to the other. Times are of time.perf_counter."""

    source: int
    sink: int
    bytes_per_s: float
    delay_s: float
    loss: float
    queue_bytes: float
    free_s: float = 0.0  # when all that has been accepted will have been sent
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)  # by the time of arrival

    def accept(self) -> None:
        """Take what has come. More than the queue holds is lost, as at a router."""
        for _ in range(64):
            try:
                packet = os.read(self.source, _MOST_BYTES)
            except BlockingIOError:
                return
            now = time.perf_counter()
            self.free_s = max(self.free_s, now)
            segments = -(-len(packet) // _SEGMENT_BYTES)
            full = (self.free_s - now) * self.bytes_per_s > self.queue_bytes
            if full or (self.loss and random.random() > (1 - self.loss) ** segments):
                continue
            self.free_s += len(packet) / self.bytes_per_s
            self.waiting.append((self.free_s + self.delay_s, packet))

    def deliver(self) -> float | None:
        """Hand over what has arrived by now. Returns the seconds until the next arrival, None where nothing is on its way."""
        while self.waiting:
            left = self.waiting[0][0] - time.perf_counter()
            if left > 0:
                return left
            try:
                os.write(self.sink, self.waiting.popleft()[1])
            except OSError:  # the other end is down, or its queue is full
                continue
        return None


def tun(name: str) -> int:
    """A new interface of this name. Returns its file descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _OFFLOADS)
    return device


def main() -> None:
    rate_mbit, round_trip_ms, loss_percent = map(float, sys.argv[1:4])
    one, other = map(tun, sys.argv[4:6])
    bytes_per_s, delay_s = rate_mbit * 1e6 / 8, round_trip_ms / 2000
    queue_bytes = max(2 * delay_s * bytes_per_s, _LEAST_QUEUE_BYTES)
    ways = [Way(*ends, bytes_per_s, delay_s, loss_percent / 100, queue_bytes) for ends in ((one, other), (other, one))]
    print("up", flush=True)
    while True:
        waits = [left for way in ways if (left := way.deliver()) is not None]
        ready, _, _ = select.select([one, other], [], [], min(waits) if waits else None)
        for way in ways:
            if way.source in ready:
                way.accept()


if __name__ == "__main__":
    main()
