"""Several endpoints: spread over, failed over, avoided while they are dead, and named when all are."""

import multiprocessing
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import Server, serving
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch.utils.data import DataLoader

from cpstream_client import BatchQuery, Client, Retry, TransportError, UnavailableError
from cpstream_client.stream import course as course_module
from cpstream_client.stream import fetch
from cpstream_client.stream.course import Ask, Course
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_client.transport import endpoints as replicas
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

pytestmark = pytest.mark.usefixtures("short_path")  # requests are counted
RETRY = Retry(timeout_s=30, first_delay_s=0.01, max_delay_s=0.05, contact_timeout_s=30)
QUERY = BatchQuery(batch_size=8, shuffle="uniform", seed=4, columns=("embedding", "index"))


@pytest.fixture(autouse=True)
def _small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course_module, "WIRE_BATCH_BYTES", 2_000)


class Counting:
    """An app that counts the requests for batches, and calls back at each."""

    def __init__(self, app: ASGIApp, at_request: Callable[[int], None] = lambda count: None) -> None:
        self.app, self.count, self.at_request = app, 0, at_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/batches"):
            self.count += 1
            self.at_request(self.count)
        await self.app(scope, receive, send)


@pytest.fixture
def pair(snapshot: Snapshot) -> Iterator[list[tuple[str, Counting]]]:
    with ExitStack() as stack:
        apps = [Counting(create_app(snapshot, ServeSettings())) for _ in range(2)]
        yield [(stack.enter_context(serving(app)), app) for app in apps]


def client(urls: list[str], request_bytes: int = 20_000, retry: Retry = RETRY) -> Client:
    made = Client(urls, timeout_s=5, retry=retry)
    made.service = replace(made.service, request_bytes=request_bytes)
    return made


def closing(app: ASGIApp) -> ASGIApp:
    """The app, its connections closed after each reply."""

    async def closes(scope: Scope, receive: Receive, send: Send) -> None:
        async def closing_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, closing_send if scope["type"] == "http" else send)

    return closes


def first_ask(course: Course) -> Ask:
    ask = course.ask(0, 20_000)
    assert ask is not None
    return ask


def indices(batches: Iterator[object]) -> list[int]:
    return [int(index) for batch in batches for index in batch.index]  # type: ignore[attr-defined]


@contextmanager
def deaf() -> Iterator[tuple[str, Counter[str]]]:
    """A port where each connection is closed as soon as it asks something; counts them. One that asks nothing delays none."""
    tries: Counter[str] = Counter()

    def close(sock: socket.socket) -> None:
        with sock:
            if sock.recv(1) != b"":
                tries["closed"] += 1

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_all() -> None:
            with ThreadPoolExecutor() as each:
                while True:
                    try:
                        sock, _ = listener.accept()
                    except OSError:
                        return
                    each.submit(close, sock)

        thread = threading.Thread(target=close_all)
        thread.start()
        yield "http://{}:{}".format(*listener.getsockname()), tries
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_ranks_and_workers_spread_over_the_endpoints(
    pair: list[tuple[str, Counting]], forkserver: multiprocessing.context.BaseContext
) -> None:
    (one, first), (two, second) = pair
    for rank, expected in [(0, (True, False)), (1, (False, True))]:
        first.count = second.count = 0
        dataset = StreamingEmbeddingsDataset(client([one, two]), "dev", columns=("index",), rank=rank, world_size=2)
        list(dataset)
        assert (first.count > 0, second.count > 0) == expected
    first.count = second.count = 0
    dataset = StreamingEmbeddingsDataset(client([one, two]), "dev", batch_size=50, columns=("index",), rank=0, world_size=1)
    list(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=forkserver))
    assert first.count == second.count > 0


def test_an_endpoint_that_dies_in_mid_epoch_is_not_missed(snapshot: Snapshot, server: Server, port: int) -> None:
    with ExitStack() as stack:
        dying = stack.enter_context(serving(create_app(snapshot, ServeSettings())))
        survivor = Counting(create_app(snapshot, ServeSettings()))
        urls = [dying, stack.enter_context(serving(survivor, port))]
        info = snapshot.splits["train"].info
        course = Course(QUERY, info)
        got: list[int] = []
        fetcher = fetch.EpochFetcher(client(urls).service, course, Client(urls)._memory)
        for batch in fetcher:
            got += batch.index.tolist()
            if len(got) > 600 and dying:
                stop = stack.pop_all()  # both; the survivor comes up again on its own port
                stop.close()
                stack.enter_context(serving(survivor, port))
                dying = ""
        with Client(server.url) as whole:
            assert got == indices(whole.batches("train", QUERY))
        assert survivor.count > 0


