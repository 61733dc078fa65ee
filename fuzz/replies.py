"""Target `replies`: the client gets an altered reply of every kind; it delivers what was sent, or raises a CpstreamError.

Altered ones have to be noticed by their checksums. Those marked `forged` have theirs made right again, as a broken service or a
proxy that rewrites bodies would send them: of these nothing is asked but that the client neither crashes nor fails in another way.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from benchmarks.service import serving

from cpstream_client import Client, CpstreamError, DatasetChanged, NotFoundError, Retry
from cpstream_client.buffers import BufferPool
from cpstream_client.contract.bodies import SplitInfo
from cpstream_client.contract.wire import COLUMNS, BatchQuery
from cpstream_client.stream.chosen import ChosenCourse
from cpstream_client.stream.fetch import EpochFetcher
from cpstream_client.stream.messages import Memory
from cpstream_client.stream.reader import Batch

from . import conversations, snapshots
from .conversations import Replies, Speaker, forged, framed, is_arrow
from .mutate import mutated
from .target import Target, WrongError, check_message, labelled, parted

SPLIT = "d v"
_FORGED = 0.15
_GATEWAYS = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\naway",
    b"HTTP/1.1 302 Found\r\nLocation: https://login.example/?next=x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nlogin",
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 99999999999\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nContent-Encoding: gzip",
    b"\r\nContent-Length: 99999999999999999999",
    b"\r\nSet-Cookie: a=b",
)
"""To be spliced in."""

Infos = dict[str, SplitInfo]
ALL = (*COLUMNS, "pitch")


def _query(**given: Any) -> Callable[[Client, SplitInfo], Iterator[Any]]:
    def ask(client: Client, info: SplitInfo) -> Iterator[Any]:
        for batch in client.batches(SPLIT, BatchQuery(**given), info=info):
            yield _plain(batch)

    return ask


def _chosen(client: Client, info: SplitInfo) -> Iterator[Any]:
    """Batches of any indices, as a sampler draws them."""
    course = ChosenCourse(BatchQuery(columns=ALL), info)
    course.put([np.array(indices, np.int64) for indices in ([3, 0, 3], [1, 2, 9], [7])])
    course.end()
    for batch in EpochFetcher(client.service, course, Memory(BufferPool(8))):
        yield _plain(batch)


def _one(ask: Callable[[Client, SplitInfo], Any]) -> Callable[[Client, SplitInfo], Iterator[Any]]:
    def once(client: Client, info: SplitInfo) -> Iterator[Any]:
        yield ask(client, info)

    return once


CALLS: dict[str, Callable[[Client, SplitInfo], Iterator[Any]]] = {
    "splits": _one(lambda client, _: client.splits()),
    "split": _one(lambda client, info: client.split(SPLIT, fingerprint=info.fingerprint)),
    "alignment": _one(lambda client, _: client.alignment(SPLIT)),
    "rows": _one(lambda client, _: client.rows(SPLIT, 3, 5)),
    "plan": _one(lambda client, _: client.plan(SPLIT, 1, BatchQuery(batch_size=3, world_size=2, shuffle="uniform"))),
    "paths": _one(lambda client, info: client.file_paths(SPLIT, info=info)),
    "take": _one(lambda client, info: _plain(client.take(SPLIT, [3, 0, 3, 7], info=info))),
    "take-all": _one(lambda client, info: _plain(client.take(SPLIT, [5, 1], columns=ALL, dtype="float16", info=info))),
    "load": _one(lambda client, info: _plain(client.load(SPLIT, info=info))),
    "epoch": _query(batch_size=4, shuffle="uniform", seed=3),
    "workers": _query(batch_size=2, num_workers=2, worker=1, shuffle="blocks"),
    "labels": _query(batch_size=3, num_workers=2, columns=ALL),
    "chosen": _chosen,
    "no-split": _one(lambda client, _: client.split("nothing")),
    "changed": _one(lambda client, _: client.split(SPLIT, fingerprint="0" * 32)),
    "out-of-range": _one(lambda client, info: client.take(SPLIT, [99], info=info)),
}


@dataclass(frozen=True)
class State:
    """replies and truth by call. truth: what it delivers; the type of its error where it is refused."""

    info: SplitInfo
    replies: dict[str, Replies]
    truth: dict[str, list[Any]]


def prepare(folder: Path) -> State:
    state = snapshots.prepare(folder)
    with serving(state.folder / "source", folder / "served", "--labels", "pitch") as service, _same_ids():
        info = Client(service.url).split(SPLIT)
        replies, truth = {}, {}
        for name in CALLS:
            with conversations.recording(service.url) as (url, seen), Client(url, retry=Retry(timeout_s=0)) as client:
                truth[name] = _delivered(name, client, info)[0]
            replies[name] = seen
    return State(info, replies, truth)


def _same_ids() -> Any:
    """Requests have random ids, which replies echo: here all have one, so that what was recorded answers them."""
    return patch("cpstream_client.transport.service.new_request_id", lambda: "0123456789abcdef")


def _delivered(name: str, client: Client, info: SplitInfo) -> tuple[list[Any], CpstreamError | None]:
    """What a call delivers, and how it ends. A refusal is the last of what it delivers."""
    found: list[Any] = []
    try:
        found.extend(CALLS[name](client, info))  # extend keeps what came before an error
    except CpstreamError as error:
        return [*found, type(error).__name__], error
    return found, None


def _plain(batch: Batch) -> Any:
    arrays = (batch.embeddings, batch.cps, batch.index, *(batch.labels[name] for name in sorted(batch.labels)))
    return (
        batch.num_rows,
        batch.file_paths,
        [None if each is None else (each.dtype.str, each.shape, each.tobytes()) for each in arrays],
    )


class _Altered:
    def __init__(self, state: State, speaker: Speaker) -> None:
        self._state, self._speaker = state, speaker
        self._pool = [reply for replies in state.replies.values() for reply in replies.values()] + list(_GATEWAYS)
        for name in CALLS:
            speaker.say(state.replies[name], {})
            if self._ask(name)[0] != state.truth[name]:
                raise AssertionError(f"what was recorded of {name} is not what is said again")

    def draw(self, random: Random) -> bytes:
        name = random.choice(list(CALLS))
        at = random.randrange(len(self._state.replies[name]))
        reply = list(self._state.replies[name].values())[at]
        if random.random() < _FORGED:
            return labelled(f"{name} {at} forged", _forge(reply, random, self._pool))
        reply = framed(reply, random.choice(("length", "length", "chunked", "close")))
        return labelled(f"{name} {at} altered", mutated(reply, random, self._pool))

    def accepts(self, data: bytes) -> bool:
        label, reply = parted(data)
        name, at, how = label.split(" ")
        replies, truth = self._state.replies[name], self._state.truth[name]
        self._speaker.say(replies, {list(replies)[int(at)]: reply})
        found, error = self._ask(name)
        if error is not None:
            check_message(error)
            final = isinstance(error, (NotFoundError, DatasetChanged))
            if how == "altered" and final and found != truth:
                raise WrongError(f"damage became {error!r}")
            found = found[:-1]
        if how == "altered" and found != truth[: len(found)]:
            raise WrongError(f"delivered {found!r} where {truth!r} was sent")
        return error is None

    def _ask(self, name: str) -> tuple[list[Any], CpstreamError | None]:
        with Client(self._speaker.url, retry=Retry(timeout_s=0), timeout=5) as client:
            return _delivered(name, client, self._state.info)


def _forge(reply: bytes, random: Random, pool: list[bytes]) -> bytes:
    _, body = conversations.parted(reply)
    if not is_arrow(reply):
        return forged(reply, mutated(body, random, pool))
    messages = _messages(body)
    at = random.randrange(1, len(messages)) if len(messages) > 1 else 0
    messages[at] = conversations.checked(mutated(messages[at], random, pool))
    return forged(reply, b"".join(messages) + b"\xff\xff\xff\xff\0\0\0\0")


def _messages(body: bytes) -> list[bytes]:
    """The messages of an Arrow stream, schema first, without the end mark."""
    starts = []
    at = body.find(b"\xff\xff\xff\xff")
    while at >= 0 and at % 8 == 0 and struct.unpack_from("<i", body, at + 4)[0] > 0:
        starts.append(at)
        at = body.find(b"\xff\xff\xff\xff", at + 8)
        while at >= 0 and (at % 8 or not 0 <= struct.unpack_from("<i", body, at + 4)[0] < 4096):
            at = body.find(b"\xff\xff\xff\xff", at + 1)
    return [body[low:high] for low, high in zip(starts, [*starts[1:], len(body) - 8], strict=True)]


@contextmanager
def start(state: State, _: Path) -> Iterator[_Altered]:
    with _same_ids(), Speaker() as speaker:
        yield _Altered(state, speaker)


TARGET = Target("replies", prepare, start)
