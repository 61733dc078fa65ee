"""Fixtures for all tests. Everything is real: the bundled speech data, its snapshot, and uvicorn on a port that it binds itself.

    demo        DataSettings of examples/speech/data, with a snapshot folder of this test run
    snapshot    the demo's Snapshot, mapped once for the whole run; read it only
    server      Server(url, snapshot) of a service of the demo with default settings; shared, so leave it running
    run_server  run_server(**serve_settings) -> Server: a service of one's own, stopped when the test ends;
                snapshot=, stale_reason= replace the demo's
    large       a source whose batches no socket buffer swallows, for a command of its own
    chromium    a real browser, headless; its tests are skipped where there is none
    forkserver  context for DataLoader workers that inherit no sockets of this process, with torch loaded already

    long_path   every path needs as many connections as there may be, and requests are small; the Flow of each iteration
    port        a port that stays this test's, between two services that it runs there and whatever others open meanwhile
    short_path  no path needs more than one, however long a busy machine takes for an answer

Helpers, by `from conftest import ...`:

    serving(app)                the same as a context manager, for an app of one's own; yields the URL
    grown(snapshot, split, n)   the snapshot with that split repeated to n samples in memory, for replies that no buffer swallows
    published(split)            its metadata as a service with default settings tells it
    stalled_stream(url, path)   a connection that asks for the path and then reads no more
    bound(port)                 a TCP socket to listen at, whose connections send small replies at once
    poll(condition)             wait until condition() is true
    lengthen()                  what long_path does, for a process of its own
"""

import asyncio
import faulthandler
import multiprocessing
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import pytest
import uvicorn
from starlette.types import ASGIApp

from cpstream_client.contract.bodies import SplitInfo
from cpstream_client.stream.lanes import Flow, Lanes
from cpstream_client.stream.reader import Batch
from cpstream_client.transport import pace
from cpstream_service.app import create_app
from cpstream_service.settings import DataSettings, ServeSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot, Split

_SMALL_BYTES = 20_000
DEMO_DATA = Path(__file__).parent.parent / "examples" / "speech" / "data"


for each in ("connect", "read", "write", "pool"):  # 5 s is little on a machine that is busy with other things, too
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, each, 60.0)

