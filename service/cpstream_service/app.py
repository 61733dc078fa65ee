"""The application: create_app(snapshot, settings) puts routes, middleware and state together. Nothing happens at import."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware

from .api import problems
from .api.drain import Drain
from .api.files import Downloads
from .api.middleware import Digests, Gate, InternalErrors, Shortcuts
from .api.observability import Metrics, Observability
from .api.routes import batches, downloads, health, splits
from .api.state import Service
from .batches.server import BatchServer
from .settings import ServeSettings
from .snapshot.store import Snapshot

DESCRIPTION = """\
Speech embeddings aligned with their speech rate (CPS, characters per second), streamed to remote trainers.

* A **sample** is one utterance: an `embedding` of D numbers, its `cps`, and the `file_path` of its recording.
* A **split** (`train`, `dev`, `test`, ...) is a named, ordered list of samples; a sample's position in it is its `index`.
* A **fingerprint** is a hash of a split's whole content. Pin it with the `fingerprint` parameter, and a reply is of that
  data or a `409`.
* An **epoch** is fixed by `shuffle`, `seed` and `epoch`, and equals what torch's `DistributedSampler` gives. Every batch is a pure
  function of its URL and the fingerprint: any replica gives the same bytes, and a `start` resumes anywhere.

Batches travel as an [Arrow IPC stream](https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format), one record batch
each; a few of them also as JSON (`Accept: application/json`). Every error is a problem (RFC 9457, `application/problem+json`) with
a stable `code` and a `detail` that says what was wrong with which value and what to do. Every reply carries an `X-Request-ID`,
which the service's log has too; send your own to find it there.
"""


def create_app(snapshot: Snapshot, settings: ServeSettings, *, stale_reason: str | None = None) -> FastAPI:
    """An ASGI application that serves the snapshot. stale_reason: why it may be older than its source, or None."""
    metrics = Metrics()
    drain = Drain(settings.drain_timeout_s)
    shortcuts = Shortcuts()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batch_server, files = BatchServer(snapshot, settings), Downloads(snapshot)
        app.state.service = Service(snapshot, settings, batch_server, files, metrics, drain, shortcuts, stale_reason)
        for split in snapshot.splits.values():
            metrics.split_samples.labels(split.name, split.fingerprint).set(split.info.num_samples)
        with drain.on_signals():
            yield
        batch_server.close()
        files.close()

    app = FastAPI(
        title="cpstream",
        version=version("cpstream"),
        summary="Speech embeddings and speech rates for remote PyTorch trainers.",
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        openapi_tags=[
            {"name": "splits", "description": "What is served: metadata, alignment, single rows."},
            {"name": "batches", "description": "Samples for training, in bulk."},
            {"name": "downloads", "description": "A whole split as files."},
            {"name": "health", "description": "For orchestrators and monitoring; never needs a token."},
        ],
        middleware=[  # outermost first
            Middleware(Observability, metrics=metrics),
            Middleware(Digests),
            Middleware(InternalErrors),
            Middleware(drain.middleware),
            Middleware(Gate, token=settings.token, is_draining=lambda: drain.draining),
            Middleware(shortcuts.middleware),
        ],
    )
    problems.install(app)
    for resources in (health, splits, downloads, batches):
        app.include_router(resources.router)
    return app
