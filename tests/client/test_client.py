"""The client against the real service: what it returns, how it fails, and that nothing hangs or stays behind."""

import gc
import multiprocessing
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from conftest import Server, poll, published, reserved_port, serving
from torch.utils.data import DataLoader

from cpstream_client import (
    BatchQuery,
    Client,
    CorruptedError,
    CpstreamError,
    DatasetChanged,
    ForgottenError,
    InvalidRequestError,
    NotFoundError,
    Retry,
    TransportError,
    UnauthorizedError,
    UnavailableError,
)
from cpstream_client.contract.bodies import SplitList
from cpstream_client.contract.wire import COLUMNS
from cpstream_client.epochs import prefetch as prefetch_module
from cpstream_client.epochs.prefetch import prefetch
from cpstream_client.stream import course as course_module
from cpstream_client.stream import fetch
from cpstream_client.stream.backlog import Backlog
from cpstream_client.stream.course import Course
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_client.transport import connection as connection_module
from cpstream_client.transport.retry import Patience
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

FAST = Retry(timeout_s=20, first_delay_s=0.01, max_delay_s=0.05, contact_timeout_s=20, changed_timeout_s=0)
ONCE = Retry(timeout_s=0)


def other_data(snapshot: Snapshot) -> Snapshot:
    """The same shapes with other numbers."""
    splits = {
        name: replace(
            split,
            embeddings=split.embeddings + np.float32(1),
            fingerprint="ffff" + split.fingerprint[4:],
            info=split.info.model_copy(update={"fingerprint": "ffff" + split.fingerprint[4:]}),
        )
        for name, split in snapshot.splits.items()
    }
    return replace(snapshot, splits=splits)


def idle(client: Client) -> list[object]:
    """The connections that wait for a request of this process."""
    return [connection for connections in client.service.sessions.here().transport.idle.values() for connection in connections]


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "cpstream-prefetch"]


# What it returns


def test_metadata_and_samples(server: Server) -> None:
    split = server.snapshot.splits["train"]
    paths = split.file_paths.to_pylist()
    with Client(server.url) as client:
        assert client.split("train") == published(split)
        assert {info.split: info for info in client.splits()} == {
            name: published(each) for name, each in server.snapshot.splits.items()
        }
        assert client.alignment("train") == split.report
        assert [row.file_path for row in client.rows("train", 5, 3).rows] == paths[5:8]
        assert client.file_paths("train") == paths
        whole = client.load("train")
        assert np.array_equal(whole.embeddings, split.embeddings)
        assert np.array_equal(whole.cps, split.cps)
        record_batches = list(client.record_batches("train", BatchQuery(batch_size=700, columns=COLUMNS)))
        assert pa.Table.from_batches(record_batches).column("file_path").to_pylist() == paths
        assert [batch.num_rows for batch in record_batches] == [700, 700, 400]


def test_the_audit_of_any_query(server: Server) -> None:
    """The plan's route knows fewer parameters than a query has."""
    query = BatchQuery(batch_size=4, shuffle="uniform", epoch=2, rank=1, world_size=2, columns=COLUMNS, dtype="float16", limit=3)
    with Client(server.url) as client:
        audit = client.plan("train", 2, query)
        batch = list(client.batches("train", query))[2]
    assert batch.index is not None
    assert [sample.index for sample in audit.ranks[1].samples] == batch.index.tolist()


def test_batches_without_a_query_object(server: Server) -> None:
    with Client(server.url) as client:
        query = BatchQuery(batch_size=700, columns=("index",))
        for got in (client.batches("train", batch_size=700, columns=("index",)), client.batches("train", query)):
            assert [batch.num_rows for batch in got] == [700, 700, 400]
        assert [batch.num_rows for batch in client.record_batches("train", query, batch_size=1000)] == [1000, 800]
        with pytest.raises(TypeError, match="bach_size"):
            client.batches("train", bach_size=7)


