"""From settings to a running service: bind, load, listen, and stop cleanly."""

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI

from cpstream_client.files import writable_by_others

from .accepting import raise_open_files_limit
from .api.drain import END_SIGNALS
from .api.metrics import MULTIPROCESS_DIR
from .app import create_app
from .connections import HEAD_TIMEOUT_S, Connection
from .credentials import Credentials, readable_by_others
from .hangup import Hangup
from .logs import logging_config, logging_to_stderr
from .settings import DataSettings, ServeSettings
from .snapshot.store import Snapshot
from .supervisor import Supervisor
from .versions.control import Control
from .versions.keeper import Hooks, Keeper

logger = logging.getLogger("cpstream.service")

CANNOT_START = 3
"""Exit code when the address cannot be had; uvicorn's own for a failed start."""
BACKLOG = 2048
WORKER_HEALTHCHECK_S = 10
"""A worker that does not answer its supervisor for so long is replaced; uvicorn's 5 s are short for a machine under full load."""


class CannotStart(Exception):
    """The service cannot listen where it should."""


def serve(data: DataSettings, settings: ServeSettings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code. Raises DataError, and CannotStart when the address cannot be had."""
    with logging_to_stderr(settings):
        return _serve(data, settings)


def _serve(data: DataSettings, settings: ServeSettings) -> int:
    for number in END_SIGNALS:
        # While loading, and once uvicorn has finished its replies (it raises the signal again), a signal is the wish to end.
        signal.signal(number, _exit)
    hangup = Hangup.at_start()
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(0) if hangup.ends() else None)
    sock = bind(settings.host, settings.port)
    raise_open_files_limit()
    with sock:
        listen(sock)
        credentials = Credentials(settings)
        for told in readable_by_others(settings):
            logger.warning("%s", told)
        with Control.made() as control:
            config = _config(partial(worker_app, data, settings, control, credentials, hangup), settings, credentials)
            if settings.workers > 1:
                return _serve_by_workers(data, settings, control, config, sock, hangup)
            server = uvicorn.Server(config)

            def stop() -> None:
                server.should_exit = True

            with _keeping(data, settings, control, sock, lambda: [os.getpid()], stop):
                server.run(sockets=[sock])
    return 0


def worker_app(data: DataSettings, settings: ServeSettings, control: Control, credentials: Credentials, hangup: Hangup) -> FastAPI:
    """The application of a process that serves: what the keeper tells it to."""
    return create_app(None, settings, control=control, credentials=credentials, hangup=hangup, data=data)


def _serve_by_workers(
    data: DataSettings, settings: ServeSettings, control: Control, config: uvicorn.Config, sock: socket.socket, hangup: Hangup
) -> int:
    with tempfile.TemporaryDirectory(prefix="cpstream-metrics-") as metrics_dir:
        os.environ[MULTIPROCESS_DIR] = metrics_dir  # the workers inherit it
        supervisor = Supervisor(config, [sock], hangup)
        with _keeping(data, settings, control, sock, supervisor.workers, supervisor.should_exit.set):
            supervisor.run()
    return CANNOT_START if supervisor.failed else 0


@contextmanager
def _keeping(
    data: DataSettings,
    settings: ServeSettings,
    control: Control,
    sock: socket.socket,
    workers: Callable[[], Iterable[int]],
    stop: Callable[[], None],
) -> Iterator[None]:
    """Within, the keeper loads the data, and loads it again. Raises what was wrong with it at the start."""

    def loading() -> None:
        logger.info("listening at %s, and loading the data: /readyz says how far that is", _url(sock, settings))

    def ready(snapshot: Snapshot, notes: list[str], stale_reason: str | None) -> None:
        for note in notes:
            logger.info("%s", note)
        if stale_reason is not None:
            logger.warning("the data may be older than its source: %s", stale_reason)
        for folder in (data.snapshot_folder(), snapshot.path):
            if (told := writable_by_others(folder)) is not None:
                logger.warning("%s: chmod go-w it, or choose another (--snapshot-dir)", told)
                break
        _describe(snapshot)
        _announce(sock, settings)

    def renewed(snapshot: Snapshot, notes: list[str]) -> None:
        for note in notes:
            logger.info("%s", note)
        _describe(snapshot)

    keeper = Keeper(data, settings, control, Hooks(workers, loading, ready, renewed, stop), show_progress=sys.stderr.isatty())
    keeper.start()
    try:
        yield
    finally:
        keeper.close()
    if keeper.error is not None:
        raise keeper.error


class _Config(uvicorn.Config):
    """uvicorn's, with a TLS context whose certificates may be read again. The app of the process has the same credentials."""

    def __init__(self, make_app: partial[FastAPI], credentials: Credentials, **settings: Any) -> None:
        super().__init__(make_app, **settings)
        self._credentials = credentials

    def load(self) -> None:
        super().load()
        self.ssl = self._credentials.context


def _config(factory: partial[FastAPI], settings: ServeSettings, credentials: Credentials) -> uvicorn.Config:
    return _Config(
        factory,
        credentials,
        factory=True,
        workers=settings.workers,
        # Not uvloop: it is no faster here, and keeps the GIL from other threads while the kernel copies a chunk.
        loop="cpstream_service.accepting:EventLoop",
        http=partial(Connection, stall_timeout_s=settings.stall_timeout_s, trusted_proxies=settings.trusted_proxies),
        ws="none",
        backlog=BACKLOG,
        proxy_headers=False,  # app.py has them, where proxies are trusted; uvicorn would trust whoever is on this machine
        log_config=logging_config(settings) if settings.workers > 1 else None,
        access_log=False,  # observability.py has its own
        timeout_graceful_shutdown=1,  # after the drain: what is still open then has had its time
        timeout_keep_alive=75,  # longer than the idle time of the usual proxies, or they would race with our close
        timeout_worker_healthcheck=WORKER_HEALTHCHECK_S,
    )


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to the address, not yet listening. Raises CannotStart."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotStart(f"cannot listen on host {host!r}: {error.strerror}; choose another with --host") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise CannotStart(_refusal(host, port, error)) from error
    return sock


def listen(sock: socket.socket) -> None:
    """Open the socket for connections. Raises CannotStart.

    A connection is the kernel's alone until its client has said something: one that is silent costs no open file.
    """
    try:
        with contextlib.suppress(AttributeError, OSError):  # no Linux
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, math.ceil(HEAD_TIMEOUT_S))
        sock.listen(BACKLOG)
    except OSError as error:  # another process came first since bind
        host, port = sock.getsockname()[:2]
        raise CannotStart(_refusal(host, port, error)) from error


