"""Target `take`: bodies of take and of batches, JSON and raw, asked of the real application in this process."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from starlette.types import ASGIApp, Message

from cpstream_client.contract.index_batches import IndexBatches
from cpstream_client.contract.wire import ARROW_STREAM, JSON, OCTET_STREAM, PROBLEM_JSON
from cpstream_service.app import create_app
from cpstream_service.settings import DataSettings, ServeSettings
from cpstream_service.snapshot.load import load

from .mutate import ANY, Mutation, mutated
from .target import ROOT, Target, WrongError, labelled, parted

State = DataSettings
SPLIT = "dev"
TYPES = (OCTET_STREAM, JSON, "application/json; charset=utf-8", "", "text/plain", "APPLICATION/OCTET-STREAM")
REFUSALS = {"invalid-parameter": 422, "index-out-of-range": 422, "payload-too-large": 413, "not-acceptable": 406}


def prepare(folder: Path) -> State:
    settings = DataSettings(source_path=ROOT / "examples" / "speech" / "data", splits=(SPLIT,), snapshot_dir=folder)
    load(settings)
    return settings


def seeds(num_samples: int) -> list[tuple[str, bytes]]:
    """(resource and media type, body)"""
    found = []
    for sizes in ([], [0], [3], [2, 0, 5], [1] * 20, [num_samples]):
        batches = [np.arange(size, dtype=np.int64) for size in sizes]
        found.append((f"batches|{OCTET_STREAM}", IndexBatches.of(batches).pack()))
        found.append((f"batches|{JSON}", json.dumps({"batches": [batch.tolist() for batch in batches]}).encode()))
    for indices in ([], [0], [num_samples - 1], [7, 0, 7, 42], list(range(64)), [num_samples], [-1], [2**63 - 1], [2**40]):
        found.append((f"take|{OCTET_STREAM}", np.array(indices, "<i8").tobytes()))
        found.append((f"take|{JSON}", json.dumps({"indices": indices}).encode()))
    return found


def nested(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """What JSON allows and an index is not."""
    at = random.randrange(len(data) + 1)
    pieces = (
        b"[",
        b"{",
        b'"',
        b"null",
        b"true",
        b"1e3",
        b"1E400",
        b"-0",
        b"1.0",
        b'{"indices":',
        b"NaN",
        b",",
        b"\\u0000",
        b"\xef\xbb\xbf",
    )
    data[at:at] = random.choice(pieces) * random.choice((1, 1, 2, 500, 100_000))


def huge(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """More digits, or more indices, than there is use for."""
    at = data.find(b"0") + 1
    data[at:at] = random.choice((b"0" * 5000, b", 1" * 50_000, b"9" * 20))


TAKE: tuple[Mutation, ...] = (*ANY, nested, nested, huge)


class _Take:
    def __init__(self, app: ASGIApp, loop: asyncio.AbstractEventLoop, num_samples: int) -> None:
        self._app, self._loop, self._num_samples = app, loop, num_samples
        self._seeds = seeds(num_samples)
        self._bodies = [body for _, body in self._seeds]

    def draw(self, random: Random) -> bytes:
        kind, body = random.choice(self._seeds)
        body = mutated(body, random, self._bodies, TAKE)
        if random.random() < 0.2:
            kind = kind.partition("|")[0] + "|" + random.choice(TYPES)
        return labelled(f"{kind}|{random.choice((ARROW_STREAM, ARROW_STREAM, JSON))}", body)

    def accepts(self, data: bytes) -> bool:
        label, body = parted(data)
        resource, content_type, accept = label.split("|")
        status, headers, reply = self._loop.run_until_complete(self._ask(resource, content_type, accept, body))
        if status != 200:
            problem = json.loads(reply)
            if headers.get("content-type") != PROBLEM_JSON or REFUSALS.get(problem["code"]) != status:
                raise WrongError(f"answered {status} {reply[:500]!r}")
            if len(problem["detail"]) > 500:
                raise WrongError(f"a detail of {len(problem['detail'])} characters: {problem['detail'][:200]!r}")
            return False
        asked = self._oracle(resource, content_type, body)
        got = _indices(headers["content-type"], reply)
        if got != asked:
            raise WrongError(f"asked for {str(asked)[:200]}, got {str(got)[:200]}")
        return True

    def _oracle(self, resource: str, content_type: str, body: bytes) -> list[list[int]]:
        """The indices of each batch that a body asks for which is accepted. Raises where it asks for nothing."""
        if content_type.partition(";")[0].strip().lower() == OCTET_STREAM:
            numbers = [int.from_bytes(body[at : at + 8], "little", signed=True) for at in range(0, len(body), 8)]
            if resource == "take":
                return [numbers]
            sizes, indices = numbers[1 : 1 + numbers[0]], numbers[1 + numbers[0] :]
            return [[indices.pop(0) for _ in range(size)] for size in sizes]
        parsed = json.loads(body.decode())
        batches = [parsed.pop("indices")] if resource == "take" else parsed.pop("batches")
        if parsed or not all(type(each) is int and 0 <= each < self._num_samples for batch in batches for each in batch):
            raise WrongError(f"accepted {body[:200]!r}")
        return [list(batch) for batch in batches]

    async def _ask(self, resource: str, content_type: str, accept: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = [(b"host", b"fuzz"), (b"accept", accept.encode()), (b"content-length", b"%d" % len(body))]
        if content_type:
            headers.append((b"content-type", content_type.encode()))
        path = f"/v1/splits/{SPLIT}/{resource}"
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "scheme": "http",
            "root_path": "",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"columns=index,cps",
            "headers": headers,
            "state": {},
        }
        pieces = [body[:1000], body[1000:]] if len(body) > 1000 else [body]
        incoming: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)} for i, piece in enumerate(pieces)
        ]
        sent: list[Message] = []

        async def receive() -> Message:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append({**message, "body": bytes(message.get("body", b""))})

        await self._app(scope, receive, send)
        found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return int(sent[0]["status"]), found, b"".join(message["body"] for message in sent[1:])


def _indices(media_type: str, reply: bytes) -> list[list[int]]:
    """Of each batch of a reply."""
    if media_type == JSON:
        return [[sample["index"] for sample in batch["samples"]] for batch in json.loads(reply)["batches"]]
    return [batch["index"].to_pylist() for batch in pa.ipc.open_stream(BytesIO(reply))]


@contextmanager
def start(settings: State, _: Path) -> Iterator[_Take]:
    snapshot = load(settings).snapshot
    app = create_app(snapshot, ServeSettings())
    loop = asyncio.new_event_loop()
    context = app.router.lifespan_context(app)
    loop.run_until_complete(context.__aenter__())
    yield _Take(app, loop, snapshot.splits[SPLIT].info.num_samples)
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


TARGET = Target("take", prepare, start)
