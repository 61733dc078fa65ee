"""The application: create_app(snapshot, settings) puts routes, middleware and state together. Nothing happens at import."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata

from fastapi import FastAPI
from starlette.middleware import Middleware

from .api.access import Access
from .api.description import DESCRIPTION, TAGS, complete
from .api.drain import Drain
from .api.metrics import Metrics
from .api.observability import Observability
from .api.problems import Problems, install
from .api.proxies import ProxyHeaders
from .api.routes import batches, client, downloads, figures, health, measure, rows, splits
from .api.routing import Route
from .api.state import Service
from .api.tracing import tracing
from .api.versions import Version, Versions
from .batches.server import BatchServer
from .credentials import Credentials
from .hangup import Hangup, on_hangup
from .settings import ServeSettings
from .snapshot.store import Snapshot
from .statistics.jobs import Jobs


def create_app(
    snapshot: Snapshot,
    settings: ServeSettings,
    *,
    stale_reason: str | None = None,
    load_s: float | None = None,
    credentials: Credentials | None = None,
    hangup: Hangup | None = None,
) -> FastAPI:
    """An ASGI application that serves the snapshot. stale_reason: why it may be older than its source, or None; load_s: what
    loading it took, for the metrics; credentials: those that TLS takes, too; hangup: as it was when the first process started.
    """
    metrics = Metrics()
    drain = Drain(settings.drain_timeout_s)
    access, hung_up = credentials or Credentials(settings), hangup or Hangup.at_start()
    # Not by include_router, whose routers match every request twice.
    routes = [
        route
        for resources in (batches, measure, splits, rows, figures, downloads, client, health)
        for route in resources.router.routes
    ]
    open_routes = [route for route in routes if isinstance(route, Route) and route.needs is None]
    traced = tracing(os.environ)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batch_server = BatchServer(settings)
        versions = Versions(batch_server, stale_reason)
        versions.open(Version.of(snapshot, settings))
        versions.make_current(snapshot.path.name)
        metrics.held.splits, metrics.held.load_s = versions.splits, lambda: load_s
        metrics.held.versions = lambda: len(versions.held)
        jobs = Jobs(settings.roles)
        app.state.service = Service(versions, settings, batch_server, metrics, drain, jobs)
        with drain.on_signals(), on_hangup(hung_up, access.read_again):
            yield
        jobs.close()
        versions.close()
        batch_server.close()
        if traced is not None:
            traced.end()

    proxied = [Middleware(ProxyHeaders, trusted_hosts=list(settings.trusted_proxies))] if settings.trusted_proxies else []
    app = FastAPI(
        title="cpstream",
        version=metadata.version("cpstream"),
        summary="Speech embeddings and speech rates for remote PyTorch trainers.",
        description=DESCRIPTION,
        lifespan=lifespan,
        # api/routes/health.py has both, with links that hold behind a proxy that takes a prefix off the path
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        servers=[{"url": "."}],
        redirect_slashes=False,
        **({} if traced is None else {"telemetry": traced.config}),  # older ones of FastAPI have no such parameter
        openapi_tags=TAGS,
        routes=routes,
        middleware=[  # outermost first; what each is for:
            *proxied,  # whoever counts or logs clients sees those behind a trusted proxy
            # every reply, of whatever layer, has an id, a line in the log and a count
            Middleware(Observability, metrics=metrics, span=None if traced is None else traced.span),
            Middleware(Problems),  # whatever goes wrong within leaves as a problem
            # what is refused costs no routing, and the drain sees who is in
            Middleware(
                Access,
                tokens=lambda: access.tokens,
                open_routes=open_routes,
                drain=drain,
                wants_certificate=settings.tls_client_ca_file is not None,
            ),
        ],
    )
    install(app)

    def labels() -> set[str]:
        service: Service | None = getattr(app.state, "service", None)
        splits = snapshot.splits.values() if service is None else service.versions.splits()
        return {label for split in splits for label in split.labels}

    complete(app, has_token=settings.has_token, labels=labels)
    return app
