"""Connecting to Chroma servers as they are deployed, and what is said where that fails: one line each."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from chromaproxy import chroma_proxy
from conftest import bound, serving
from data import chroma_port, cps_of, make_rows, make_settings, write_cps  # noqa: F401
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from cpstream_service.dataset import RegressionEmbeddingsDataset
from cpstream_service.errors import DataError, SourceUnavailableError
from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.sources.chroma import pages
from cpstream_service.sources.chroma.client import open_client
from cpstream_service.sources.chroma.read import read_chroma

ROWS = make_rows(40)
NAME = "connected"


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> DataSettings:
    """Settings of a collection of 40 records of the split train, on a real server."""
    port = request.getfixturevalue("chroma_port")
    made = make_settings(tmp_path / "source", source_type="chromadb", collection_name=NAME)
    made = replace(made, source_path=None, chroma_url=f"http://127.0.0.1:{port}", cps_csv=str(tmp_path / "{split}.csv"))
    write_cps(tmp_path / "train.csv", cps_of(ROWS))
    with open_client(made) as client:
        fill(client.get_or_create_collection(NAME, embedding_function=None))
    return made


def fill(collection: Any) -> None:
    collection.upsert(
        ids=[f"id{i}" for i in range(len(ROWS))],
        embeddings=[row["embedding"] for row in ROWS],
        metadatas=[{"split": "train", "file_path": row["file_path"]} for row in ROWS],
    )


def has_ipv6() -> bool:
    try:
        bound(host="::1").close()
    except OSError:
        return False
    return True


def port_of(settings: DataSettings) -> int:
    return int(str(settings.chroma_url).rpartition(":")[2])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Settings of a uvicorn that has a certificate of the authority's."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for i, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(folder / "cert.pem", append=i > 0)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return {"ssl_keyfile": folder / "key.pem", "ssl_certfile": folder / "cert.pem"}


@pytest.mark.parametrize("header", ["Authorization", "X-Chroma-Token"])
def test_behind_tls_a_prefix_and_a_token(
    settings: DataSettings, tls: dict[str, Path], authority: trustme.CA, tmp_path: Path, header: str
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "token").write_text("s3cret\n")
    wanted = {header: "Bearer s3cret" if header == "Authorization" else "s3cret"}
    with chroma_proxy(port_of(settings), prefix="/data/chroma", headers=wanted, **tls) as url:
        assert url.startswith("https://")
        deployed = replace(settings, chroma_url=f"{url}/", chroma_ca_file=tmp_path / "ca.pem", chroma_token_file=tmp_path / "token")
        assert load(deployed).snapshot.fingerprint == load(settings).snapshot.fingerprint
        twin = RegressionEmbeddingsDataset(
            None,
            "train",
            "chromadb",
            settings.cps_csv,
            NAME,
            chroma_url=url,
            chroma_ca_file=tmp_path / "ca.pem",
            chroma_token_file=tmp_path / "token",
        )
        assert len(twin) == len(ROWS)
        with pytest.raises(DataError, match=rf"^{url}: its certificate is not trusted \(.+\); set --chroma-ca-file to the PEM"):
            load(replace(deployed, chroma_ca_file=None))
        (tmp_path / "token").write_text("other")
        with pytest.raises(DataError, match=r"answers 401 Unauthorized: the token or headers given are refused; set --chroma-tok"):
            load(deployed)
        with pytest.raises(DataError, match=r"answers 401 Unauthorized: it wants a token or headers; set --chroma-token-file or"):
            load(replace(deployed, chroma_token_file=None))


def test_headers_from_a_file(settings: DataSettings, tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("# of the gateway\n\nX-Gate: a: b\nAuthorization:Basic dTpw\n")
    with chroma_proxy(port_of(settings), headers={"x-gate": "a: b", "authorization": "Basic dTpw"}) as url:
        read = read_chroma(replace(settings, chroma_url=url, chroma_headers_file=tmp_path / "headers"))
    assert len(read["train"].file_paths) == 40


def test_tenant_and_database(settings: DataSettings) -> None:
    httpx.post(f"{settings.chroma_url}/api/v2/tenants", json={"name": "speech-lab"}).raise_for_status()
    httpx.post(f"{settings.chroma_url}/api/v2/tenants/speech-lab/databases", json={"name": "rates"}).raise_for_status()
    deployed = replace(settings, chroma_tenant="speech-lab", chroma_database="rates")
    with pytest.raises(DataError, match="there is no collection 'connected'; it is empty; fill it: cpstream ingest"):
        load(deployed)
    with open_client(deployed) as client:
        fill(client.create_collection(NAME, embedding_function=None))
    assert load(deployed).snapshot.fingerprint == load(settings).snapshot.fingerprint
    assert load(deployed).snapshot.path != load(settings).snapshot.path
    with pytest.raises(DataError, match=r"^http://127.0.0.1:\d+: there is no tenant 'nope'; set --chroma-tenant$"):
        load(replace(deployed, chroma_tenant="nope"))
    with pytest.raises(DataError, match=r": there is no database 'nope' of tenant 'speech-lab'; set --chroma-database$"):
        load(replace(deployed, chroma_database="nope"))


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 address of its own")
def test_an_ipv6_address(settings: DataSettings) -> None:
    with chroma_proxy(port_of(settings), host="::1") as url:
        port = int(url.rpartition(":")[2])
        assert url == f"http://[::1]:{port}"
        by_host = replace(settings, chroma_url=None, chroma_port=port)
        for at in (replace(settings, chroma_url=url), replace(by_host, chroma_host="::1"), replace(by_host, chroma_host="[::1]")):
            assert len(read_chroma(at)["train"].file_paths) == 40
    unanswered = rf"^no Chroma server answers at http://\[::1\]:{port} \(.+--chroma-host and"
    with bound(port, "::1"), pytest.raises(SourceUnavailableError, match=unanswered):  # bound: no other process listens there
        read_chroma(replace(by_host, chroma_host="::1"))


# Replies that say no

FINAL = {
    400: "answers 400 Bad Request, but not as a Chroma server does (<b>no</b>); start it (chroma run), or set --chroma-url",
    401: "answers 401 Unauthorized: it wants a token or headers; set --chroma-token-file or --chroma-headers-file",
    403: "answers 403 Forbidden: it wants a token or headers; set --chroma-token-file or --chroma-headers-file",
    404: "answers 404 Not Found, but not as a Chroma server does (<b>no</b>); start it (chroma run), or set --chroma-url",
}
PASSING = {
    429: "answers 429 Too Many Requests (<b>no</b>); start again when it is well",
    500: "answers 500 Internal Server Error (<b>no</b>); start again when it is well",
    503: "answers 503 Service Unavailable (<b>no</b>); start again when it is well",
}
ASKED = ("/heartbeat", "/auth/identity", "/tenants/default_tenant", "/tenants/default_tenant/databases/default_database")


def refusing(settings: DataSettings, path: str, status: int) -> Any:
    """A proxy that answers this path so, as a gateway does."""
    return chroma_proxy(
        port_of(settings), answers=lambda asked: PlainTextResponse("<b>no</b>\n", status) if asked == path else None
    )


@pytest.mark.parametrize(("path", "status"), [(ASKED[0], 400), (ASKED[1], 401), (ASKED[1], 403), (ASKED[0], 404)])
def test_a_refusal_is_final_and_one_line(settings: DataSettings, path: str, status: int) -> None:
    with refusing(settings, path, status) as url:
        load(settings)
        with pytest.raises(DataError) as raised:
            load(replace(settings, chroma_url=url))
    assert not isinstance(raised.value, SourceUnavailableError)
    assert str(raised.value) == f"{url} {FINAL[status]}"


@pytest.mark.parametrize(("path", "status"), [(ASKED[0], 429), (ASKED[0], 500), *((path, 503) for path in ASKED)])
def test_what_may_pass_serves_the_last_good_snapshot(settings: DataSettings, path: str, status: int) -> None:
    away = False

    def answer(asked: str) -> Response | None:
        return PlainTextResponse("<b>no</b>\n", status) if away and asked == path else None

    with chroma_proxy(port_of(settings), answers=answer) as url:
        settings = replace(settings, chroma_url=url)
        with pytest.raises(SourceUnavailableError) as raised, refusing(settings, path, status) as other:
            load(replace(settings, chroma_url=other))
        assert str(raised.value) == f"{other} {PASSING[status]}"
        fresh = load(settings)
        away = True
        stale = load(settings)
    assert stale.snapshot.fingerprint == fresh.snapshot.fingerprint
    assert str(stale.stale_reason).startswith(f"{url} {PASSING[status]}; serving the snapshot of 20")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_fault_that_passes_while_it_is_read(settings: DataSettings, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAUSE_S", 0)
    answered = 0
    patience = 2

    def answer(asked: str) -> Response | None:
        nonlocal answered
        answered += asked.endswith("/get")
        return PlainTextResponse("", status) if asked.endswith("/get") and answered <= patience else None

    with chroma_proxy(port_of(settings), answers=answer) as url:
        assert len(read_chroma(replace(settings, chroma_url=url))["train"].file_paths) == 40
        answered, patience = 0, 1000
        with pytest.raises(SourceUnavailableError, match=rf"^{url}: Chroma answers: .+$"):
            read_chroma(replace(settings, chroma_url=url))


@pytest.mark.parametrize(
    "reply",
    [PlainTextResponse("<html>"), JSONResponse({"ids": 1}), JSONResponse([]), PlainTextResponse("no", 418), RedirectResponse("/")],
    ids=lambda reply: f"{reply.status_code}-{reply.body[:6]}",
)
def test_replies_of_something_else_are_one_line(settings: DataSettings, reply: Response) -> None:
    ending = ""
    with chroma_proxy(port_of(settings), answers=lambda asked: reply if ending and asked.endswith(ending) else None) as url:
        for ending in ("/get", "/count", f"/collections/{NAME}", "/heartbeat"):  # noqa: B007 - the proxy reads it
            with pytest.raises(DataError, match=rf"^{url} ?\S.+$") as raised:
                read_chroma(replace(settings, chroma_url=url))
            assert "\n" not in str(raised.value)


def test_a_redirect_says_where_to(settings: DataSettings) -> None:
    with (
        chroma_proxy(port_of(settings), answers=lambda _: RedirectResponse("https://login.example.org/?to=chroma")) as url,
        pytest.raises(
            DataError, match=r"answers 307 .*: it sends on to https://login.example.org/\?to=chroma; .* set --chroma-url"
        ),
    ):
        load(replace(settings, chroma_url=url))


def test_a_server_too_old_for_the_api() -> None:
    old = Starlette(routes=[Route("/api/v1/heartbeat", lambda _: JSONResponse({"nanosecond heartbeat": 1}))])
    with serving(old) as url, pytest.raises(DataError, match=f"^{url} is a Chroma server too old for the API v2; upgrade it"):
        read_chroma(DataSettings(source_type="chromadb", chroma_url=url))


# Settings that are wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chroma_url": "chroma:8000"}, "the Chroma URL 'chroma:8000' is not of http or https with a host and no query; set --"),
        ({"chroma_url": "http://h:x"}, "the Chroma URL 'http://h:x' is not valid (Port could not be cast"),
        ({"chroma_url": "http://h/?a=1"}, "is not of http or https with a host and no query"),
        (
            {"chroma_url": "http://user:secret@h"},
            "the Chroma URL holds a user or password; put them into a file instead: --chroma-h",
        ),
        ({"chroma_url": "http://h", "chroma_host": "h"}, "both --chroma-url and --chroma-host are set: leave one of them out"),
        ({"chroma_host": "http://h"}, "--chroma-host is 'http://h'; it is to be a name or an address: set --chroma-url to a URL"),
        (
            {"chroma_url": "http://h", "chroma_token_file": "none"},
            "none: cannot read it: No such file or directory; set --chroma-tok",
        ),
        ({"chroma_url": "http://h", "chroma_token_file": "empty"}, "empty: it is empty; write the token into it, or leave"),
        ({"chroma_url": "http://h", "chroma_token_file": "text"}, "text: it holds no token, which is ASCII without blanks; write"),
        (
            {"chroma_url": "http://h", "chroma_headers_file": "text"},
            "text, line 2: it is not a header; write one a line: Name: value",
        ),
        (
            {"chroma_url": "http://h", "chroma_headers_file": "binary"},
            "binary: it is not text; set --chroma-headers-file to a text",
        ),
        ({"chroma_url": "https://h", "chroma_ca_file": "none"}, "none: there is no such file; set --chroma-ca-file to a PEM file"),
        (
            {"chroma_url": "https://h", "chroma_ca_file": "text"},
            "text: it holds no certificate; set --chroma-ca-file to a PEM file",
        ),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    for name, content in (("empty", b"\n"), ("text", b"A: b\nno header\n"), ("binary", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
    changes = {name: tmp_path / value if name.endswith("_file") else value for name, value in changes.items()}
    with pytest.raises(DataError) as raised:
        load(make_settings(tmp_path / "source", source_type="chromadb", **changes))
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
