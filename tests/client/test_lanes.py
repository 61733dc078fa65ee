"""Several connections for one stream: how many, in what order their batches come, and what a fault or a refusal costs."""

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import torch
from conftest import Server, grown, lengthen, poll, serving
from oracle import FORKING, assert_same, epoch_of, local
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch.utils.data import DataLoader, RandomSampler

from cpstream_client import BatchQuery, Client, DatasetChanged, Retry
from cpstream_client.stream import course as course_module
from cpstream_client.stream.backlog import Backlog
from cpstream_client.stream.course import Course
from cpstream_client.stream.fetch import EpochFetcher
from cpstream_client.stream.lanes import Flow
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_client.torch import loader as make_loader
from cpstream_client.transport import pace, session
from cpstream_client.transport.pace import MAX_CONNECTIONS, Pace
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

pytestmark = FORKING
QUERY = BatchQuery(batch_size=8, shuffle="uniform", seed=4, columns=("embedding", "index"))
RETRY = Retry(timeout_s=30, first_delay_s=0.01, max_delay_s=0.05, changed_timeout_s=0)
REQUEST_BYTES, RECORD_BYTES = 20_000, 5_000


@pytest.fixture(autouse=True)
def _small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course_module, "WIRE_BATCH_BYTES", RECORD_BYTES)


@dataclass
class Gate:
    """An app that knows which requests for batches are open, and what their queries are.

    at_request: called with the number of each, from 1 on; what it returns, if anything, is answered in the app's place.
    """

    app: ASGIApp
    at_request: Callable[[int], Any] = lambda number: None
    open: int = 0
    most: int = 0
    queries: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/batches"):
            await self.app(scope, receive, send)
            return
        self.open += 1
        self.most = max(self.most, self.open)
        self.queries.append(scope["query_string"].decode())
        try:
            instead = self.at_request(len(self.queries))
            if asyncio.iscoroutine(instead):
                instead = await instead
            await (instead or self.app)(scope, receive, send)
        finally:
            self.open -= 1


@contextmanager
def gate(snapshot: Snapshot, **settings: Any) -> Iterator[tuple[str, Gate]]:
    app = Gate(create_app(snapshot, ServeSettings(**settings)))
    with serving(app) as url:
        yield url, app


def client(url: str | list[str], max_connections: int = 4, **options: Any) -> Client:
    made = Client(url, retry=RETRY, max_connections=max_connections, **{"timeout_s": 10, **options})
    made.service = replace(made.service, request_bytes=REQUEST_BYTES)
    return made


def fetcher(remote: Client, backlog: Backlog | None = None) -> EpochFetcher:
    return EpochFetcher(remote.service, Course(QUERY, remote.split("train")), remote._memory, backlog=backlog)


def indices(batches: Iterator[object]) -> list[int]:
    return [int(index) for batch in batches for index in batch.index]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def expected(snapshot: Snapshot) -> list[int]:
    order: list[int] = QUERY.plan(len(snapshot.splits["train"].cps)).order().tolist()
    return order


@pytest.mark.usefixtures("short_path")
def test_one_connection_is_enough_on_a_short_path(snapshot: Snapshot, expected: list[int]) -> None:
    with gate(snapshot) as (url, app), client(url, MAX_CONNECTIONS) as remote:
        fetched = fetcher(remote)
        assert indices(iter(fetched)) == expected
        assert fetched.flow.connections == 1
        assert app.most <= 2  # the next request goes out before the last reply ends
        assert 0 < remote.service.round_trip_s(remote.service.endpoints[0]) < 0.5  # type: ignore[operator]