@pytest.mark.parametrize("columns", [("embedding", "cpss"), ()])
def test_a_column_that_there_is_not_is_refused(server: Server, columns: tuple[str, ...]) -> None:
    said = "columns (has 'cpss'|is empty); it must name some of embedding, cps, index, file_path"
    query = BatchQuery(columns=columns)  # type: ignore[arg-type]
    with Client(server.url) as client:
        for ask in (lambda: client.batches("train", query), lambda: list(client.record_batches("train", query))):
            with pytest.raises(ValueError, match=said):
                ask()
        if columns:
            with pytest.raises(ValueError, match=said):
                client.take("train", [1], columns=columns)  # type: ignore[arg-type]


def test_take(server: Server) -> None:
    split = server.snapshot.splits["train"]
    with Client(server.url) as client:
        for indices in ([], [3], [7, 0, 7, 1799], np.array([[1, 2], [3, 4]], np.uint8)):
            batch = client.take("train", indices, dtype="float16", columns=COLUMNS)
            flat = np.asarray(indices, np.int64).reshape(-1)
            assert np.array_equal(batch.embeddings, split.embeddings[flat].astype(np.float16))
            assert batch.file_paths == split.file_paths.take(flat).to_pylist()
        assert client.take("train", [1], columns=("cps",)).index is None
        for wrong in ([0.5], ["a"], [True]):
            with pytest.raises(TypeError, match="whole numbers"):
                client.take("train", wrong)
        with pytest.raises(InvalidRequestError, match="1800"):
            client.take("train", [1800])


@pytest.mark.parametrize("columns", [COLUMNS, ("embedding",), ("file_path",), ("index", "cps")])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_short_ranks_get_empty_batches_of_any_columns(
    run_server: Callable[..., Server], snapshot: Snapshot, columns: tuple[str, ...], num_workers: int
) -> None:
    """remainder "exact", 5 samples, 4 ranks, batches of one: three ranks end on an empty batch."""
    split = snapshot.splits["dev"]
    info = split.info.model_copy(update={"num_samples": 5})
    five = replace(split, embeddings=split.embeddings[:5], cps=split.cps[:5], file_paths=split.file_paths[:5], info=info)
    server = run_server(snapshot=replace(snapshot, splits={"dev": five}))
    query = BatchQuery(batch_size=1, rank=2, world_size=4, remainder="exact", columns=columns)  # type: ignore[arg-type]
    with Client(server.url) as client:
        got = []
        for worker in range(num_workers):
            got += list(client.batches("dev", replace(query, worker=worker, num_workers=num_workers), info=info))
    assert [batch.num_rows for batch in got] == [1, 0]
    last = got[-1]
    assert (last.embeddings is None) == ("embedding" not in columns)
    assert last.embeddings is None or last.embeddings.shape == (0, info.embedding_dim)
    assert last.cps is None or last.cps.shape == (0,)
    assert last.index is None or last.index.shape == (0,)
    assert last.file_paths is None or last.file_paths == []


def test_headers_of_another_release_of_the_service_cost_one_retry(server: Server) -> None:
    """What a batch's header looks like is remembered from epoch to epoch, and forgotten when it is no longer so."""
    split = server.snapshot.splits["train"]
    with Client(server.url, retry=FAST) as client:
        assert client.take("train", [1]).num_rows == 1
        layouts = client._memory.layouts
        for key, layout in layouts.items():
            layouts[key] = replace(layout, header=layout.header[:-8] + b"another!", body_bytes=layout.body_bytes + 64)
        assert np.array_equal(client.take("train", [7]).embeddings, split.embeddings[[7]])
        client.service = replace(client.service, retry=ONCE)
        assert np.array_equal(client.take("train", [8]).embeddings, split.embeddings[[8]])


def test_one_client_serves_many_threads(server: Server) -> None:
    split = server.snapshot.splits["train"]
    with Client(server.url) as client, ThreadPoolExecutor(8) as threads:

        def check(start: int) -> None:
            wanted = np.arange(start, start + 5)
            assert np.array_equal(client.take("train", wanted).embeddings, split.embeddings[wanted])

        list(threads.map(check, range(200)))
        kept = len(idle(client))
    assert 1 <= kept <= 8


