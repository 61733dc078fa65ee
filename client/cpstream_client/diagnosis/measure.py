"""The figures: of a stream as a trainer gets it, of either end without the other, and of the path in between.

A stream is no faster than its slowest part, so each is measured without the others: the server gathers and sends to itself, and the
client reads what it already has. What neither of them explains is the network's.
"""

import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPMessage

from ..buffers import BufferPool
from ..client import Client
from ..contract.bodies import Measurement, SplitInfo
from ..contract.wire import ARROW_STREAM, JSON, BatchQuery
from ..cpus import cpu_limit, throttled_s
from ..stream.course import Ask, Course, cut, trim
from ..stream.fetch import EpochFetcher
from ..stream.messages import Memory
from ..transport.answers import Answer
from ..transport.replies import Reply

REPLAYED_BYTES = 32 * 1024**2
"""Of the reply that is replayed: more than a processor's cache holds, as an epoch's are."""
REPLAY_S = 0.5
_ROUND_TRIPS = 5
_BEAT_S, _LATE_S = 0.005, 0.015
"""Another thread of the process may hold the GIL for so long."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What one part of the way did in a while.

    throttled_s: for so long a CPU quota stopped this process; None without quotas. stopped_s: for so long it wanted to run and did
    not, whatever kept it from that.
    """

    samples: int
    nbytes: int
    seconds: float
    cpu_s: float
    throttled_s: float | None = None
    stopped_s: float = 0.0

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / self.seconds


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured. stream: as a trainer gets it; client: the replay, or over TLS what the stream took of the CPU.

    server: what it says of itself; first_batch_s: from the request on; answer_s: the fastest small request; round_trip_s: of a
    packet, as the kernel has it, None where it does not say; connections: most at once; workers: of the service, each with a CPU of
    its own; cpus: of this process.
    """

    split: str
    batch_size: int
    dtype: str
    stream: Rate
    client: Rate
    server: Measurement
    first_batch_s: float
    answer_s: float
    round_trip_s: float | None
    connections: int
    workers: int
    cpus: float

    @property
    def serving(self) -> int:
        """Workers that the stream can have been served by, of which `server` measures one."""
        return max(1, min(self.connections, self.workers))


def measure(client: Client, info: SplitInfo, query: BatchQuery, seconds: float) -> Figures:
    """Stream for about so many seconds, then measure both ends. Raises as Client."""
    answer_s = min(_timed(lambda: client.split(info.split)) for _ in range(_ROUND_TRIPS))
    stream, first_batch_s, connections = _stream(client, info, query, seconds)
    # No more of it than comes in a second, over a slow path.
    ask = Course(query, info).ask(0, min(REPLAYED_BYTES, int(stream.bytes_per_s)))
    assert ask is not None  # noqa: S101 - no split is empty
    replay = _replay(client, query, ask)
    if client.service.replicas.choose(0).secure and stream.cpu_s > replay.cpu_s * stream.samples / replay.samples:
        # What is replayed is decrypted already: as fast as the stream would be if this process never waited.
        replay = replace(stream, seconds=stream.cpu_s, throttled_s=None, stopped_s=0.0)
    return Figures(
        split=info.split,
        batch_size=query.batch_size,
        dtype=query.dtype,
        stream=stream,
        server=_server(client, ask),
        client=replay,
        first_batch_s=first_batch_s,
        answer_s=answer_s,
        round_trip_s=client.service.round_trip_s(client.service.replicas.choose(0)),
        connections=connections,
        workers=info.workers or 1,
        cpus=cpu_limit(),
    )


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class _Clock:
    """Since it was made: the time, the CPU's, and for how long this process did not run. `rate` ends it."""

    def __init__(self) -> None:
        self._throttled, self._cpu, self._began = throttled_s(), time.process_time(), time.perf_counter()
        self._is_over, self._late_s = threading.Event(), 0.0
        self._beat = threading.Thread(target=self._run, name="cpstream-beat", daemon=True)
        self._beat.start()

    def _run(self) -> None:
        """A thread that only sleeps is woken in time, unless the process has no CPU."""
        while not self._is_over.is_set():
            then = time.perf_counter()
            time.sleep(_BEAT_S)
            late_s = time.perf_counter() - then - _BEAT_S
            if late_s > _LATE_S:
                self._late_s += late_s

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def rate(self, samples: int, nbytes: int) -> Rate:
        seconds, cpu_s, throttled = self.seconds, time.process_time() - self._cpu, throttled_s()
        self._is_over.set()
        self._beat.join()
        quota_s = None if throttled is None or self._throttled is None else throttled - self._throttled
        return Rate(samples, nbytes, seconds, cpu_s, quota_s, min(self._late_s, seconds))


def _stream(client: Client, info: SplitInfo, query: BatchQuery, seconds: float) -> tuple[Rate, float, int]:
    """Epoch after epoch, as a loop that does nothing would take it. With the seconds until the first batch, and the connections."""
    memory, clock = Memory(BufferPool(max_idle=8)), _Clock()
    samples = nbytes = connections = 0
    first_batch_s = 0.0
    while clock.seconds < seconds:
        course = Course(query, info)
        fetcher = EpochFetcher(client.service, course, memory, workers=info.workers or 1)
        for record in trim(fetcher, course):
            first_batch_s = first_batch_s or clock.seconds
            samples += sum(batch.num_rows for batch in cut([record], query.batch_size))
            nbytes += record.nbytes
            del record
            if clock.seconds >= seconds:
                break
        connections = max(connections, fetcher.flow.connections)
        query = replace(query, epoch=query.epoch + 1)
    return clock.rate(samples, nbytes), first_batch_s, connections


def _server(client: Client, ask: Ask) -> Measurement:
    """How fast the service answers that request when it sends to itself."""
    path = ask.path.removesuffix("batches") + "measure"
    with client.service.ask(client.service.replicas.choose(0), "GET", path, ask.params, JSON) as reply:
        return reply.read_json(Measurement)


def _replay(client: Client, query: BatchQuery, ask: Ask) -> Rate:
    """The same batches out of memory: received, verified and cut, as often as there is time."""
    endpoint = client.service.replicas.choose(0)
    with client.service.ask(endpoint, ask.method, ask.path, ask.params, ARROW_STREAM) as reply:
        body = reply.read()
    memory, clock = Memory(BufferPool(max_idle=8)), _Clock()
    samples = nbytes = 0
    while not samples or clock.seconds < REPLAY_S:
        stored = io.BytesIO(body)
        answer = Answer(200, "", HTTPMessage(), len(body), stored.readinto, stored.close, stored.close)
        for record in ask.read(Reply(answer, "memory", "memory", "", "", ()), endpoint, memory):
            samples += sum(batch.num_rows for batch in cut([record], query.batch_size))
            nbytes += record.nbytes
            del record
    return clock.rate(samples, nbytes)
