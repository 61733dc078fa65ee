"""Requests of one epoch in flight at once, each on a connection and a thread of its own, and their batches in order.

A lane asks for the next part of the course, reads the reply to its end and takes the next part. It asks only for what there is room
for, so no lane ever waits for the loop with its stream open. A part that fails is asked for again, from the last batch that was
verified on: what other lanes have brought, or are bringing, stays.
"""

import os
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import CpstreamError, ServiceError
from ..transport import pace
from ..transport.retry import Patience
from ..transport.service import Service
from ..transport.tracing import thread
from .backlog import Backlog
from .course import Ask, Asking
from .early import Early
from .messages import Memory
from .reader import Batch
from .request import Request

_JOIN_TIMEOUT_S = 2.0
_CHECK_EVERY_S = 1.0


@dataclass(slots=True)
class Flow:
    """What an iteration took. connections: most requests in flight at once; refused: for too many of them; faults: all others."""

    requests: int = 0
    connections: int = 0
    faults: int = 0
    refused: int = 0
    nbytes: int = 0


@dataclass(slots=True, eq=False)
class _Part:
    """What one request asks for, until all of it has been yielded. ask: for what is not verified yet, if any; batches: what is.

    room: how many bytes are not yielded yet, about.
    """

    ask: Ask | None
    patience: Patience
    room: int
    batches: deque[Batch] = field(default_factory=deque)
    is_whole: bool = False
    error: BaseException | None = None


