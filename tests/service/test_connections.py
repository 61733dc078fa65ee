"""What connections may cost that ask for nothing, or do not end asking: measured from outside, at a real `cpstream serve`."""

import asyncio
import http.client
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import DEMO_DATA, bound, poll, stalled_stream

from cpstream_client import Client
from cpstream_service import connections
from cpstream_service.accepting import EventLoop
from cpstream_service.crowd import CHANGED_EVERY_S, MOST_S, REFUSED_EVERY_S, Changes, Refusals, Starts


@contextmanager
def serving(folder: Path, open_files: int | None = None, code: str = "") -> Iterator[tuple[str, Path]]:
    """The URL of a service of the demo, and its log."""

    def limit() -> None:
        if open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

    log = folder / "log"
    program = f"{code}\nimport sys; from cpstream_service.cli.app import run; run(sys.argv[1:])"
    arguments = ["serve", "--source-path", str(DEMO_DATA), "--snapshot-dir", str(folder / "snapshots")]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--host", "127.0.0.1", "--port", "0"], stderr=file, preexec_fn=limit
        )
    try:
        poll(lambda: "serving at" in log.read_text() or process.poll() is not None)
        found = re.search(r"serving at (http://[\d.:]+)", log.read_text())
        assert found, log.read_text()
        poll(lambda: _answers(found[1]))
        yield found[1], log
    finally:
        process.terminate()
        process.wait(90)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == 200
    except httpx.TransportError:
        return False


