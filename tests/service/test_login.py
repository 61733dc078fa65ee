"""A browser shows its token once: the form, and the cookie, which opens what the token may read and nothing else."""

import hashlib
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
import trustme
from conftest import serving
from fastapi import FastAPI
from test_access import EXAMPLES, LEFT_OPEN, bearer
from test_prefix import stripping_proxy
from test_problems import problem_of

from cpstream_service.api import cookies
from cpstream_service.api.routing import Route
from cpstream_service.app import create_app
from cpstream_service.credentials import Credentials
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot
from cpstream_service.tokens import SCOPES, Tokens, tokens_of

READ, ALL, OPS, HASHED = "r3ad-é", "a11", "0ps", "h4shed"
FILE = f"""
[people]
token = "{READ}"
["all.of-it"]
token = "{ALL}"
scopes = ["read", "write", "metrics", "admin"]
[ops]
token = "{OPS}"
scopes = ["metrics"]
[hashed]
sha256 = "{hashlib.sha256(HASHED.encode()).hexdigest()}"
"""
LOOKING = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def credentials(file: Path) -> Credentials:
    return Credentials(ServeSettings(tokens_file=file))


@pytest.fixture
def app(snapshot: Snapshot, file: Path, credentials: Credentials) -> FastAPI:
    return create_app(snapshot, ServeSettings(tokens_file=file), credentials=credentials)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    """A browser without scripts: it looks at pages, and keeps cookies."""
    with httpx.Client(base_url=url, headers=LOOKING) as client:
        yield client


def log_in(http: httpx.Client, token: str, **headers: str) -> httpx.Response:
    return http.post("login", data={"token": token, "to": "v1/splits"}, headers=headers)


# The cookie itself


def test_a_cookie_is_opened_by_the_token_that_it_was_made_for() -> None:
    tokens = tokens_of("s3cret-é" * 8, None)
    (token,) = tokens.tokens
    value = cookies.sealed(token, ("s3cret-é" * 8).encode(), 1000)
    assert re.fullmatch(r"default\.1000\.[A-Za-z0-9_-]+", value)
    assert cookies.opened(value, tokens, 999) == replace(token, scopes=frozenset({"read", "metrics"}))
    assert cookies.opened(value, tokens, 1000) is None
    assert cookies.opened(value, tokens_of("another", None), 999) is None
    assert cookies.opened(value, Tokens(), 999) is None
    assert value != cookies.sealed(token, ("s3cret-é" * 8).encode(), 1000)


def test_a_cookie_that_was_changed_anywhere_is_none() -> None:
    tokens = tokens_of("s3cret", None)
    value = cookies.sealed(tokens.tokens[0], b"s3cret", 1000)
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_. +"
    for at in range(len(value)):
        for letter in letters:
            changed = value[:at] + letter + value[at + 1 :]
            assert changed == value or cookies.opened(changed, tokens, 999) is None, changed
    for changed in ("", ".", "..", "default", "default.1000", "default.1000.", value[:-2], value + "AAAA", "x." + value, value * 2):
        assert cookies.opened(changed, tokens, 999) is None, changed
    for expires in ("9999", "01000", "+1000", "1_000", " 1000", "1000.0", "inf", "9" * 5000, "１０００"):
        assert cookies.opened(value.replace("1000", expires), tokens, 999) is None, expires


def test_who_knows_the_hash_of_a_token_makes_no_cookie() -> None:
    """The file may hold the hash alone, so that it lets nobody in."""
    tokens = tokens_of("s3cret", None)
    (token,) = tokens.tokens
    (digest,) = token.digests
    for guess in (digest, digest.hex().encode(), b""):
        assert cookies.opened(cookies.sealed(token, guess, 1000), tokens, 999) is None
    salt = bytes(16)
    for guess in (digest, b"s3cre7"):
        hidden = cookies._hide(guess, digest, salt, "default", 1000)
        value = f"default.1000.{cookies.urlsafe_b64encode(salt + hidden).decode()}"
        assert cookies.opened(value, tokens, 999) is None


