"""Who may do what: every route of the app, with every scope, by name and not by value; and whose page may change something."""

import base64
import logging
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import trustme
from conftest import poll, serving
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from test_problems import problem_of

from cpstream_client.contract import wire
from cpstream_service.api.rights import needs
from cpstream_service.api.routing import Route
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot
from cpstream_service.tokens import SCOPES

VALUES = {"read": "read-er's", "write": "write-r's", "metrics": "metr-ic's", "admin": "adm-in's"}
FILE = "".join(f'[{scope}er]\ntoken = "{VALUES[scope]}"\nscopes = ["{scope}"]\n' for scope in SCOPES)
LEFT_OPEN = {
    "/livez",
    "/readyz",
    "/problems/{code}",
    "/client",
    "/client/{name}",
    "/docs/{name}",
    "/page/static/{version}/{name}",
    "/login",
    "/logout",
}
OF_REFUSALS = {"date", "server", "content-type", "content-length", "cache-control", "content-digest", "www-authenticate"} | {
    wire.REQUEST_ID_HEADER.lower(),
    wire.CONTRACT_HEADER.lower(),
}
EXAMPLES = {"split": "dev", "code": "unauthorized", "name": "cpstream.whl", "version": "1", "index": "0"}


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def app(snapshot: Snapshot, tokens_file: Path) -> FastAPI:
    return create_app(snapshot, ServeSettings(tokens_file=tokens_file))