@pytest.mark.parametrize(
    "options",
    [{"event_hooks": {"request": [lambda request: None]}}, {"timeout_s": None, "http": lambda: httpx.Client(trust_env=False)}],
)
def test_any_transport_carries_several_requests_at_once(
    snapshot: Snapshot, expected: list[int], long_path: list[Flow], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(session, "_ANSWER_S", 0.0)  # a transport that is not ours does not say how long its handshakes took
    with gate(snapshot) as (url, app), client(url, **options) as remote:

        async def together(number: int) -> None:
            while number <= 4 and app.most < 4:
                await asyncio.sleep(0.001)

        app.at_request = together
        assert indices(iter(fetcher(remote))) == expected
        assert app.most == long_path[-1].connections == 4


@pytest.mark.usefixtures("short_path")
@pytest.mark.parametrize(("processors", "connections"), [(2, 1), (4, 2)])
def test_a_near_service_of_several_processes_is_asked_over_as_many_connections_as_there_are_processors_for(
    run_server: Callable[..., Server], expected: list[int], monkeypatch: pytest.MonkeyPatch, processors: int, connections: int
) -> None:
    monkeypatch.setattr(pace, "processors", lambda: processors)
    with client(run_server(workers=2).url) as remote:
        assert remote.split("train").workers == 2
        fetched = EpochFetcher(remote.service, Course(QUERY, remote.split("train")), remote._memory, workers=2)
        assert indices(iter(fetched)) == expected
        assert fetched.flow.connections == connections
        assert len(list(remote.batches("train", QUERY))) == -(-1800 // 8)


def test_requests_are_in_flight_at_once_and_their_batches_in_order(
    snapshot: Snapshot, expected: list[int], long_path: list[Flow]
) -> None:
    with gate(snapshot) as (url, app), client(url) as remote:

        async def answered_last_first(number: int) -> None:
            """Nobody is answered until four are there, and then the last of them first."""
            if number <= 4:
                while app.most < 4:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.05 * (4 - number))

        app.at_request = answered_last_first
        fetched = fetcher(remote)
        assert indices(iter(fetched)) == expected
        assert app.most == fetched.flow.connections == 4
        assert not fetched.flow.faults


def test_connections_of_metadata_and_of_earlier_epochs_are_used_again(
    snapshot: Snapshot, expected: list[int], long_path: list[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cpstream_client.transport.connection import Route

    monkeypatch.setattr("cpstream_client.transport.connection._MAX_IDLE_S", 60.0)
    opened = []
    real = Route.open
    monkeypatch.setattr(Route, "open", lambda self, *to: opened.append(to) or real(self, *to))  # type: ignore[func-returns-value]
    with gate(snapshot) as (url, _), client(url) as remote:
        for _ in range(3):
            assert indices(iter(fetcher(remote))) == expected
    assert len(opened) <= 4


def test_an_overloaded_service_is_asked_less_and_no_fault_is_counted(
    snapshot: Snapshot, expected: list[int], long_path: list[Flow]
) -> None:
    busy = create_app(snapshot, ServeSettings(max_streams=1))
    with serving(busy) as other, gate(snapshot) as (url, app), client(url, 8) as remote:
        Client(other).splits()
        busy.state.service.batch_server.streams.count = 1

        async def crowded(number: int) -> ASGIApp | None:
            """Two at a time are answered."""
            if app.open > 2:
                return busy
            await asyncio.sleep(0.01)
            return None

        app.at_request = crowded
        fetched = fetcher(remote)
        assert indices(iter(fetched)) == expected
        assert fetched.flow.faults == 0
        # Of the first eight, six may be refused; from then on a refusal is a try whether the service has more time by now.
        assert 1 <= fetched.flow.refused <= 6 + fetched.flow.requests / 8


def test_a_refusal_that_is_read_when_the_others_have_ended_is_no_fault(
    snapshot: Snapshot, expected: list[int], long_path: list[Flow]
) -> None:
    """On a busy machine the threads that read come late: the reply that was in a refusal's way may be at its end by then."""
    busy = create_app(snapshot, ServeSettings(max_streams=1))
    with serving(busy) as other, gate(snapshot) as (url, app), client(url, 2) as remote:
        Client(other).splits()
        busy.state.service.batch_server.streams.count = 1
        fetched = fetcher(remote, Backlog(2 * REQUEST_BYTES))

        async def late(number: int) -> ASGIApp | None:
            if number != 2:
                return None
            while fetched._lanes is None or fetched._lanes._busy != 1:
                await asyncio.sleep(0.001)
            return busy

        app.at_request = late
        batches = iter(fetched)
        got = indices(iter([next(batches)]))
        poll(lambda: fetched.flow.refused + fetched.flow.faults)  # while the loop computes, and there is no room for more
        assert got + indices(batches) == expected
        assert (fetched.flow.faults, fetched.flow.refused) == (0, 1)


def test_a_fault_costs_one_request(snapshot: Snapshot, expected: list[int], long_path: list[Flow]) -> None:
    with gate(snapshot) as (url, app), client(url) as remote:
        whole = fetcher(remote)
        assert indices(iter(whole)) == expected
        undisturbed = sorted(app.queries)
        app.queries.clear()

        async def cut(scope: Scope, receive: Receive, send: Send) -> None:
            """The reply ends after its first piece, at about half of it."""

            async def cutting(message: Message) -> None:
                if message["type"] == "http.response.body":
                    half = bytes(message["body"])[: len(message["body"]) // 2]
                    await send({**message, "body": half, "more_body": True})
                    raise ConnectionResetError
                await send(message)

            await app.app(scope, receive, cutting)

        app.at_request = lambda number: cut if number == 3 else None
        fetched = fetcher(remote)
        assert indices(iter(fetched)) == expected
        assert (fetched.flow.faults, fetched.flow.requests) == (1, whole.flow.requests + 1)
        again = [query for query in app.queries if query not in undisturbed]
        assert len(again) == 1  # for the rest of the reply that was cut


def test_what_lies_before_a_final_error_is_delivered(snapshot: Snapshot, expected: list[int], long_path: list[Flow]) -> None:
    other = replace(snapshot, splits={"train": snapshot.splits["dev"]})
    replaced = create_app(other, ServeSettings())
    with serving(replaced) as new, gate(snapshot) as (url, app), client(url) as remote:
        Client(new).splits()  # it has started
        # By its place in the epoch: requests may arrive in any order.
        app.at_request = lambda number: replaced if int(parse_qs(app.queries[number - 1]).get("start", ["0"])[0]) > 200 else None
        got: list[int] = []
        with pytest.raises(DatasetChanged):
            got.extend(int(index) for batch in fetcher(remote) for index in batch.index)  # type: ignore[union-attr]
    assert got == expected[: len(got)]
    assert len(got) > 8


def test_no_more_is_under_way_than_may_be_fetched_ahead(snapshot: Snapshot, expected: list[int], long_path: list[Flow]) -> None:
    most = 200_000
    with gate(snapshot) as (url, app), client(url, 8) as remote:
        batches = iter(fetcher(remote, Backlog(most)))
        got = indices(iter([next(batches)]))
        course = Course(QUERY, remote.split("train"))
        row_bytes = course.ask(0, 1, 0).nbytes / 8  # type: ignore[union-attr]

        def asked_bytes() -> float:
            return sum(8 * row_bytes * int(dict(p.split("=") for p in q.split("&"))["limit"]) for q in app.queries)

        poll(lambda: app.open == 0 and asked_bytes() > 0.7 * most)  # while the loop does something else
        assert asked_bytes() <= most + 8 * row_bytes
        assert got + indices(batches) == expected


def test_a_dataloader_worker_has_one_connection(
    snapshot: Snapshot, long_path: list[Flow], forkserver: multiprocessing.context.BaseContext
) -> None:
    with gate(snapshot) as (url, app):
        dataset = StreamingEmbeddingsDataset(url, "train", batch_size=8, columns=("index",), cache=None)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
        assert sum(len(index) for (index,) in loader) == 1800
        assert app.most <= 2
        alone = StreamingEmbeddingsDataset(url, "train", batch_size=8, columns=("index",), max_connections=3)
        assert sum(len(index) for (index,) in alone) == 1800


def test_later_epochs_and_any_order_come_over_several_connections_too(server: Server, long_path: list[Flow]) -> None:
    """What a rank's cache lacks, and what a sampler draws: the requests are others, the way is the same."""
    twin = local("train")
    half = StreamingEmbeddingsDataset(client(server.url), "train", batch_size=8, shuffle=True, seed=3, rank=0, world_size=2)
    for epoch in range(3):
        half.set_epoch(epoch)
        assert_same(half, epoch_of(twin, batch_size=8, seed=3, epoch=epoch, rank=0, world_size=2))
    drawn = StreamingEmbeddingsDataset(client(server.url), "train", batch_size=8, cache=None, columns=("index",))
    order = list(RandomSampler(range(1800), generator=torch.Generator().manual_seed(5)))  # type: ignore[arg-type]
    sampler = RandomSampler(range(1800), generator=torch.Generator().manual_seed(5))  # type: ignore[arg-type]
    assert [i for (index,) in make_loader(drawn, sampler=sampler) for i in index.tolist()] == order
    assert len(long_path) >= 3


@pytest.mark.parametrize("is_far", [False, True])
def test_a_forked_copy_that_ends_leaves_the_parents_connections_alone(
    run_server: Callable[..., Server], snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, is_far: bool
) -> None:
    if is_far:
        lengthen(monkeypatch.setattr)
    n = 1800 if is_far else 20_000  # or the whole of a near reply would have arrived by then
    remote = client(run_server(snapshot=grown(snapshot, "train", n)).url)
    expected = QUERY.plan(n).order().tolist()
    fetched = EpochFetcher(remote.service, Course(QUERY, remote.split("train")), remote._memory, backlog=Backlog(30_000))
    batches = iter(fetched)
    got = indices(iter([next(batches)]))

    def end() -> None:
        batches.close()  # type: ignore[attr-defined]

    child = multiprocessing.get_context("fork").Process(target=end)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert got + indices(batches) == expected
    assert not fetched.flow.faults


def test_leaving_a_loop_ends_its_threads_and_connections(server: Server, long_path: list[Flow]) -> None:
    dataset = StreamingEmbeddingsDataset(client(server.url), "train", batch_size=8)
    for _ in dataset:
        assert [thread for thread in threading.enumerate() if thread.name.startswith("cpstream-lane")]
        break
    poll(lambda: not [thread.name for thread in threading.enumerate() if thread.name.startswith("cpstream-")])


@pytest.mark.parametrize("max_connections", [0, -1])
def test_a_number_that_is_none_is_refused(max_connections: int) -> None:
    with pytest.raises(ValueError, match=f"max_connections is {max_connections}; it must be 1 or more"):
        Client("http://127.0.0.1:9", max_connections=max_connections)
    with pytest.raises(ValueError, match="max_connections"):
        StreamingEmbeddingsDataset("http://127.0.0.1:9", "train", max_connections=max_connections)


# Pure


@pytest.mark.parametrize(("round_trip_ms", "number"), [(None, 1), (0.05, 1), (2, 1), (4, 2), (10, 5), (40, 8), (150, 8)])
def test_the_number_follows_the_round_trip(round_trip_ms: float | None, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, near in [(1, 1), (2, 1), (4, 2), (6, 3), (64, 4)]:
        monkeypatch.setattr(pace, "processors", lambda: processors)  # noqa: B023
        of_path = Pace(8)
        for workers in (1, 3, 64):
            assert of_path.needed(round_trip_ms and round_trip_ms / 1000, workers) == max(min(workers, near), number)
        assert Pace(2).needed(1.0, workers=3) == 2


def test_the_size_follows_the_speed() -> None:
    pace, share = Pace(8), 4_000_000
    # As long as nobody knows, in turn.
    assert [pace.request_bytes(0.08, share, number) // 1024**2 for number in range(5)] == [1, 2, 3, 3, 1]
    pace.worked(1_000_000, 0.8)
    slow = pace.request_bytes(0.08, share, 0)
    pace.worked(2_000_000, 0.8)
    assert slow == 524_288 < pace.request_bytes(0.08, share, 0) == 1_000_000
    pace.worked(200_000_000, 0.8)
    assert pace.request_bytes(0.08, share, 0) == share


def test_a_service_that_has_refused_is_tried_again_after_a_while() -> None:
    pace = Pace(8)
    pace.refused(others=2)
    assert pace.connections(0.1, 1) == 2
    assert pace.needed(0.1, 1) == 8
    for _ in range(16):
        assert pace.connections(0.1, 1) == 2
        pace.worked(1, 1)
    assert pace.connections(0.1, 1) == 3
    pace.refused(others=0)
    assert pace.connections(0.1, 1) == 1