# The form


def test_whoever_looks_is_shown_a_form_and_programs_a_problem(http: httpx.Client, snapshot: Snapshot) -> None:
    for path in ("/", "/docs", "/v1/splits/dev/rows?offset=2", "/page/nothing/here", "/v1/splits/a%2Fb"):
        shown = http.get(path)
        assert (shown.status_code, shown.headers["www-authenticate"]) == (401, "Bearer"), path
        assert shown.headers["content-type"] == "text/html; charset=utf-8"
        assert shown.headers["cache-control"] == "no-store"
        assert "script-src 'self'" in shown.headers["content-security-policy"]
        (action,) = re.findall(r'<form[^>]* action="([^"]+)"', shown.text)
        assert urljoin(str(shown.url), action) == str(http.base_url.join("/login"))
        for link in re.findall(r'(?:href|src)="([^"#]+\.(?:js|css|svg))"', shown.text):
            assert http.get(urljoin(str(shown.url), link)).status_code == 200, link
        assert not any(word in shown.text for word in (snapshot.fingerprint, "train"))
        for accept in ("application/json", "*/*", "text/csv", "application/problem+json, text/html;q=0.1"):
            refused = http.get(path, headers={"Accept": accept})
            assert accept.startswith("application/problem") or problem_of(refused)["code"] == "unauthorized", accept
    assert http.post("/v1/splits/dev/batches", content=b"").json()["code"] == "unauthorized"


def test_after_the_login_comes_what_was_asked_for(http: httpx.Client) -> None:
    shown = http.get("/v1/splits/dev/rows?search=a%26b%22&sort=cps")
    (target,) = re.findall(r'name="to" value="([^"]+)"', shown.text)
    reply = http.post("/login", data={"token": f" {READ}\n", "to": target.replace("&amp;", "&").replace("&#34;", '"')})
    assert reply.status_code == 303
    assert urljoin(str(reply.url), reply.headers["location"]) == str(shown.url)
    assert http.get(reply.headers["location"].removeprefix(".")).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "\\\\evil",
        "../../evil",
        "%2e%2e/x",
        "x\r\nSet-Cookie: a=b",
        "é\ud7ff",
    ],
)
def test_the_login_leads_to_no_other_site(http: httpx.Client, target: str) -> None:
    reply = http.post("/login", data={"token": READ, "to": target})
    assert reply.status_code == 303
    where = urljoin(f"{http.base_url}/lab/data/login", reply.headers["location"].replace("\\", "/"))
    assert where.startswith(f"{http.base_url}/lab/data/"), where
    assert reply.headers.get_list("set-cookie")[0].startswith("cpstream_")
    assert len(reply.headers.get_list("set-cookie")) == 1


def test_a_token_that_opens_nothing_is_refused_in_the_form(http: httpx.Client) -> None:
    for token, status, says in [
        ("mistyped", 401, "This token is wrong"),
        ("", 401, "The token is empty"),
        ("a\nb", 401, "The token has a line break"),
        ("<script>alert(1)</script>", 401, "This token is wrong"),
        (OPS, 403, "Token ops has the scopes metrics, and this needs read"),
    ]:
        reply = log_in(http, token)
        assert (reply.status_code, reply.headers["content-type"]) == (status, "text/html; charset=utf-8"), token
        assert says in reply.text
        assert 'role="alert"' in reply.text
        assert 'name="to" value="v1/splits"' in reply.text
        assert token in ("", OPS) or token not in reply.text
        assert "set-cookie" not in reply.headers
    for body, kind in [(b"token=x", "text/plain"), (b"a=1&" * 9, FORM), (b"token=%ff\xff", FORM)]:
        assert problem_of(http.post("/login", content=body, headers={"Content-Type": kind}))["code"] == "invalid-parameter"
    assert http.post("/login", data={"token": "x" * 20_000}).status_code == 413