# The same examples in each run, however long one takes: the clock of a busy machine finds no fault, and a lucky draw hides none.
hypothesis.settings.register_profile(
    "cpstream", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("cpstream")


_TELL_AFTER_S = 240.0
"""Less than pytest's own timeout, which tells of this process alone."""
_this_process = os.getpid()


def _tell_where_it_hangs() -> None:
    if os.getppid() == _this_process and sys.__stderr__ is not None:  # once: such a watch cannot be set anew in a copy of it
        faulthandler.dump_traceback_later(_TELL_AFTER_S, file=sys.__stderr__)


os.register_at_fork(after_in_child=_tell_where_it_hangs)


@dataclass(frozen=True)
class Server:
    """A running service: url has no slash at its end."""

    url: str
    snapshot: Snapshot


class UvicornServer(uvicorn.Server):
    """uvicorn in a process that lives on: closes what a client that stopped reading keeps open."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            await stop_listening(server)
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for connection_lost


async def stop_listening(server: asyncio.Server) -> None:
    """What was accepted is given to its transport first: asyncio leaves it open and unowned if its server is closed before."""
    for sock in server.sockets:
        asyncio.get_running_loop().remove_reader(sock.fileno())
    await asyncio.sleep(0)
    server.close()


def bound(port: int = 0, host: str = "127.0.0.1") -> socket.socket:
    """A socket to listen at, on a port of its own if none is named. asyncio sets TCP_NODELAY on what it accepts only where the
    protocol is named (uvicorn issue 3149); without it, each small reply on a kept connection waits 40 ms for the client's ACK.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


@contextmanager
def serving(app: ASGIApp, port: int = 0, loop: str = "asyncio", host: str = "127.0.0.1", **config: Any) -> Iterator[str]:
    """Run the app by uvicorn in a thread of this process. Yields its URL once it answers; stops it at the end.

    config: further settings of uvicorn; with ssl_certfile the URL is one of https.
    """
    sock = bound(port, host)
    scheme, name = "https" if "ssl_certfile" in config else "http", f"[{host}]" if ":" in host else host
    url = f"{scheme}://{name}:{sock.getsockname()[1]}"
    settings = {"loop": loop, "http": "httptools", "access_log": False, "log_config": None, "timeout_graceful_shutdown": 1}
    settings["timeout_keep_alive"] = 75  # as `cpstream serve` has it; uvicorn's 5 s are little for a client that stands still
    server = UvicornServer(uvicorn.Config(app, **{"proxy_headers": False, **settings, **config}))
    thread = threading.Thread(target=server.run, args=([sock],), name="uvicorn")
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    assert server.started, "uvicorn did not start"
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def poll(condition: Callable[[], object], timeout_s: float = 90.0) -> None:
    """Wait until condition() is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def grown(snapshot: Snapshot, split: str, num_samples: int) -> Snapshot:
    """The snapshot with one split repeated to num_samples, in memory; downloads still have its files."""
    old = snapshot.splits[split]
    rows = np.arange(num_samples) % len(old.cps)
    new = replace(
        old,
        embeddings=old.embeddings[rows],
        cps=old.cps[rows],
        file_paths=old.file_paths.take(rows),
        info=old.info.model_copy(update={"num_samples": num_samples}),
    )
    return replace(snapshot, splits=snapshot.splits | {split: new})


def published(split: Split) -> SplitInfo:
    longest = max(len(path.encode()) for path in split.file_paths.to_pylist())
    return split.info.model_copy(update={"max_path_bytes": longest, "max_reply_bytes": ServeSettings().max_reply_bytes})


@contextmanager
def stalled_stream(url: str, path: str, address: str = "127.0.0.1", headers: str = "") -> Iterator[socket.socket]:
    """Ask for the path, from an address of this machine, and take the first bytes of the reply only. Yields the connected socket.

    headers: further ones, each with its line's end.
    """
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the kernel does not read on in our stead
        sock.bind((address, 0))
        sock.connect((host, int(port)))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode())
        assert sock.recv(12) == b"HTTP/1.1 200"
        yield sock


def lengthen(set_to: Callable[[object, str, object], None] = setattr) -> list[Flow]:
    """Make every path need as many connections as there may be, and each request small. Returns the Flow of each iteration."""
    flows: list[Flow] = []
    batches = Lanes.batches

    def noted(self: Lanes, first: int) -> Iterator[Batch]:
        flows.append(self.flow)
        return batches(self, first)

    set_to(Lanes, "batches", noted)
    set_to(pace, "ROUND_TRIP_PER_CONNECTION_S", 1e-9)
    set_to(pace, "LEAST_BYTES", _SMALL_BYTES)
    set_to(pace, "UNKNOWN_BYTES", (_SMALL_BYTES,))
    return flows


@pytest.fixture
def long_path(monkeypatch: pytest.MonkeyPatch) -> list[Flow]:
    return lengthen(monkeypatch.setattr)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that is nobody else's, and where nobody listens unless the test has it done."""
    with bound() as sock:
        yield sock.getsockname()[1]


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as number:
        yield number


@pytest.fixture
def short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "ROUND_TRIP_PER_CONNECTION_S", 1000.0)


@pytest.fixture(scope="session")
def forkserver() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cpstream_client.torch"])
    return context


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Playwright's Browser, to which data.lab is this machine. Its event loop runs in this thread until the last test has ended."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test-browser")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium (Debian, Ubuntu: apt-get install chromium)")
    options = ["--disable-dev-shm-usage", "--host-resolver-rules=MAP data.lab 127.0.0.1"]
    options += ["--no-sandbox"] * (os.geteuid() == 0)  # which its sandbox does not run as
    with api.sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=options) as browser:
        yield browser


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    return DataSettings(source_path=DEMO_DATA, snapshot_dir=tmp_path_factory.mktemp("snapshots"))


@pytest.fixture(scope="session")
def snapshot(demo: DataSettings) -> Snapshot:
    return load(demo, progress=False).snapshot


@pytest.fixture(scope="session")
def server(snapshot: Snapshot) -> Iterator[Server]:
    with serving(create_app(snapshot, ServeSettings())) as url:
        yield Server(url, snapshot)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source whose batches no socket buffer swallows: one split of 24 MB."""
    folder = tmp_path_factory.mktemp("large")
    names = [f"{i:04d}.wav" for i in range(6000)]
    embeddings = np.random.default_rng(0).standard_normal((len(names), 1024), dtype=np.float32)
    rows = [{"embedding": row, "file_path": name} for row, name in zip(embeddings, names, strict=True)]
    np.save(folder / "numpy_embs.npy", {"train": rows}, allow_pickle=True)  # type: ignore[arg-type]
    (folder / "train_cps.csv").write_text("audio_path,cps\n" + "".join(f"{name},{5 + i % 20}\n" for i, name in enumerate(names)))
    return folder


@pytest.fixture
def run_server(snapshot: Snapshot) -> Iterator[Callable[..., Server]]:
    served = snapshot
    with ExitStack() as stack:

        def run(*, snapshot: Snapshot | None = None, stale_reason: str | None = None, **settings: object) -> Server:
            app = create_app(snapshot or served, ServeSettings(**settings), stale_reason=stale_reason)  # type: ignore[arg-type]
            return Server(stack.enter_context(serving(app)), snapshot or served)

        yield run
