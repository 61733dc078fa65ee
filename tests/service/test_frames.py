"""Every byte of a conversation, damaged on its way: the client delivers what was sent or an error that is retried, nothing else."""

import json
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import Server, serving
from crc32c import crc32c

from cpstream_client import (
    Batch,
    BatchQuery,
    Client,
    ContractMismatch,
    CorruptedError,
    CpstreamError,
    Retry,
    SplitInfo,
    TransportError,
)
from cpstream_client.contract.wire import CHECKSUM_BYTES, COLUMNS, batch_schema
from cpstream_client.transport import service
from cpstream_client.transport.retry import is_certain, is_retryable
from cpstream_service.app import create_app
from cpstream_service.batches.frames import END_OF_STREAM, frame
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

TOKEN = "s3cret-token"
REQUEST_ID = "0123456789abcdef"
NEVER = Retry(timeout_s=0)
Ask = Callable[[Client], object]


@pytest.fixture(scope="module")
def small(snapshot: Snapshot) -> Iterator[Server]:
    """Five samples of three numbers, so that each byte of a whole conversation can be damaged in turn; behind a token."""
    split = snapshot.splits["train"]
    embeddings = np.ascontiguousarray(split.embeddings[:5, :3])
    info = split.info.model_copy(update={"num_samples": 5, "embedding_dim": 3})
    tiny = replace(split, embeddings=embeddings, cps=split.cps[:5], file_paths=split.file_paths[:5], info=info)
    served = replace(snapshot, splits={"train": tiny})
    with serving(create_app(served, ServeSettings(token=TOKEN))) as url:
        yield Server(url, served)


