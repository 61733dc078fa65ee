"""Fixtures for all tests. Everything is real: the bundled speech data, its snapshot, and uvicorn on a port that it binds itself.

    demo        DataSettings of examples/speech/data, with a snapshot folder of this test run
    snapshot    the demo's Snapshot, mapped once for the whole run; read it only
    server      Server(url, snapshot) of a service of the demo with default settings; shared, so leave it running
    run_server  run_server(**serve_settings) -> Server: a service of one's own, stopped when the test ends;
                snapshot=, stale_reason= replace the demo's

`serving(app)` is the same as a context manager, for a port of one's own choice or an app of one's own.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from cpstream_service.load import load
from cpstream_service.snapshot import Snapshot
from starlette.types import ASGIApp

from cpstream_service.app import create_app
from cpstream_service.settings import DataSettings, ServeSettings

DEMO_DATA = Path(__file__).parent.parent / "examples" / "speech" / "data"


@dataclass(frozen=True)
class Server:
    """A running service: url has no slash at its end."""

    url: str
    snapshot: Snapshot


@contextmanager
def serving(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """Run the app by uvicorn in a thread of this process. Yields its URL once it answers; stops it at the end."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    url = "http://{}:{}".format(*sock.getsockname())
    server = uvicorn.Server(
        uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_config=None, timeout_graceful_shutdown=1)
    )
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


@pytest.fixture
def run_server(snapshot: Snapshot) -> Iterator[Callable[..., Server]]:
    served = snapshot
    with ExitStack() as stack:

        def run(*, snapshot: Snapshot | None = None, stale_reason: str | None = None, **settings: object) -> Server:
            app = create_app(snapshot or served, ServeSettings(**settings), stale_reason=stale_reason)  # type: ignore[arg-type]
            return Server(stack.enter_context(serving(app)), snapshot or served)

        yield run
