"""The application: create_app(snapshot, settings) puts routes, middleware and state together. Nothing happens at import."""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext
from importlib import metadata

from fastapi import FastAPI
from starlette.middleware import Middleware

from .api.access import Access
from .api.description import DESCRIPTION, TAGS, complete
from .api.drain import Drain
from .api.follow import Follower
from .api.forgetting import Forgetful, Forgetting
from .api.metrics import Metrics
from .api.observability import Observability
from .api.problems import Problems, install
from .api.proxies import ProxyHeaders
from .api.routes import (
    batches,
    client,
    difference,
    docs,
    downloads,
    figures,
    health,
    login,
    measure,
    page,
    page_live,
    page_rows,
    page_runs,
    page_versions,
    predictions,
    rows,
    splits,
)
from .api.routes import versions as versions_routes
from .api.routing import Route
from .api.state import Service
from .api.tracing import tracing
from .api.versions import Version, Versions
from .batches.limits import Limits
from .batches.server import BatchServer
from .credentials import Credentials
from .hangup import Hangup, on_hangup
from .settings import DataSettings, ServeSettings
from .snapshot.store import Snapshot, Split
from .statistics.jobs import Jobs
from .versions.control import Control


def create_app(
    snapshot: Snapshot | None,
    settings: ServeSettings,
    *,
    stale_reason: str | None = None,
    control: Control | None = None,
    credentials: Credentials | None = None,
    hangup: Hangup | None = None,
    data: DataSettings | None = None,
) -> FastAPI:
    """An ASGI application that serves the snapshot; or, with None and the control folder of a keeper, what that tells it to.

    stale_reason: why the snapshot may be older than its source, or None; credentials: those that TLS takes, too; hangup: as it was
    when the first process started; data: where the data is from, where its forget list is to be followed.
    """
    metrics = Metrics()
    drain = Drain(settings.drain_timeout_s)
    access, hung_up = credentials or Credentials(settings), hangup or Hangup.at_start()
    # Not by include_router, whose routers match every request twice.
    resources = (
        batches,
        measure,
        splits,
        versions_routes,
        difference,
        rows,
        figures,
        predictions,
        downloads,
        client,
        docs,
        page,
        login,
        page_rows,
        page_runs,
        page_versions,
        page_live,
        health,
    )
    routes = [route for each in resources for route in each.router.routes]
    open_routes = [route for route in routes if isinstance(route, Route) and route.needs is None]
    traced = tracing(os.environ)
    limits = None if control is None or settings.workers == 1 else Limits(control.shared_folder())
    forgetting = None if data is None or data.forget_list is None else Forgetting(data)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batch_server = BatchServer(settings, limits)
        versions = Versions(batch_server, stale_reason)
        follower = None if control is None else Follower(versions, settings, control)
        jobs = Jobs(settings.roles, lambda: drain.draining)
        service = app.state.service = Service(versions, settings, batch_server, metrics, drain, jobs, follower)
        metrics.held.splits, metrics.held.versions = versions.splits, lambda: len(versions.held)
        metrics.held.state, metrics.held.is_stale = lambda: service.state, lambda: service.is_stale
        async with nullcontext() if forgetting is None else forgetting.watching(versions, service.runs):  # before anything is open
            if snapshot is not None:
                versions.open(Version.of(snapshot, settings))
                versions.make_current(snapshot.path.name)
            async with nullcontext() if follower is None else follower.following():
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
            *([] if forgetting is None else [Middleware(Forgetful, forgetting=forgetting)]),  # nothing is kept, all can be cut
            Middleware(Problems),  # whatever goes wrong within leaves as a problem
            # what is refused costs no routing, and the drain sees who is in
            Middleware(
                Access,
                tokens=lambda: access.tokens,
                open_routes=open_routes,
                drain=drain,
                wants_certificate=settings.tls_client_ca_file is not None,
                limits=limits,
            ),
        ],
    )
    app.state.credentials = access
    install(app)

    def labels() -> set[str]:
        service: Service | None = getattr(app.state, "service", None)
        held: Iterable[Split] = () if snapshot is None else snapshot.splits.values()
        return {label for split in (held if service is None else service.versions.splits()) for label in split.labels}

    complete(app, has_token=settings.has_token, labels=labels)
    return app
