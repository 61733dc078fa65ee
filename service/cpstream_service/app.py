"""The application: create_app(snapshot, settings) puts routes, middleware and state together. Nothing happens at import."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from .api.access import Access
from .api.description import DESCRIPTION, TAGS, complete
from .api.drain import Drain
from .api.files import Downloads
from .api.observability import Metrics, Observability
from .api.problems import Problems, install
from .api.routes import batches, downloads, health, splits
from .api.state import Service
from .batches.server import BatchServer
from .settings import ServeSettings
from .snapshot.store import Snapshot


def create_app(snapshot: Snapshot, settings: ServeSettings, *, stale_reason: str | None = None) -> FastAPI:
    """An ASGI application that serves the snapshot. stale_reason: why it may be older than its source, or None."""
    metrics = Metrics()
    drain = Drain(settings.drain_timeout_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batch_server, files = BatchServer(snapshot, settings), Downloads(snapshot)
        app.state.service = Service(snapshot, settings, batch_server, files, metrics, drain, stale_reason)
        for split in snapshot.splits.values():
            metrics.split_samples.labels(split.name, split.fingerprint).set(split.info.num_samples)
        with drain.on_signals():
            yield
        batch_server.close()
        files.close()

    proxied = [Middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))] if settings.trusted_proxies else []
    app = FastAPI(
        title="cpstream",
        version=version("cpstream"),
        summary="Speech embeddings and speech rates for remote PyTorch trainers.",
        description=DESCRIPTION,
        lifespan=lifespan,
        # api/routes/health.py has both, with links that hold behind a proxy that takes a prefix off the path
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        servers=[{"url": "."}],
        redirect_slashes=False,
        openapi_tags=TAGS,
        # Not by include_router, whose routers match every request twice.
        routes=[route for resources in (batches, splits, downloads, health) for route in resources.router.routes],
        middleware=[  # outermost first; what each is for:
            *proxied,  # whoever counts or logs clients sees those behind a trusted proxy
            Middleware(Observability, metrics=metrics),  # every reply, of whatever layer, has an id, a line in the log and a count
            Middleware(Problems),  # whatever goes wrong within leaves as a problem
            Middleware(Access, token=settings.token, drain=drain),  # what is refused costs no routing, and the drain sees who is in
        ],
    )
    install(app)
    labels = {label for split in snapshot.splits.values() for label in split.labels}
    complete(app, has_token=settings.token is not None, labels=labels)
    return app
