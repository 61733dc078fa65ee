"""How many requests are in flight at once, and how large they are: what the path to the service needs, and what the service grants.

A TCP connection carries at most about one buffer a round trip, so the number follows the round trip: one where that is short, or as
many as both the service has worker processes and this process has pairs of processors, else enough to fill 10 Gbit/s. The size
follows the speed of one connection: a request takes several round trips, or its own would weigh too much, and no longer, since
batches wait for those before them.
"""

import math
import operator
import os

from ..locks import new_lock

REQUEST_BYTES = 64 * 1024**2
"""Of one request: bounds what a fault, a drain or a stall can cost, and costs nothing measurable itself."""
MAX_CONNECTIONS = 8
ROUND_TRIP_PER_CONNECTION_S = 0.002
"""The kernel's usual buffers let some 2.5 MB a round trip through one connection: 10 Gbit/s if that takes 2 ms."""
LEAST_BYTES = 512 * 1024
UNKNOWN_BYTES = tuple(n * 1024**2 for n in (1, 2, 3, 4))
"""Of requests, in turn, as long as nobody knows how fast a connection is: new ones that begin together shall not all wait for
their next request at the same time."""
_LEAST_S = 0.02
_ROUND_TRIPS = 5.0
"""A request's: one goes by before its first byte comes."""
FIRST_RECORD_BYTES = 128 * 1024
"""Of the record batches of a far epoch's first request, and twice as large with each of the next: a batch waits until all of its
record batch is there, and a new connection brings 14 KB in its first round trip and twice as much in each of the next."""
_MOST_WORKERS = 4
"""Of a near service: they send twice as fast as a trainer's process, which verifies and hands over, can read."""
_PROCESSORS_PER_CONNECTION = 2
"""Of a near service's workers: one reads while the loop computes. On two processors, two connections gave 383,000 samples/s where
one gave 475,000."""
_WORKED_PER_TRY = 8
"""An overloaded service is tried with one request more when so many for each connection have been answered."""


class Pace:
    """One a service and process, for all its streams: what one learns of the service serves the next. Safe between threads.

    max_connections: never more at once, a stream.
    """

    def __init__(self, max_connections: int = MAX_CONNECTIONS) -> None:
        if operator.index(max_connections) < 1:
            raise ValueError(f"max_connections is {max_connections}; it must be 1 or more")
        self.max_connections = max_connections
        self._most_near = max(1, min(_MOST_WORKERS, processors() // _PROCESSORS_PER_CONNECTION))
        self._lock = new_lock()
        self._granted = max_connections
        self._worked = 0
        self._bytes_per_s = 0.0  # of one connection

    def __reduce__(self) -> tuple[type["Pace"], tuple[int]]:
        return type(self), (self.max_connections,)

    def needed(self, round_trip_s: float | None, workers: int) -> int:
        """How many requests in flight the path can use. workers: processes of the service.

        A path that nobody has measured yet counts as short.
        """
        needed = math.ceil((round_trip_s or 0.0) / ROUND_TRIP_PER_CONNECTION_S)
        return max(1, min(max(needed, min(workers, self._most_near)), self.max_connections))

    def connections(self, round_trip_s: float | None, workers: int) -> int:
        """How many may be in flight now."""
        return max(1, min(self.needed(round_trip_s, workers), self._granted))

    def is_far(self, round_trip_s: float | None) -> bool:
        """Whether a batch should not have to wait for a whole request of the usual size."""
        return (round_trip_s or 0.0) > ROUND_TRIP_PER_CONNECTION_S

    def request_bytes(self, round_trip_s: float | None, share_bytes: int, number: int) -> int:
        """How large a stream's request of this number is. share_bytes: of what may be fetched ahead, one request's share."""
        takes_s = max(_ROUND_TRIPS * (round_trip_s or 0.0), _LEAST_S)
        unknown = UNKNOWN_BYTES[number % len(UNKNOWN_BYTES)]
        wanted = max(self._bytes_per_s * takes_s, LEAST_BYTES) if self._bytes_per_s else unknown
        return int(min(wanted, share_bytes, REQUEST_BYTES))

    def worked(self, nbytes: int, seconds: float) -> None:
        """A reply has been read to its end: so many bytes, so long from its first one on."""
        with self._lock:
            if seconds > 0:
                speed = nbytes / seconds
                self._bytes_per_s = speed if speed > self._bytes_per_s else 0.75 * self._bytes_per_s + 0.25 * speed
            self._worked += 1
            if self._granted < self.max_connections and self._worked >= _WORKED_PER_TRY * self._granted:
                self._granted += 1
                self._worked = 0

    def refused(self, others: int) -> None:
        """The service has too much to do for one request more than these others, which it answers."""
        with self._lock:
            self._granted = max(1, min(self._granted, others))
            self._worked = 0


def processors() -> int:
    """How many of them this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