class Lanes:
    """See EpochFetcher, whose arguments these are. `batches` is for one thread, `abort` for any."""

    def __init__(
        self,
        service: Service,
        course: Asking,
        memory: Memory,
        turn: int,
        backlog: Backlog,
        max_connections: int,
        workers: int,
        flow: Flow,
        early: Early | None = None,
    ) -> None:
        self._early = early
        self._service, self._course, self._memory, self._turn = service, course, memory, turn
        self._backlog, self._max_connections, self._workers, self.flow = backlog, max_connections, workers, flow
        self._round_trip_s = service.round_trip_s(service.replicas.choose(turn))
        lock = threading.Lock()
        self._arrived, self._room = threading.Condition(lock), threading.Condition(lock)
        self._parts: deque[_Part] = deque()  # in the course's order
        self._refused: list[_Part] = []  # of them, those that the service had no time for
        self._next = 0  # the first training batch that no part has
        self._record_bytes = pace.FIRST_RECORD_BYTES if service.pace.is_far(self._round_trip_s) else 0
        self._open: set[Request] = set()
        self._busy = 0  # lanes that have a part
        self._is_begun = False
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()

    def batches(self, first: int) -> Iterator[Batch]:
        """The record batches of the course from the training batch `first` on, in order. Raises as EpochFetcher."""
        self._next = first
        try:
            while self._parts or self._course.more(self._next):
                self._start()
                batch = self._head()
                if self._closed.is_set():
                    return
                if batch is not None:
                    yield batch
                    del batch
        finally:
            if os.getpid() == self._owner:  # a forked process has the parent's sockets, and locks that nobody will release
                self.abort()
                deadline = time.monotonic() + _JOIN_TIMEOUT_S
                for lane in self._threads:
                    lane.join(max(0.0, deadline - time.monotonic()))

    def abort(self) -> None:
        self._closed.set()
        with self._room:
            for request in self._open:
                request.line.abort()
            self._arrived.notify_all()
            self._room.notify_all()

    def _connections(self) -> int:
        return min(self._service.pace.connections(self._round_trip_s, self._workers), self._max_connections)

    def _start(self) -> None:
        """See to it that there are as many lanes as may be used."""
        while len(self._threads) < self._connections():
            lane = len(self._threads)
            self._threads.append(thread(self._run, lane, name=f"cpstream-lane-{lane}"))
            self._threads[-1].start()

    def _head(self) -> Batch | None:
        """The next batch; None when the part that it was expected of is at its end."""
        with self._arrived:
            self._room.notify_all()  # the consumer has taken something
            while not self._closed.is_set():
                part = self._parts[0] if self._parts else None
                if part is not None and part.batches:
                    batch = part.batches.popleft()
                    part.room -= batch.nbytes
                    return batch
                if part is not None and (part.is_whole or part.error is not None):
                    self._parts.popleft()
                    if part.error is not None:
                        raise part.error
                    return None
                if not self._arrived.wait(_CHECK_EVERY_S) and not any(lane.is_alive() for lane in self._threads):
                    raise CpstreamError(
                        "the threads that fetch batches are gone; was the process forked in the middle of an epoch?"
                    )
        return None

    # In the lanes' threads

    def _run(self, lane: int) -> None:
        while (part := self._take()) is not None:
            try:
                self._fetch(part, lane)
            except BaseException as error:
                part.error = error
            with self._room:
                self._arrived.notify()
                self._room.notify_all()
            del part  # or this thread would keep its buffers from being used again

    def _take(self) -> _Part | None:
        """What is to be asked for next, as soon as it may be; None when the iteration is over."""
        with self._room:
            while not self._closed.is_set():
                if self._busy < self._connections() and (self._is_begun or not self._parts):
                    part = self._refused.pop(0) if self._refused else self._new_part()
                    if part is not None:
                        self._busy += 1
                        self.flow.connections = max(self.flow.connections, self._busy)
                        return part
                self._room.wait()
        return None

    def _new_part(self) -> _Part | None:
        """The next part of the course; None while there is no room for it, and at the end."""
        service, most = self._service, self._backlog.max_bytes
        share = max(1, most // (2 * self._connections()))
        nbytes = min(service.pace.request_bytes(self._round_trip_s, share, self.flow.requests), service.request_bytes)
        left = self._course.left_bytes(self._next)
        if left is not None:  # the last ones are small, so that no connection is busy for long when the others have done
            nbytes = min(nbytes, max(left // (2 * self._connections()), pace.LEAST_BYTES))
        if self._record_bytes == pace.FIRST_RECORD_BYTES:
            nbytes = 1  # one training batch, with which the loop can begin
        ahead = self._backlog.nbytes + sum(part.room for part in self._parts)
        if self._parts and ahead + nbytes > most:
            return None
        ask = self._course.ask(self._next, nbytes, min(nbytes, self._record_bytes or nbytes))
        if ask is None or (self._parts and ahead + ask.nbytes > most):
            return None
        self._next = ask.behind()
        self._record_bytes *= 2
        replicas = service.replicas
        part = _Part(ask, Patience(service.retry, len(replicas), is_contact=not replicas.met), ask.nbytes)
        self._parts.append(part)
        return part

    def _fetch(self, part: _Part, lane: int) -> None:
        """Ask for a part until all of it is there, or the service has no time for it beside others. Raises what is final."""
        replicas = self._service.replicas
        try:
            while part.ask is not None and not self._closed.is_set():
                request = self._sent_early(part.ask) or Request(replicas.choose(self._turn + lane), part.ask)
                try:
                    self._read(part, request)
                except CpstreamError as error:
                    if self._closed.is_set():
                        return
                    replicas.failed(request.endpoint, request.made_s)
                    if self._is_put_off(part, request, error):
                        return
                    if part.ask is not None:  # else it was the end mark that did not come
                        self._closed.wait(part.patience.wait_s(error, request.endpoint.url))
                else:
                    replicas.worked(request.endpoint)
                finally:
                    with self._room:
                        self._open.discard(request)
            part.is_whole = part.ask is None
        finally:
            with self._room:
                self._busy -= 1

    def _sent_early(self, ask: Ask) -> Request | None:
        with self._room:
            early, self._early = self._early, None
        return None if early is None else early.take(ask)

    def _read(self, part: _Part, request: Request) -> None:
        """One reply, verified batch by batch. part.ask is for the rest of it at any time."""
        ask, done = request.ask, 0
        with self._room:
            self._open.add(request)
            if len(self._open) > 1:
                for each in self._open:
                    each.is_alone = False
            self.flow.requests += 1
            if self._closed.is_set():
                request.line.abort()
        if request.asked is None:
            request.send(self._service)
        with self._room:
            self._is_begun = True  # the connection that has brought the metadata is the first part's
            self._room.notify_all()
        with request.reply() as reply:
            began, speed_of = time.monotonic(), ask.count
            for batch in ask.read(reply, request.endpoint, self._memory):
                part.patience.progress()
                done += 1
                with self._arrived:
                    part.batches.append(batch)
                    self.flow.nbytes += batch.nbytes
                    if part is self._parts[0]:
                        self._arrived.notify()
                del batch
                part.ask = self._course.rest(ask, done) if done < ask.count else None
                if done == ask.count // 2:  # from here on the connection is as fast as it gets
                    began, speed_of = time.monotonic(), ask.count - done
        self._service.pace.worked(ask.nbytes * speed_of // ask.count, time.monotonic() - began)

    def _is_put_off(self, part: _Part, request: Request, error: CpstreamError) -> bool:
        """Whether a refusal says that there are too many requests, of which this one can wait for the others.

        Those that were under way with it count: they may have come to their ends before the refusal was read.
        """
        with self._room:
            is_overloaded = isinstance(error, ServiceError) and (error.code == "overloaded" or error.status == 429)
            if part.ask is None or not is_overloaded or (request.is_alone and self._busy == 1):
                self.flow.faults += 1
                return False
            self.flow.refused += 1
            self._service.pace.refused(self._busy - 1)
            insort(self._refused, part, key=lambda each: -1 if each.ask is None else each.ask.first)
            return True