@pytest.fixture(scope="module", params=["http", "https"])
def http(request: pytest.FixtureRequest, app: FastAPI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service with a token of each scope, without any."""
    with ExitStack() as stack:
        options, context = {}, ssl.create_default_context()
        if request.param == "https":
            ca, pem = trustme.CA(), tmp_path_factory.mktemp("tls") / "server.pem"
            ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
            ca.configure_trust(context)
            options = {"ssl_certfile": str(pem)}
        url = stack.enter_context(serving(app, **options))
        yield stack.enter_context(httpx.Client(base_url=url, verify=context))


def test_a_token_opens_what_its_scope_does_and_nothing_leaves_without(http: httpx.Client, app: FastAPI, snapshot: Snapshot) -> None:
    splits = snapshot.splits.values()
    paths = [path for split in splits for path in split.file_paths.to_pylist()[:3]]
    words = [snapshot.fingerprint, *(split.fingerprint for split in splits), *paths, "num_samples", "cpstream_"]
    secret = re.compile("|".join(map(re.escape, words)))

    def check_refused(reply: httpx.Response, status: int, code: str) -> None:
        what = f"{reply.request.method} {reply.url}"
        assert reply.status_code == status, what
        assert reply.request.method == "HEAD" or problem_of(reply)["code"] == code, what
        assert not secret.search(reply.text), what
        assert set(reply.headers) <= OF_REFUSALS, what

    needed_at: dict[str, set[str | None]] = {}
    for route in app.routes:
        assert isinstance(route, Route), f"{route} is not checked: make it a Route of api/routing.py"
        url = re.sub(r"{(\w+)(:\w+)?}", lambda found: EXAMPLES[found[1]], route.path)
        needed_at.setdefault(route.path_format, set()).add(route.needs)
        for method in {*route.methods, *({"HEAD"} if "GET" in route.methods else ())}:
            for headers in ({}, bearer("wrong"), {"Authorization": "Basic Og=="}, {"Cookie": "cpstream=reader.9999999999.AAAA"}):
                reply = http.request(method, url, headers=headers)
                if route.needs is None:
                    assert reply.status_code not in (401, 403), url
                    assert not secret.search(reply.text), url
                else:
                    check_refused(reply, 401, "unauthorized")
            for scope in SCOPES:
                reply = http.request(method, url, headers=bearer(VALUES[scope]))
                if route.needs in (scope, None):
                    assert reply.status_code not in (401, 403), (method, url, scope)
                else:
                    check_refused(reply, 403, "forbidden")
    assert {path for path, needed in needed_at.items() if None in needed} == LEFT_OPEN
    assert needed_at["/metrics"] == {"metrics"}
    for path in ("/v1/splits", "/v1/splits/{split}/take", "/", "/docs", "/openapi.json"):
        assert needed_at[path] == {"read"}, path


def test_readyz_says_more_to_whoever_has_a_token(http: httpx.Client, snapshot: Snapshot) -> None:
    assert http.get("/readyz").json() == {"status": "ready"}
    assert http.get("/readyz", headers=bearer("wrong")).json() == {"status": "ready"}
    assert http.get("/readyz", headers=bearer(VALUES["metrics"])).json()["fingerprint"] == snapshot.fingerprint


def test_a_token_counts_as_a_password_too(http: httpx.Client) -> None:
    """No browser is told so, which would ask its user before it shows the form of test_login.py."""
    assert http.get("/", headers={"Accept": "text/html,*/*;q=0.1"}).headers["www-authenticate"] == "Bearer"
    assert http.get("/", auth=("anybody", VALUES["read"])).status_code == 200
    assert http.get("/", auth=("anybody", VALUES["metrics"])).status_code == 403
    without_colon = base64.b64encode(VALUES["read"].encode()).decode()
    for given in (without_colon, "not base64", "", "é"):
        assert http.get("/", headers={"Authorization": f"Basic {given}".strip().encode()}).status_code == 401, given


def test_logs_name_the_token_and_never_show_it(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    sent = [VALUES["read"], VALUES["admin"], "a mistyped one"]

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if getattr(record, "request_id", "").startswith("of-this-test-")]

    with caplog.at_level("INFO", "cpstream.access"):
        for number, value in enumerate(sent):
            http.get("/v1/splits", headers=bearer(value) | {wire.REQUEST_ID_HEADER: f"of-this-test-{number}"})
        poll(lambda: len(lines()) == 3)
    assert [record.__dict__["token"] for record in lines()] == ["reader", "adminer", None]
    said = "".join(str(record.__dict__) + record.getMessage() for record in lines())
    assert not any(value in said for value in sent)


# Requests that change something


@needs("admin")
async def change() -> PlainTextResponse:
    return PlainTextResponse("changed")


def with_change(snapshot: Snapshot, settings: ServeSettings) -> FastAPI:
    app = create_app(snapshot, settings)
    app.router.routes.append(Route("/v1/change", change, methods=["POST"]))
    return app


def test_without_tokens_only_this_machine_may_change_something(snapshot: Snapshot) -> None:
    app = with_change(snapshot, ServeSettings(trusted_proxies=("127.0.0.9",)))
    with serving(app) as url, httpx.Client(base_url=url) as http:
        port = url.rpartition(":")[2]
        proxied = httpx.Client(base_url=url, transport=httpx.HTTPTransport(local_address="127.0.0.9"))
        assert http.post("/v1/change").text == "changed"
        for own in (f"localhost:{port}", "localhost", f"[::1]:{port}", "service.localhost"):
            assert http.post("/v1/change", headers={"Host": own, "Origin": f"http://{own}"}).text == "changed", own
        for headers, says in [
            ({"Host": "evil.example"}, "Host is 'evil.example', and without tokens"),
            ({"Host": f"localhost.evil.example:{port}"}, "taken for localhost alone"),
            ({"Host": "10.0.0.7"}, "Host is '10.0.0.7'"),
            ({"Origin": "https://evil.example"}, "Origin is 'https://evil.example', a page of another site"),
            ({"Origin": "null"}, "Origin is 'null'"),
            ({"Origin": "http://127.0.0.1:1"}, "Origin is"),
            ({"X-Forwarded-For": "127.0.0.1"}, "only its own machine may do this (admin)"),
            ({"Forwarded": "for=10.0.0.7"}, "--tokens-file, CPSTREAM_TOKEN"),
        ]:
            refused = http.post("/v1/change", headers=headers)
            assert problem_of(refused)["code"] == "forbidden"
            assert says in refused.json()["detail"], headers
        with proxied:
            assert proxied.post("/v1/change", headers={"X-Forwarded-For": "10.0.0.7"}).status_code == 403
        assert http.get("/v1/splits", headers={"Host": "evil.example", "Origin": "https://evil.example"}).status_code == 200


def test_with_a_token_a_page_of_another_site_changes_nothing(snapshot: Snapshot, tokens_file: Path) -> None:
    """A browser sends the password of Basic by itself, whoever's page asks."""
    settings = ServeSettings(tokens_file=tokens_file, trusted_proxies=("127.0.0.9",))
    with serving(with_change(snapshot, settings)) as url, httpx.Client(base_url=url, auth=("", VALUES["admin"])) as http:
        assert http.post("/v1/change", headers={"Host": "data.example"}).text == "changed"
        assert http.post("/v1/change", headers={"Host": "data.example", "Origin": "https://data.example"}).text == "changed"
        for origin in ("https://evil.example", "https://data.example.evil.example", "https://data.example:444", "null"):
            refused = http.post("/v1/change", headers={"Host": "data.example", "Origin": origin})
            assert (refused.status_code, problem_of(refused)["code"]) == (403, "forbidden"), origin
        outside = {"Host": "backend:8000", "Origin": "https://data.example", "X-Forwarded-Host": "data.example"}
        assert http.post("/v1/change", headers=outside).status_code == 403  # whoever sends it may say so
        proxied = httpx.Client(base_url=url, auth=http.auth, transport=httpx.HTTPTransport(local_address="127.0.0.9"))
        with proxied:
            assert proxied.post("/v1/change", headers=outside).text == "changed"
            assert proxied.post("/v1/change", headers=outside | {"X-Forwarded-Host": "evil.example"}).status_code == 403