def test_a_forked_process_opens_its_own_connections(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared socket, parent and child would read each other's replies."""
    monkeypatch.setattr(connection_module, "_MAX_IDLE_S", 60.0)  # it lives on, however long the child takes
    with Client(server.url) as client:
        client.split("train")
        (connection,) = idle(client)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                assert client.split("dev").split == "dev"
                assert connection not in idle(client)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert client.split("test").split == "test"
        assert idle(client) == [connection]


def test_a_client_pickles_without_its_connections(server: Server) -> None:
    with Client(server.url, token="t", timeout_s=7, retry=FAST) as client:
        client.split("train")
        with pickle.loads(pickle.dumps(client)) as copy:
            assert copy.split("dev").split == "dev"
            assert (copy.service.options.token, copy.service.options.timeout_s, copy.service.retry) == ("t", 7, FAST)
            assert "token" not in repr(copy.service.options)


@pytest.mark.parametrize("token", ["line\nbreak", "naïve", "tab\there"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token") as caught:
        Client("http://data:8000", token=token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_timeout_must_be_positive(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        Client("http://data:8000", timeout_s=timeout_s)


# How it fails


def test_what_cannot_be_retried_fails_at_once_and_says_where(
    run_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="cpstream.access")
    server = run_server(token="right")
    waits: list[float] = []
    wait_s = Patience.wait_s
    monkeypatch.setattr(Patience, "wait_s", lambda *args: waits.append(wait_s(*args)) or waits[-1])
    info = server.snapshot.splits["train"].info
    wrong_data = info.model_copy(update={"fingerprint": "0" * 32})
    at_once = Retry(changed_timeout_s=0)
    with Client(server.url, token="right", retry=at_once) as client, Client(server.url, token="wrong") as stranger:
        cases: list[tuple[type, str, int, Callable[[], object]]] = [
            (NotFoundError, "unknown-split", 404, lambda: client.split("trian")),
            (UnauthorizedError, "unauthorized", 401, lambda: stranger.splits()),
            (UnauthorizedError, "unauthorized", 401, lambda: list(stranger.batches("train", info=info))),
            (DatasetChanged, "dataset-changed", 409, lambda: list(client.batches("train", info=wrong_data))),
            (DatasetChanged, "dataset-changed", 409, lambda: client.take("train", [0], info=wrong_data)),
            (InvalidRequestError, "index-out-of-range", 422, lambda: client.rows("train", 5000)),
        ]
        for kind, code, status, ask in cases:
            caplog.clear()
            with pytest.raises(kind) as caught:
                ask()
            error = caught.value
            assert (error.code, error.status) == (code, status)
            assert error.url.startswith(server.url + "/v1/splits")
            assert error.url in str(error)
            assert error.request_id in str(error)
            poll(lambda: error.request_id in [record.request_id for record in caplog.records])  # type: ignore[attr-defined] # noqa: B023
            assert len([record for record in caplog.records if record.status == status]) <= 2  # type: ignore[attr-defined]
    assert not any(waits)
    with Client(server.url, token="right", retry=at_once) as client, pytest.raises(DatasetChanged) as changed:
        list(client.batches("train", info=wrong_data))
    assert (changed.value.expected, changed.value.actual) == ("0" * 32, info.fingerprint)


def test_nobody_at_the_url_is_said_soon() -> None:
    with reserved_port() as port:
        client = Client(f"http://127.0.0.1:{port}", retry=Retry(contact_timeout_s=0.3))
        said = rf"127\.0\.0\.1:{port}.*refused.*gave up after \d+ tries.*is the url right"
        with pytest.raises(TransportError, match=said):
            client.splits()
    assert Retry().contact_timeout_s <= 10


def test_another_service_is_recognised() -> None:
    async def pages(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "lifespan":
            return
        headers = [(b"content-type", b"application/json" if b"json" in scope["query_string"] else b"text/html")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"splits": []}'})

    with serving(pages) as url, Client(url, retry=ONCE) as client:
        with pytest.raises(CorruptedError, match="text/html"):
            client.splits()
        with pytest.raises(CorruptedError, match="is this a cpstream service"):
            client._json("/v1/splits", SplitList, {"json": "1"})


def test_a_service_that_was_there_is_waited_for(snapshot: Snapshot) -> None:
    """Longer than for one that never was: contact_timeout_s is over by the time it is back."""
    retry = Retry(timeout_s=60, first_delay_s=0.01, max_delay_s=0.02, contact_timeout_s=0.0)
    app = create_app(snapshot, ServeSettings())
    with reserved_port() as port, ExitStack() as stack:
        with serving(app, port) as url:
            client = stack.enter_context(Client(url, retry=retry))
            info = client.split("train")
        failures: list[BaseException] = []
        tried = threading.Event()
        connect = socket.create_connection

        def noting(*args, **options):  # type: ignore[no-untyped-def]
            try:
                return connect(*args, **options)
            except OSError as error:
                failures.append(error)
                if len(failures) > 5:
                    tried.set()
                raise

        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(socket, "create_connection", noting)
        with ThreadPoolExecutor(2) as threads:
            copy = pickle.loads(pickle.dumps(client))
            asked = [threads.submit(client.split, "train"), threads.submit(copy.split, "train")]
            assert tried.wait(30)
            with serving(app, port):
                assert [future.result() for future in asked] == [info, info]
                copy.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_replaced_data_stop_a_loop_with_a_typed_error(
    snapshot: Snapshot, forkserver: multiprocessing.context.BaseContext, num_workers: int
) -> None:
    with reserved_port() as port:
        with serving(create_app(snapshot, ServeSettings()), port) as url:
            dataset = StreamingEmbeddingsDataset(Client(url, retry=FAST), "train", columns=("index",))
            assert dataset.info.fingerprint == snapshot.splits["train"].fingerprint
        with serving(create_app(other_data(snapshot), ServeSettings()), port):
            delivered = []
            context = forkserver if num_workers else None
            loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, multiprocessing_context=context)
            with pytest.raises(DatasetChanged) as caught:
                delivered += list(loader)
    assert delivered == []
    error = caught.value.with_traceback(None)
    del caught, loader
    gc.collect()  # the loader's iterator is kept by the traceback: let it end its workers here, not in some other thread
    assert (error.status, error.code) == (409, "dataset-changed")
    assert error.expected == snapshot.splits["train"].fingerprint
    assert error.actual == "ffff" + error.expected[4:]
    assert error.url.startswith(f"{url}/v1/splits/train/batches?")
    assert len(error.request_id) == 16


# The background thread


@pytest.mark.parametrize("error", [MemoryError("full"), KeyError("a bug"), SystemExit(3), ForgottenError("x")])
def test_any_error_in_the_thread_reaches_the_loop(server: Server, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    real = course_module.read_batches
    monkeypatch.setattr(course_module, "WIRE_BATCH_BYTES", 128)  # one training batch a record

    def broken(*args):  # type: ignore[no-untyped-def]
        batches = real(*args)
        yield next(batches)
        raise error

    monkeypatch.setattr(course_module, "read_batches", broken)
    dataset = StreamingEmbeddingsDataset(server.url, "train", batch_size=16, columns=("index",))
    loop = iter(dataset)
    assert next(loop)[0].tolist() == list(range(16))  # what had arrived before
    with pytest.raises(type(error)):
        next(loop)
    poll(lambda: not prefetch_threads())


class Sized:
    nbytes = 1


def nobody(items: int, nbytes: int) -> None:
    """Who is told what lay ready."""


def test_an_iterator_that_fails_to_begin_or_to_end_is_no_hang() -> None:
    class NoIterator:
        def __iter__(self) -> Iterator[Sized]:
            raise ZeroDivisionError

    def bad_end() -> Iterator[Sized]:
        try:
            yield Sized()
            yield Sized()
            raise ValueError("first")
        finally:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(prefetch(NoIterator(), Backlog(10), lambda: None, nobody))
    with pytest.raises(ZeroDivisionError):
        list(prefetch(bad_end(), Backlog(10), lambda: None, nobody))


def test_a_forked_process_without_the_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_module, "_CHECK_EVERY_S", 0.05)
    more = threading.Event()

    def items() -> Iterator[Sized]:
        yield Sized()
        more.wait()
        yield Sized()

    with closing(prefetch(items(), Backlog(10), more.set, nobody)) as fetched:
        next(fetched)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                next(fetched)
            except CpstreamError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        more.set()
        assert len(list(fetched)) == 1


def test_fetching_ahead_keeps_to_its_budget() -> None:
    made = 0

    def items() -> Iterator[Sized]:
        nonlocal made
        while made < 100:
            made += 1
            yield Sized()

    taken = 0
    with closing(prefetch(items(), Backlog(10), lambda: None, nobody)) as fetched:
        for _ in fetched:
            taken += 1
            assert made <= taken + 12
    assert taken == 100


@pytest.mark.parametrize("headers", [[], [(b"connection", b"close")]])
def test_leaving_a_loop_wakes_a_thread_that_waits(server: Server, headers: list[tuple[bytes, bytes]]) -> None:
    """For bytes of a reply; http.client forgets its socket where the connection will close."""
    asked = threading.Event()

    async def stalls(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "lifespan":
            return
        length = [(b"content-length", b"1000"), (b"content-type", b"application/vnd.apache.arrow.stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers + length})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        asked.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(stalls) as url:
        _leave_while_waiting(url, server, asked)


def test_leaving_a_loop_over_another_transport_waits_no_longer_than_its_timeout(server: Server) -> None:
    asked = threading.Event()

    async def stalls(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            asked.set()
            while (await receive())["type"] != "http.disconnect":
                pass

    with serving(stalls) as url:
        _leave_while_waiting(url, server, asked, http=lambda: httpx.Client(timeout=0.5, trust_env=False))


def test_leaving_a_loop_wakes_a_thread_between_two_tries(server: Server) -> None:
    asked = threading.Event()

    async def overloaded(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "lifespan":
            return
        headers = [(b"retry-after", b"3600"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body"})
        asked.set()

    with serving(overloaded) as url:
        _leave_while_waiting(url, server, asked)


def _leave_while_waiting(url: str, server: Server, asked: threading.Event, **options: Any) -> None:
    course = Course(BatchQuery(), server.snapshot.splits["train"].info)
    with Client(url, **options) as client:
        fetcher = fetch.EpochFetcher(client.service, course, client._memory)
        loop = prefetch(fetcher, Backlog(10), fetcher.abort, nobody)
        with ThreadPoolExecutor(1) as consumer:
            waiting = consumer.submit(next, loop, None)
            assert asked.wait(20)
            fetcher.abort()
            assert waiting.result(20) is None
        loop.close()
    assert not prefetch_threads()


def test_a_proxy_that_closes_after_every_reply(snapshot: Snapshot) -> None:
    """http.client lets go of the socket at the head of such a reply; the body is still to come."""
    app = create_app(snapshot, ServeSettings())

    async def closes(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        async def closing_send(message) -> None:  # type: ignore[no-untyped-def]
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, closing_send if scope["type"] == "http" else send)

    split = snapshot.splits["train"]
    with serving(closes) as url, Client(url, retry=ONCE) as client:
        assert np.array_equal(client.load("train").embeddings, split.embeddings)
        assert np.array_equal(client.take("train", [3, 1]).embeddings, split.embeddings[[3, 1]])
        assert client.split("train") == published(split)


@pytest.mark.parametrize("status", [502, 503, 504, 429])
def test_a_gateway_that_stays_away_is_named(status: int) -> None:
    async def gateway(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<html>"})

    retry = Retry(timeout_s=0.2, first_delay_s=0.01, max_delay_s=0.01)
    with serving(gateway) as url, Client(url, retry=retry) as client, pytest.raises(UnavailableError) as caught:
        client.splits()
    assert caught.value.status == status
    assert caught.value.url == f"{url}/v1/splits"