FORM = "application/x-www-form-urlencoded"


def test_a_token_without_the_scope_is_told_so_and_nothing_else(http: httpx.Client, snapshot: Snapshot) -> None:
    for path in ("/", "/page/splits/dev"):
        refused = http.get(path, headers=bearer(OPS))
        assert (refused.status_code, refused.headers["content-type"]) == (403, "text/html; charset=utf-8"), path
        assert "token ops has the scopes metrics, and this needs read" in refused.text
        assert not any(word in refused.text for word in (snapshot.fingerprint, "train"))


def test_no_page_of_another_site_logs_anybody_in_or_out(http: httpx.Client, url: str) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site", "Origin": url}):
        assert log_in(http, READ, **headers).status_code == 403, headers
        assert problem_of(http.post("/logout", headers=headers))["code"] == "forbidden"
    for headers in ({"Origin": url}, {"Sec-Fetch-Site": "same-origin", "Origin": "https://outside.example"}, {}):
        assert log_in(http, READ, **headers).status_code == 303, headers


# What the cookie opens


def test_a_cookie_opens_what_its_token_may_read_and_nothing_else(http: httpx.Client, app: FastAPI, url: str) -> None:
    assert log_in(http, ALL).status_code == 303
    (pair,) = ("=".join(pair) for pair in http.cookies.items())
    foreign = f"{pair[:-8]}AAAAAAAA"
    with httpx.Client(base_url=url) as plain:  # which keeps none: one of the routes logs out
        for route in app.routes:
            assert isinstance(route, Route)
            path = re.sub(r"{(\w+)(:\w+)?}", lambda found: EXAMPLES[found[1]], route.path)
            for method in {*(route.methods or ()), *({"HEAD"} if "GET" in (route.methods or ()) else ())}:
                status = plain.request(method, path, headers={"Cookie": f"other=1; {pair}"}).status_code
                if route.needs is None or (method in ("GET", "HEAD") and route.needs in ("read", "metrics")):
                    assert status not in (401, 403), (method, path)
                else:
                    assert status in (401, 403), (method, path)
                without = plain.request(method, path, headers=LOOKING | {"Cookie": foreign})
                assert route.path_format in LEFT_OPEN or without.status_code == 401, (method, path)


def test_a_cookie_has_the_scopes_of_its_token_at_most(http: httpx.Client) -> None:
    assert log_in(http, READ).status_code == 303
    assert http.get("/v1/splits").status_code == 200
    assert problem_of(http.get("/metrics"))["code"] == "forbidden"
    assert problem_of(http.post("/v1/splits/dev/batches", content=b""))["code"] == "unauthorized"
    assert http.get("/v1/splits", headers=bearer("wrong")).status_code == 401  # what is said by the header counts
    assert set(SCOPES) == {"read", "write", "metrics", "admin"}  # a new one must be thought of in cookies.READING


def test_a_cookie_is_kept_from_scripts_other_sites_and_caches(http: httpx.Client) -> None:
    reply = log_in(http, HASHED)
    (cookie,) = reply.headers.get_list("set-cookie")
    value, *attributes = cookie.split("; ")
    assert {attribute.lower() for attribute in attributes} == {"httponly", "samesite=lax", f"max-age={cookies.LIFE_S}"}
    assert HASHED not in value
    within_tls = log_in(http, HASHED, Origin="https://data.example", Host="data.example")
    assert "secure" in within_tls.headers["set-cookie"].lower().split("; ")
    info = http.get("/v1/splits/dev").json()
    kept = http.get("/v1/splits/dev/rows", params={"fingerprint": info["fingerprint"]})
    assert kept.headers["cache-control"] == "private, max-age=31536000, immutable, no-transform"
    assert "Cookie" in kept.headers["vary"]
    assert "private" not in http.get("/v1/splits", headers=bearer(ALL)).headers["cache-control"]