def _refusal(host: str, port: int, error: OSError) -> str:
    return f"cannot listen on port {port} of {host}: {error.strerror}; stop what listens there, or choose another with --port"


def _describe(snapshot: Snapshot) -> None:
    for split in snapshot.splits.values():
        info = split.info
        logger.info(
            "split %s: %d samples x %d, CPS mean %.2f (%.2f to %.2f), %d dropped, fingerprint %s",
            split.name,
            info.num_samples,
            info.embedding_dim,
            info.cps.mean,
            info.cps.min,
            info.cps.max,
            info.num_dropped,
            info.fingerprint,
        )
        for root in split.report.roots:
            if not root.applied:
                logger.warning(
                    "split %s: paths differ by their roots; %s would match %d rows", split.name, " ".join(root.options), root.count
                )
        for warning in split.report.warnings:
            logger.warning("split %s: %d %s, served (first: %s)", split.name, warning.count, warning.reason, warning.examples[0])


def _announce(sock: socket.socket, settings: ServeSettings) -> None:
    host, port = sock.getsockname()[:2]
    scheme = _url(sock, settings).partition(":")[0]
    local = f" (from here: {scheme}://localhost:{port})" if host in ("0.0.0.0", "::") else ""  # noqa: S104 - compared, not bound
    workers = f" by {settings.workers} workers" if settings.workers > 1 else ""
    logger.info("serving at %s%s%s, documentation at /docs", _url(sock, settings), local, workers)
    if not settings.has_token:
        logger.info("no token is set: whoever reaches this port can read the data (--token, CPSTREAM_TOKEN)")


def _url(sock: socket.socket, settings: ServeSettings) -> str:
    host, port = sock.getsockname()[:2]
    scheme = "http" if settings.tls_cert_file is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