def connect(url: str, address: str = "127.0.0.1") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30, source_address=(address, 0))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one for tests that look at nothing else."""
    with serving(tmp_path_factory.mktemp("plain")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    code = "from cpstream_service import connections; connections.HEAD_TIMEOUT_S = 0.3"
    with serving(tmp_path_factory.mktemp("impatient"), code=code) as (url, _):
        yield url


def test_at_the_limit_of_open_files_the_log_stays_short_and_the_service_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path, open_files=100) as (url, log):
        with ExitStack() as stack:
            for _ in range(200):  # each with a request under way: none gives way to others
                stack.enter_context(connect(url)).sendall(
                    b"POST /v1/splits/train/take HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n"
                )
            poll(lambda: "cannot accept connections: Too many open files" in log.read_text())
            assert "raise ulimit -n (LimitNOFILE, now 100)" in log.read_text()
        poll(lambda: _answers(url))
        assert Client(url).split("train").num_samples == 1800
        assert "Traceback" not in log.read_text()
        assert log.read_text().count("cannot accept") < 60  # a line a second, not hundreds


@pytest.fixture(scope="module")
def few_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with serving(tmp_path_factory.mktemp("few-files"), open_files=512) as found:
        yield found


def test_connections_that_are_silent_cost_nothing(few_files: tuple[str, Path]) -> None:
    url, log = few_files
    told = len(log.read_text())
    with ExitStack() as stack:
        silent = [stack.enter_context(closing(connect(url, "127.0.0.2"))) for _ in range(600)]
        assert _answers(url)
        assert Client(url).split("train").num_samples == 1800
        watched = select.poll()  # select.select knows no numbers from 1024 on
        for sock in silent:
            watched.register(sock, select.POLLIN)
        assert not watched.poll(0)  # none was closed
        assert "connections" not in log.read_text()[told:]
        silent[0].sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")  # one that was made ahead of its first request
        assert silent[0].recv(12) == b"HTTP/1.1 200"


def test_connections_that_ask_nothing_give_way_and_no_others(few_files: tuple[str, Path]) -> None:
    url, log = few_files
    with ExitStack() as stack:
        streaming = stack.enter_context(stalled_stream(url, "/v1/splits/train/embeddings.npy"))
        between = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30, source_address=("127.0.0.3", 0))
        stack.enter_context(closing(between))
        kept, silent = set(), []
        for _ in range(2):
            between.request("GET", "/v1/splits")  # and then nothing for a while, as a trainer between two epochs
            assert between.getresponse().read()
            kept.add(between.sock)
            for _ in range(300):
                silent.append(stack.enter_context(closing(connect(url, "127.0.0.2"))))
                silent[-1].sendall(b"G")  # or the kernel keeps it to itself
            assert _answers(url)
        assert len(kept) == 1
        are_closed = [bool(select.select([sock], [], [], 0)[0]) for sock in silent]
        assert 200 < sum(are_closed) < 400
        assert are_closed == sorted(are_closed, reverse=True)  # the oldest
        size = int(httpx.head(f"{url}/v1/splits/train/embeddings.npy").headers["content-length"])
        while size > 0:
            size -= len(streaming.recv(2**20))
        poll(lambda: "connections that asked nothing, as there may be no more than" in log.read_text())
        assert "cannot accept" not in log.read_text()


def test_the_soft_limit_of_open_files_is_raised() -> None:
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (99, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        "from cpstream_service.accepting import raise_open_files_limit as go; go(); soft, hard = r.getrlimit(r.RLIMIT_NOFILE);"
        "print(soft == hard)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    "head",
    [b"GET /" + b"a" * 1000, b"GET / HTTP/1.1\r\nX: " + b"a" * 1000, b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200],
    ids=["line", "header", "headers"],
)
def test_a_head_without_an_end_is_refused(head: bytes, plain: str) -> None:
    with closing(connect(plain)) as sock:
        more = head[-1000:]
        sent = 0
        try:
            sock.sendall(head)
            while sent < 64 * connections.MAX_HEAD_BYTES:
                sock.sendall(more)
                sent += len(more)
        except ConnectionError:
            pass
        assert sent < 64 * connections.MAX_HEAD_BYTES
        assert _answers(plain)


def test_a_long_head_is_told_so(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, log):
        with closing(connect(url)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * (connections.MAX_HEAD_BYTES + 1))
            assert sock.recv(100).startswith(b"HTTP/1.1 431 ")
        poll(lambda: "longer than 65536 bytes" in log.read_text())
        with closing(connect(url)) as sock:  # one that is long, but whole, is none of this
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 30_000 + b"\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_head_of_many_lines_is_refused_before_they_are_read(tmp_path: Path) -> None:
    lines = connections.MAX_HEAD_LINES
    with serving(tmp_path) as (url, log):
        for count, status in ((lines, b"200"), (lines + 1, b"431")):
            with closing(connect(url)) as sock:
                sock.sendall(b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * count + b"\r\n")
                assert sock.recv(12) == b"HTTP/1.1 " + status
        poll(lambda: f"closed 1 connections whose heads have more than {lines} lines" in log.read_text())


def test_what_does_not_speak_http_costs_few_lines_of_the_log_and_no_reply_its_end(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, log):
        with closing(connect(url)) as sock:
            sock.sendall(b"\x16\x03\x01\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")
        for _ in range(100):
            with closing(connect(url)) as sock:
                sock.sendall(b"\x16\x03\x01\r\n")
        with stalled_stream(url, "/v1/splits/train/embeddings.npy", "127.0.0.2") as sock:
            sock.sendall(b"\x16\x03\x01\r\n")
            reply = b"".join(iter(lambda: sock.recv(2**20), b""))
        assert b"HTTP" not in reply
        poll(lambda: "closed 1 connections that did not speak HTTP" in log.read_text())
        assert log.read_text().count("did not speak HTTP") < 20  # a line a second, not one for each


def test_heads_that_are_refused_are_answered_ever_later_to_the_same_client() -> None:
    refusals = Refusals()
    waits = [refusals.wait_s("a", 100.0) for _ in range(1000)]
    assert waits[:3] == pytest.approx([0, REFUSED_EVERY_S, 2 * REFUSED_EVERY_S])
    assert max(waits) == MOST_S
    assert refusals.wait_s("b", 100.0) == 0
    assert refusals.wait_s("a", 100.0 + 2 * MOST_S) == 0


def test_a_client_whose_connections_take_each_others_places_waits_and_is_then_refused() -> None:
    changes = Changes(100)
    waits = [changes.wait_s("a", 1000.0) for _ in range(1000)]
    assert waits[:100] == [0.0] * 100  # as many as there may be, at once
    assert waits[100:132] == pytest.approx([CHANGED_EVERY_S * n for n in range(1, 33)])
    assert set(waits[132:]) == {None}
    assert changes.wait_s("b", 1000.0) == 0.0
    assert changes.wait_s("a", 1000.0 + CHANGED_EVERY_S) == pytest.approx(32 * CHANGED_EVERY_S)  # the refused cost nobody a place
    assert changes.wait_s("a", 2000.0) == 0.0


def test_one_who_makes_connections_anew_for_ever_keeps_nobody_else_out(tmp_path: Path) -> None:
    """Each says so much that it is accepted, and no more; what was closed is made again at once."""
    code = "from cpstream_service import crowd; crowd.CHANGED_EVERY_S = 0.05"  # a busy machine makes fewer than 200 a second
    with serving(tmp_path, open_files=240, code=code) as (url, log), ExitStack() as stack:
        over = stack.enter_context(ThreadPoolExecutor(1)).submit(_wear_out, url, lambda: "refused" in log.read_text())
        while not over.done():
            assert _answers(url)
        assert over.result() > 100
        assert Client(url).split("train").num_samples == 1800
        assert "of clients whose own take each other's places" in log.read_text()
        assert "Traceback" not in log.read_text()


def _wear_out(url: str, is_over: Callable[[], bool]) -> int:
    """Keep 185 connections, made anew when they are closed, until it is over. Returns how many were closed."""
    closed, deadline = 0, time.monotonic() + 60
    kept: list[socket.socket] = []
    while not is_over() and time.monotonic() < deadline:
        while len(kept) < 185:
            kept.append(connect(url, "127.0.0.2"))
            kept[-1].sendall(b"G")
        gone = select.select(kept, [], [], 0.01)[0]
        closed += len(gone)
        kept = [sock for sock in kept if sock not in gone]
        for sock in gone:
            sock.close()
    for sock in kept:
        sock.close()
    return closed


def test_requests_of_one_client_begin_in_turn_and_in_order() -> None:
    begun: list[tuple[str, int]] = []

    async def main() -> None:
        starts, loop = Starts(), asyncio.get_running_loop()
        for number in range(50):
            starts.start("a", partial(begun.append, ("a", number)), loop)
        starts.start("b", partial(begun.append, ("b", 0)), loop)
        assert begun == [("a", 0), ("b", 0)]
        for ticks in range(2, 60):
            await asyncio.sleep(0)
            assert len(begun) <= ticks + 1
        assert not starts._waiting

    asyncio.run(main())
    assert [number for client, number in begun if client == "a"] == list(range(50))


def test_a_body_that_nobody_wanted_is_not_read_for_ever(impatient: str) -> None:
    def is_closed_once_answered() -> bool:
        with closing(connect(impatient)) as sock, suppress(ConnectionError):
            sock.sendall(b"POST /v1/splits HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            if reply := sock.recv(100):
                assert reply.startswith(b"HTTP/1.1 405 ")
                poll(lambda: _is_closed(sock))
                return True
        return False

    poll(is_closed_once_answered)  # it is closed before where this process stands still


def _is_closed(sock: socket.socket) -> bool:
    """Whether the other end takes no more of what trickles."""
    try:
        sock.sendall(b"a")
    except ConnectionError:
        return True
    return False


def test_connections_that_do_not_ask_are_closed(impatient: str) -> None:
    for said in (b"", b"GET / HTTP/1.1\r\nX: "):
        with closing(connect(impatient)) as sock:
            sock.sendall(said)
            with suppress(ConnectionError):  # where it was said too late
                assert sock.recv(1) == b""

    def is_answered_and_closed() -> bool:
        with closing(connect(impatient)) as sock, suppress(ConnectionError):
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /li")
            reply = b"".join(iter(lambda: sock.recv(1000), b""))  # until it is closed
            return reply.startswith(b"HTTP/1.1 200 ") and reply.endswith(b"}\n")
        return False

    poll(is_answered_and_closed)  # the second request of a connection, too, but not while it is answered


@contextmanager
def answering(app: Callable[..., Awaitable[None]]) -> Iterator[socket.socket]:
    """A connection to this application, in this process. The service has ended when the block has."""
    with bound() as listening:
        config = uvicorn.Config(app, http=partial(connections.Connection, stall_timeout_s=60), lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            poll(lambda: server.started)
            with closing(socket.create_connection(listening.getsockname(), timeout=30)) as sock:
                yield sock
        finally:
            server.should_exit = True
            thread.join(90)
            assert not thread.is_alive()


@pytest.mark.parametrize("requests", [1, 2, 4])
def test_a_client_that_leaves_is_sent_no_more_whatever_else_it_has_asked(requests: int) -> None:
    begun, left = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def leaves() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        begun.append(scope["path"])
        gone = asyncio.ensure_future(leaves())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000000000000")]})
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
            await asyncio.sleep(0)
        left.append(scope["path"])

    with answering(app) as sock:
        sock.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(requests)))
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
        sock.close()
        poll(lambda: left)
    assert begun == left == ["/0"]


def test_a_head_that_is_not_read_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind two requests nothing is read until the first is answered, which may take as long as it likes."""
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 1.0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await asyncio.sleep(3)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": scope["path"][-2:].encode()})

    with answering(app) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\n\r\nGET /two HTTP/1.1\r\n\r\nGET /three HTTP/1.1\r\nX: ")
        time.sleep(0.2)  # what comes later is not read
        sock.sendall(b"a\r\n\r\n")
        replies = b""
        while replies.count(b"HTTP/1.1 200") < 3 or not replies.endswith(b"ee"):
            received = sock.recv(1000)
            assert received, replies
            replies += received


@pytest.mark.parametrize("tick_s", [0, 0.002])
def test_connections_wait_for_few_ticks_of_a_busy_loop(tick_s: float) -> None:
    """Ticks of a loop that serves streams take milliseconds; one that has nothing to do leaves some to other workers."""
    made = ticks = 0

    class Clocked(EventLoop):
        def time(self) -> float:
            return ticks * tick_s

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal made
            made += 1
            transport.close()

    async def main(sock: socket.socket) -> None:
        nonlocal ticks
        server = await asyncio.get_running_loop().create_server(Counting, sock=sock)
        while made < 100:
            ticks += 1
            await asyncio.sleep(0)
        server.close()

    with bound() as sock, ExitStack() as stack:
        sock.listen(128)
        for _ in range(100):
            stack.enter_context(socket.create_connection(sock.getsockname()))
        with asyncio.Runner(loop_factory=Clocked) as runner:
            runner.run(main(sock))
    assert ticks < 20 if tick_s else ticks >= 100