def test_under_tls_a_cookie_is_sent_by_tls_alone(app: FastAPI, tmp_path: Path) -> None:
    ca, pem, context = trustme.CA(), tmp_path / "server.pem", ssl.create_default_context()
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    ca.configure_trust(context)
    with serving(app, ssl_certfile=str(pem)) as url, httpx.Client(base_url=url, verify=context) as http:
        assert "secure" in log_in(http, READ).headers["set-cookie"].lower().split("; ")
        assert http.get("/v1/splits").status_code == 200


def test_a_cookie_ends_with_its_token_and_holds_on_every_replica(
    http: httpx.Client, file: Path, credentials: Credentials, snapshot: Snapshot
) -> None:
    log_in(http, READ)
    with serving(create_app(snapshot, ServeSettings(tokens_file=file))) as other:
        (pair,) = http.cookies.items()
        cookie = {"Cookie": f"cpstream_{other.rpartition(':')[2]}={pair[1]}"}  # as if it were behind the same name
        assert httpx.get(f"{other}/v1/splits", headers=cookie).status_code == 200
    for tokens, status in [(f'["new", "{READ}"]', 200), ('"new"', 401), (f'"{READ}"', 200)]:
        file.write_text(FILE.replace(f'"{READ}"', tokens))
        credentials.read_again()
        assert http.get("/v1/splits").status_code == status, tokens
    file.write_text(FILE.replace("[people]", "[others]"))
    credentials.read_again()
    assert http.get("/v1/splits").status_code == 401
    file.write_text(FILE.replace(f'"{READ}"', f'"{READ}"\nscopes = ["write"]'))
    credentials.read_again()
    assert http.get("/v1/splits").status_code == 401


def test_an_expired_cookie_is_none(http: httpx.Client, url: str, credentials: Credentials) -> None:
    token = credentials.tokens.find(READ.encode())
    assert token is not None
    for expires_s, status in [(int(time.time()) - 1, 401), (int(time.time()) + 3600, 200)]:
        value = cookies.sealed(token, READ.encode(), expires_s)
        cookie = {"Cookie": f"other=1; {cookies.cookie_name(url.partition('//')[2])}={value}"}
        assert httpx.get(f"{url}/v1/splits", headers=cookie).status_code == status


def test_behind_a_prefix_the_cookie_is_of_the_prefix(url: str) -> None:
    with stripping_proxy(url) as proxied, httpx.Client(headers=LOOKING) as http:
        shown = http.get(f"{proxied}/v1/splits/dev")
        (action,) = re.findall(r'<form[^>]* action="([^"]+)"', shown.text)
        reply = http.post(urljoin(str(shown.url), action), data={"token": READ, "to": "v1/splits/dev"})
        assert urljoin(str(reply.url), reply.headers["location"]) == f"{proxied}/v1/splits/dev"
        assert [cookie.path for cookie in http.cookies.jar] == ["/lab/data"]
        assert http.get(f"{proxied}/").status_code == 200
        assert http.get(f"{proxied}/v1/splits/dev").status_code == 200


def test_logging_out(http: httpx.Client) -> None:
    log_in(http, READ)
    assert http.get("/v1/splits").status_code == 200
    reply = http.post("/logout")
    assert (reply.status_code, reply.headers["location"]) == (303, ".")
    assert not http.cookies
    assert http.get("/v1/splits").status_code == 401


def test_without_tokens_there_is_nothing_to_log_in_to(snapshot: Snapshot) -> None:
    with serving(create_app(snapshot, ServeSettings())) as url, httpx.Client(base_url=url, headers=LOOKING) as http:
        for reply in (http.get("/login"), http.post("/login", data={"token": "x", "to": "v1/splits"})):
            assert reply.status_code == 303
            assert "set-cookie" not in reply.headers