@pytest.mark.parametrize("num_dead", [1, 2])
def test_a_dead_endpoint_costs_one_try(server: Server, monkeypatch: pytest.MonkeyPatch, num_dead: int) -> None:
    """Not one a request: that it failed is remembered for a while, from epoch to epoch."""
    monkeypatch.setattr(replicas, "_COOLDOWN_S", 1000.0)
    monkeypatch.setattr(replicas, "_MAX_COOLDOWN_S", 1000.0)
    with ExitStack() as stack:
        dead = [stack.enter_context(deaf()) for _ in range(num_dead)]
        remote = stack.enter_context(client([*(url for url, _ in dead), server.url]))
        dataset = StreamingEmbeddingsDataset(remote, "train", batch_size=8, columns=("index",), rank=0, world_size=1)
        for _ in range(3):
            assert sum(len(index) for (index,) in dataset) == 1800
        assert [tries["closed"] for _, tries in dead] == [1] * num_dead


def test_an_endpoint_that_is_back_is_used_again(pair: list[tuple[str, Counting]], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same epoch, after its rest."""
    monkeypatch.setattr(replicas, "_COOLDOWN_S", 0.0)
    (one, first), (two, second) = pair
    with client([one, two]) as remote:
        remote.service.replicas.failed(remote.service.endpoints[0])
        course = Course(QUERY, remote.split("train"))
        assert len(indices(iter(fetch.EpochFetcher(remote.service, course, remote._memory)))) == 1800
    assert first.count > 1
    assert second.count == 0


@pytest.mark.parametrize("hooks", [None, {"request": [lambda request: None]}])
def test_the_next_request_goes_out_before_the_last_reply_ends(pair: list[tuple[str, Counting]], hooks: Any) -> None:
    """Without httpx's send by this thread, with it by another one."""
    url, app = pair[0]
    asked_ahead = threading.Event()
    app.at_request = lambda count: asked_ahead.set() if count == 2 else None
    made = Client(url, timeout_s=5, retry=RETRY, event_hooks=hooks)
    made.service = replace(made.service, request_bytes=20_000)
    with made as remote:
        course = Course(QUERY, remote.split("train"))
        per_request = first_ask(course).count
        batches = iter(fetch.EpochFetcher(remote.service, course, remote._memory))
        for _ in range(per_request - fetch.ASK_AHEAD_BATCHES):
            next(batches)
        assert not asked_ahead.is_set()
        next(batches)
        assert asked_ahead.wait(20)
        assert hooks or "cpstream-ask" not in [thread.name for thread in threading.enumerate()]
        batches.close()  # type: ignore[attr-defined] # the reply that is under way must not be left open: that would be a warning


def test_an_endpoint_that_cannot_be_asked_ahead_costs_nothing_that_has_arrived(
    pair: list[tuple[str, Counting]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request goes out before the last reply has been read; its failure must not throw away the rest of that reply."""
    (one, first), (two, second) = pair
    first.app = closing(first.app)  # so that the next request cannot go over a connection that is there
    connect = socket.create_connection
    refused: list[object] = []

    def refusing(address, *args):  # type: ignore[no-untyped-def]
        if one.endswith(f":{address[1]}") and first.count >= 1:
            refused.append(address)
            raise ConnectionRefusedError(111, "Connection refused")
        return connect(address, *args)

    with client([one, two]) as remote:
        course = Course(QUERY, remote.split("train"))
        monkeypatch.setattr(socket, "create_connection", refusing)
        assert len(indices(iter(fetch.EpochFetcher(remote.service, course, remote._memory)))) == 1800
    assert len(refused) == 1
    assert first.count == 1
    record_batches = len(course)
    per_request = first_ask(course).count
    assert second.count == -(-(record_batches - per_request) // per_request)  # not one more: nothing was fetched twice


def test_a_draining_endpoint_is_left_at_once(pair: list[tuple[str, Counting]], snapshot: Snapshot) -> None:
    """Its Retry-After is for clients that have nowhere else to go."""

    async def draining(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [(b"retry-after", b"3600"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body"})

    with serving(draining) as url:
        with client([url, pair[0][0]], retry=Retry(timeout_s=20)) as remote:
            assert len(indices(remote.batches("train", QUERY))) == 1800
        alone = client([url], retry=Retry(timeout_s=0.2))
        with pytest.raises(UnavailableError, match="gave up after 2 tries"):
            alone.splits()


def test_when_all_are_dead_the_error_names_them() -> None:
    with ExitStack() as stack:
        urls = []
        for _ in range(3):
            reserved = stack.enter_context(socket.socket())
            reserved.bind(("127.0.0.1", 0))
            urls.append(f"http://127.0.0.1:{reserved.getsockname()[1]}")
        # All three must have been tried by then.
        impatient = Retry(timeout_s=3, first_delay_s=0.05, max_delay_s=0.1, contact_timeout_s=3)
        with pytest.raises(TransportError) as caught:
            client(urls, retry=impatient).splits()
        for url in urls:
            assert f"{url}/v1/splits: " in str(caught.value)


def test_a_repeated_url_is_one_endpoint(server: Server) -> None:
    with Client([server.url, server.url]) as remote:
        assert len(remote.service.endpoints) == 1
        assert np.array_equal(remote.take("dev", [1]).index, [1])
    with pytest.raises(ValueError, match="at least one"):
        Client([])