@pytest.fixture(autouse=True)
def _one_request_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a reply that is played again answers the request that gets it."""
    monkeypatch.setattr(service, "new_request_id", lambda: REQUEST_ID)


def columns_of(batches: Iterator[Batch] | list[Batch]) -> list[list[object]]:
    """Batches as plain values, comparable and free of their buffers."""
    return [
        [None if column is None else np.asarray(column).tobytes() for column in (batch.embeddings, batch.cps, batch.index)]
        + [batch.file_paths]
        for batch in batches
    ]


def test_paths_that_are_no_text_are_damage(small: Server) -> None:
    """Though the checksum is right: Arrow believes whatever a batch says of itself."""
    split = small.snapshot.splits["train"]
    offsets = pa.py_buffer(np.arange(6, dtype="<i4"))
    wrong = replace(split, file_paths=pa.StringArray.from_buffers(5, offsets, pa.py_buffer(b"abc\xffe")))
    with serving(create_app(replace(small.snapshot, splits={"train": wrong}), ServeSettings())) as url, Client(url) as client:
        query = BatchQuery(batch_size=2, columns=COLUMNS)
        with pytest.raises(CorruptedError, match="not an Arrow stream: Invalid UTF8"):
            list(Client(url, retry=NEVER).batches("train", query))
        assert client.take("train", [0, 2], columns=COLUMNS).file_paths == ["a", "c"]


def asks(info: SplitInfo) -> dict[str, Ask]:
    query = BatchQuery(batch_size=2, shuffle="uniform", seed=3, epoch=1, columns=COLUMNS, world_size=2, rank=1)
    return {
        "batches": lambda client: columns_of(client.batches("train", query, info=info)),
        "take": lambda client: columns_of([client.take("train", [4, 0], info=info)]),
        "split": lambda client: client.split("train"),
        "rows": lambda client: client.rows("train", 1, 2),
        "plan": lambda client: client.plan("train", 1, query),
        "refused": _refused_by_409(info),
    }


def _refused_by_409(info: SplitInfo) -> Ask:
    def ask(client: Client) -> object:
        try:
            return columns_of(client.batches("train", info=info.model_copy(update={"fingerprint": "0123456789abcdef"})))
        except CpstreamError as error:
            if is_certain(error):
                return type(error).__name__, error.expected, error.actual  # type: ignore[attr-defined]
            raise

    return ask


def outcome(ask: Ask, url: str, timeout_s: float) -> object:
    """The answer, or the error that a single try ends with."""
    with Client(url, token=TOKEN, retry=NEVER, timeout_s=timeout_s) as client:
        try:
            return ask(client)
        except CpstreamError as error:
            return error


class Recorded(socket.socket):
    """A socket that notes what it receives, and damages one byte of what it sends."""

    received: bytearray
    damage: tuple[int, int] | None = None
    sent = 0

    def recv_into(self, buffer, *args):  # type: ignore[no-untyped-def]
        count = super().recv_into(buffer, *args)
        self.received += bytes(memoryview(buffer)[:count])
        return count

    def sendall(self, data, *args):  # type: ignore[no-untyped-def]
        if self.damage is not None:
            position, mask = self.damage
            if self.sent <= position < self.sent + len(data):
                data = bytearray(data)
                data[position - self.sent] ^= mask
        self.sent += len(data)
        return super().sendall(data, *args)


class Replayed(socket.socket):
    """One end of a pair of Unix sockets, which has no TCP options."""

    def setsockopt(self, *_: object) -> None:
        pass


def connected(server: Server, damage: tuple[int, int] | None = None) -> Recorded:
    host, port = server.url.removeprefix("http://").split(":")
    sock = Recorded()
    sock.received, sock.damage = bytearray(), damage
    sock.connect((host, int(port)))
    return sock


def replaying(reply: bytes) -> Replayed:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(reply) * 4)
    theirs.sendall(reply)
    theirs.shutdown(socket.SHUT_WR)
    near = Replayed(fileno=ours.detach())
    near.peer = theirs  # type: ignore[attr-defined] # lives as long, so that the request can be sent
    return near


@pytest.mark.parametrize("name", ["batches", "take", "split", "rows", "plan", "refused"])
def test_any_damaged_byte_of_a_reply_is_noticed(small: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Status line, headers, schema, batch headers, bodies, checksums, end mark, JSON: each byte in turn."""
    ask = asks(small.snapshot.splits["train"].info)[name]
    recorded = connected(small)
    monkeypatch.setattr(socket, "create_connection", lambda *_: recorded)
    with Client(small.url, token=TOKEN, retry=NEVER) as client:
        answer = ask(client)
    reply = bytes(recorded.received)
    assert answer
    generator = random.Random(0)
    noticed = harmless = 0
    for position in range(len(reply)):
        for mask in (1 << position % 8, generator.randrange(1, 256))[: 2 if name == "batches" else 1]:
            damaged = bytearray(reply)
            damaged[position] ^= mask
            replayed = replaying(bytes(damaged))
            monkeypatch.setattr(socket, "create_connection", lambda *_, replayed=replayed: replayed)
            where = f"byte {position} ^ {mask:#x}: {bytes(damaged[max(0, position - 30) : position + 30])!r}"
            got = outcome(ask, small.url, timeout_s=5)
            if isinstance(got, CpstreamError):
                counts_when_it_comes_twice = isinstance(got, ContractMismatch) and not is_certain(got)
                assert is_retryable(got) or counts_when_it_comes_twice, f"{where}: {got!r}"
                noticed += 1
            else:
                assert got == answer, where
                harmless += 1  # a header that matters to nobody
            replayed.close()
            replayed.peer.close()  # type: ignore[attr-defined]
    print(f"{name}: {len(reply)} bytes, {noticed} damages noticed, {harmless} harmless")
    body = len(reply) - reply.index(b"\r\n\r\n") - 4
    assert noticed > 0.8 * body  # in an Arrow schema some bytes are only padding


@pytest.mark.parametrize("name", ["batches", "take", "split", "rows", "plan", "refused"])
def test_any_damaged_byte_of_a_request_is_noticed(small: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The service may answer another question; the client sees it, and never takes it for a refusal of its own."""
    ask = asks(small.snapshot.splits["train"].info)[name]
    whole = connected(small)
    monkeypatch.setattr(socket, "create_connection", lambda *_: whole)
    with Client(small.url, token=TOKEN, retry=NEVER) as client:
        answer = ask(client)
    noticed = harmless = doubted = 0
    for position in range(whole.sent):
        for mask in (1 << position % 8, 0x40 >> position % 7)[: 2 if name == "batches" else 1]:
            sock = connected(small, (position, mask))
            monkeypatch.setattr(socket, "create_connection", lambda *_, sock=sock: sock)
            where = f"byte {position} ^ {mask:#x}"
            got = outcome(ask, small.url, timeout_s=0.1)
            if isinstance(got, CpstreamError):
                assert is_retryable(got) or not is_certain(got), f"{where}: {got!r}"
                noticed, doubted = noticed + 1, doubted + (not is_retryable(got))
            else:
                assert got == answer, where
                harmless += 1
            sock.close()
    print(f"{name}: {whole.sent} bytes, {noticed} damages noticed, {doubted} of them asked again at once, {harmless} harmless")
    assert noticed > 0


@pytest.mark.parametrize("what", [TOKEN.encode(), b"Accept: application/vnd"])
def test_a_refusal_that_a_damaged_header_caused_is_not_final(small: Server, monkeypatch: pytest.MonkeyPatch, what: bytes) -> None:
    ask = asks(small.snapshot.splits["train"].info)["batches"]

    class Damaging(Recorded):
        def sendall(self, data, *args):  # type: ignore[no-untyped-def]
            if what in bytes(data) and not attempts[1:]:
                data = bytes(data).replace(what, what[:-1] + b"#")
            return super().sendall(data, *args)

    attempts: list[socket.socket] = []
    host, port = small.url.removeprefix("http://").split(":")

    def connect(*_: object) -> socket.socket:
        sock = Damaging()
        sock.received = bytearray()
        sock.connect((host, int(port)))
        attempts.append(sock)
        return sock

    with Client(small.url, token=TOKEN, retry=NEVER) as client:
        answer = ask(client)
    monkeypatch.setattr(socket, "create_connection", connect)
    with Client(small.url, token=TOKEN, retry=Retry(timeout_s=5)) as client:
        assert ask(client) == answer
    assert len(attempts) == 2


def test_a_stream_cut_between_two_batches_is_noticed(small: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow takes it for a whole one, even where the Content-Length agrees."""
    info = small.snapshot.splits["train"].info
    recorded = connected(small)
    monkeypatch.setattr(socket, "create_connection", lambda *_: recorded)
    with Client(small.url, token=TOKEN, retry=NEVER) as client:
        list(client.batches("train", BatchQuery(batch_size=2, num_workers=2), info=info))  # two record batches of two
    head, _, body = bytes(recorded.received).partition(b"\r\n\r\n")
    reader = pa.ipc.open_stream(body)
    first = reader.read_next_batch()
    assert reader.read_next_batch().num_rows < first.num_rows or first.num_rows == 2
    last = frame(3, "float32", ("embedding", "cps", "index"), 1).nbytes
    short = body[: -last - len(END_OF_STREAM)]
    assert pa.ipc.open_stream(short).read_all().num_rows == 2  # as if nothing were missing
    for end in (b"", END_OF_STREAM):
        announced = head.replace(b"content-length: %d" % len(body), b"content-length: %d" % len(short + end))
        replayed = replaying(announced + b"\r\n\r\n" + short + end)
        monkeypatch.setattr(socket, "create_connection", lambda *_, replayed=replayed: replayed)
        with Client(small.url, token=TOKEN, retry=NEVER) as client, pytest.raises(TransportError):
            list(client.batches("train", BatchQuery(batch_size=2, num_workers=2), info=info))
        replayed.close()
        replayed.peer.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [COLUMNS, ("embedding", "cps"), ("index",), ("file_path",)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 100, 40_000])
def test_a_frame_is_what_arrow_writes_and_a_checksum(columns, dtype, num_rows) -> None:  # type: ignore[no-untyped-def]
    made = frame(5, dtype, columns, num_rows, 7 * num_rows if "file_path" in columns else 0)
    schema = batch_schema(5, dtype, columns)
    body = bytes(made.nbytes - len(made.header))
    batch = pa.ipc.read_record_batch(pa.py_buffer(made.header + body), schema)
    assert batch.num_rows == num_rows
    assert batch.schema == schema
    assert made.nbytes % 8 == 0
    used = [buffer for column in batch.columns for buffer in column.buffers() if buffer]
    if body:  # no column reaches into the last eight bytes
        end = max(buffer.address + buffer.size for buffer in used)
        assert made.head_checksum == crc32c(made.header)
        assert num_rows == 0 or min(made.offsets.values()) >= len(made.header)
        assert end - min(buffer.address for buffer in used) <= len(body) - CHECKSUM_BYTES


def test_problems_carry_their_digest(small: Server) -> None:
    """A client that cannot check a refusal does not believe it: it would end a run."""
    with Client(small.url, token=TOKEN) as client:
        client.split("train")
    sock = connected(small)
    head = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\nX-Request-ID: {REQUEST_ID}\r\nConnection: close"
    sock.sendall(f"GET /v1/splits/nope HTTP/1.1\r\n{head}\r\n\r\n".encode())
    with sock:
        reply = sock.makefile("rb").read()
    head, _, body = reply.partition(b"\r\n\r\n")
    assert json.loads(body)["code"] == "unknown-split"
    assert b"content-digest: sha-256=:" in head
    without = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"content-digest"))
    replayed = replaying(without + b"\r\n\r\n" + body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", lambda *_: replayed)
        with Client(small.url, retry=NEVER) as client, pytest.raises(CorruptedError):
            client.split("nope")
    replayed.close()
    replayed.peer.close()  # type: ignore[attr-defined]
