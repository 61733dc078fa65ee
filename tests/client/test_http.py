"""The ways to a service: TLS with a CA of one's own, proxies, client certificates, logins, hooks, and other httpx clients.

Each with a real server, and each streams an epoch through StreamingEmbeddingsDataset.
"""

import asyncio
import os
import pickle
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import trustme
from conftest import Server, serving
from oracle import FORKING, assert_same, epoch_of, local
from proxy import FRAMINGS, Proxy
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from cpstream_client import Client, CpstreamError, NotFoundError, Retry, TransportError, UnauthorizedError, UnreachableError
from cpstream_client.contract.wire import JSON
from cpstream_client.stream.lanes import Flow
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader
from cpstream_client.transport import options as http_options
from cpstream_client.transport.sockets import Line
from cpstream_service.app import create_app
from cpstream_service.credentials import Credentials
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

pytestmark = [*FORKING, pytest.mark.usefixtures("short_path")]  # requests are counted
PATIENT = Retry(timeout_s=300, contact_timeout_s=300)
"""So that only what is final at once ends before the test's own timeout."""


def check_epoch(source: Any, **options: Any) -> None:
    """An epoch, a sample at any place and the metadata, as the local twin has them."""
    train = StreamingEmbeddingsDataset(source, "train", batch_size=128, shuffle=True, seed=3, **options)
    assert_same(train, epoch_of(local("train"), batch_size=128, seed=3))
    embeddings, cps = RemoteEmbeddingsDataset(source, "train", **options)[[7, 3]]
    assert torch.equal(embeddings, local("train").audio_data[[7, 3]])
    assert torch.equal(cps, local("train").labels[[7, 3]])


# TLS


@dataclass(frozen=True)
class Certificates:
    ca: str
    key: str
    cert: str
    client: str


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("pki")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    server = ca.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(folder / "key.pem")
    for blob in server.cert_chain_pems:
        blob.write_to_path(folder / "cert.pem", append=True)
    ca.issue_cert("trainer@example.org").private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    return Certificates(*(str(folder / name) for name in ("ca.pem", "key.pem", "cert.pem", "client.pem")))


@pytest.fixture(scope="module")
def secure(snapshot: Snapshot, pki: Certificates) -> Iterator[str]:
    with serving(create_app(snapshot, ServeSettings()), ssl_keyfile=pki.key, ssl_certfile=pki.cert) as url:
        yield url


def test_a_private_ca(secure: str, pki: Certificates) -> None:
    check_epoch(secure, verify=pki.ca)
    check_epoch(secure, verify=ssl.create_default_context(cafile=pki.ca))
    train = StreamingEmbeddingsDataset(secure, "train", batch_size=128, shuffle=True, seed=3, verify=pki.ca)
    spawned = loader(train, num_workers=2, multiprocessing_context="spawn")  # the path of a file goes to other processes, too
    assert_same(spawned, epoch_of(local("train"), batch_size=128, seed=3))


def test_no_verification_at_all(secure: str) -> None:
    with Client(secure, verify=False) as client:
        assert client.split("train").num_samples == 1800


def test_an_untrusted_certificate_is_final_and_says_what_to_set(secure: str) -> None:
    with Client(secure, retry=PATIENT) as client, pytest.raises(UnreachableError, match=r"certificate is not trusted.*set verify="):
        client.splits()


def test_a_certificate_of_another_host_is_final(snapshot: Snapshot, pki: Certificates) -> None:
    with serving(create_app(snapshot, ServeSettings()), ssl_keyfile=pki.client, ssl_certfile=pki.client) as url:
        client = Client(url, verify=pki.ca, retry=PATIENT)
        with client, pytest.raises(UnreachableError, match=r"certificate is not trusted: .*127\.0\.0\.1.*set verify="):
            client.splits()


def test_tls_where_there_is_none_is_final(server: Server) -> None:
    url = server.url.replace("http:", "https:")
    with Client(url, retry=PATIENT) as client, pytest.raises(UnreachableError, match=r"does not speak TLS.*set url='http://"):
        client.splits()


def test_a_client_certificate(snapshot: Snapshot, pki: Certificates) -> None:
    options: dict[str, Any] = {"ssl_keyfile": pki.key, "ssl_certfile": pki.cert, "ssl_ca_certs": pki.ca}
    with serving(create_app(snapshot, ServeSettings()), **options, ssl_cert_reqs=ssl.CERT_REQUIRED) as url:
        check_epoch(url, verify=pki.ca, cert=pki.client)
        with Client(url, verify=pki.ca, retry=Retry(timeout_s=0)) as client, pytest.raises(TransportError):
            client.splits()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"verify": "/no/such/ca.pem"}, "verify is '/no/such/ca.pem': .*No such file"),
        ({"cert": "/no/such/cert.pem"}, "cert is '/no/such/cert.pem': .*No such file"),
        ({"timeout": 5, "timeout_s": 5}, "timeout is 5 and timeout_s is 5; .*give one"),
        ({"timeout": httpx.Timeout(None)}, "read and connect must be seconds"),
        ({"http": httpx.Client, "verify": False}, "http and verify are both given"),
        ({"http": httpx.Client, "timeout": 3}, "http and timeout are both given"),
    ],
)
def test_wrong_options_are_heard_of_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Client("http://data:8000", **options)


# Proxies


def test_a_proxy(server: Server) -> None:
    with Proxy() as proxy:
        check_epoch(server.url, proxy=proxy.url)
        assert proxy.seen["GET"] > 1
        assert proxy.seen["POST"] == 1


def test_a_proxy_with_a_password(server: Server) -> None:
    with Proxy(password="me:secret") as proxy:
        check_epoch(server.url, proxy=httpx.Proxy(proxy.url, auth=("me", "secret")))
        client = Client(server.url, proxy=proxy.url, retry=PATIENT)
        with client, pytest.raises(CpstreamError, match=r"407 .*set proxy='http://user:password@host:port'"):
            client.splits()


def test_a_tunnel_through_a_proxy(secure: str, pki: Certificates) -> None:
    with Proxy(password="me:secret") as proxy:
        check_epoch(secure, verify=pki.ca, proxy=proxy.url.replace("//", "//me:secret@"))
        assert set(proxy.seen) == {"CONNECT"}
        client = Client(secure, verify=pki.ca, proxy=proxy.url, retry=PATIENT)
        with client, pytest.raises(UnreachableError, match=r"proxy refused to connect: 407 .*set proxy="):
            client.splits()


def test_the_environments_proxy_and_netrc_are_ignored(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    sent: list[httpx.Request] = []
    with Client(server.url, event_hooks={"request": [sent.append]}) as client:
        assert client.split("train").num_samples == 1800
    assert "authorization" not in sent[0].headers


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_reply_that_a_proxy_frames_anew(server: Server, framing: str) -> None:
    """Chunked, or without a length: allowed, and read right."""
    with Proxy(upstream=server.url, framing=framing) as proxy:
        check_epoch(proxy.url, retry=Retry(timeout_s=0))


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_reply_without_a_length_that_is_cut_is_noticed(server: Server, framing: str) -> None:
    cuts: list[int] = []

    class Cutting(Proxy):
        async def _reply(self, source, sink):  # type: ignore[no-untyped-def]
            write = sink.write
            left = 40_000 + 90_000 * len(cuts)

            def some(data: bytes) -> None:
                nonlocal left
                write(data[: max(0, left)])
                left -= len(data)

            sink.write = some
            await super()._reply(source, sink)
            if left < 0:
                cuts.append(left)
            return False

    with Cutting(upstream=server.url, framing=framing) as proxy:
        check_epoch(proxy.url, retry=Retry(first_delay_s=0.01, max_delay_s=0.05))
    assert cuts


# Logins


def test_basic_auth_of_httpx(snapshot: Snapshot) -> None:
    app = create_app(snapshot, ServeSettings())
    wanted = httpx.Headers({"authorization": httpx.BasicAuth("me", "secret")._auth_header}).raw[0][1]

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and dict(scope["headers"]).get(b"authorization") != wanted:
            await send({"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Basic")]})
            await send({"type": "http.response.body", "body": b"login"})
            return
        await app(scope, receive, send)

    with serving(guarded) as url:
        check_epoch(url, auth=("me", "secret"))
        with Client(url, retry=PATIENT) as client, pytest.raises(CpstreamError, match=r"answered 401.*set token= or auth="):
            client.splits()


class Renewing(httpx.Auth):
    """A token that is asked for again once it was refused."""

    requires_response_body = True

    def __init__(self) -> None:
        self.token = "old"
        self.refused: list[bytes] = []

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = f"Bearer {self.token}"
        response = yield request
        if response.status_code == 401:
            self.refused.append(response.content)
            self.token = "new"
            request.headers["Authorization"] = f"Bearer {self.token}"
            yield request


def test_an_auth_flow_of_ones_own(run_server: Callable[..., Server]) -> None:
    server, auth = run_server(token="new"), Renewing()
    check_epoch(Client(server.url, auth=auth))
    assert len(auth.refused) == 1
    assert b"unauthorized" in auth.refused[0]


def test_a_token_from_a_file(run_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = run_server(token="s3cret")
    monkeypatch.delenv("CPSTREAM_TOKEN", raising=False)
    path = tmp_path / "token"
    monkeypatch.setenv("CPSTREAM_TOKEN_FILE", str(path))
    with pytest.raises(ValueError, match=r"CPSTREAM_TOKEN_FILE is .*No such file"):
        Client(server.url)
    path.write_text(" \n")
    with pytest.raises(ValueError, match=r"CPSTREAM_TOKEN_FILE is .*empty"):
        Client(server.url)
    path.write_text("s3cret\n")
    check_epoch(server.url)
    with Client(server.url, token="wrong") as stranger, pytest.raises(UnauthorizedError):
        stranger.splits()


def test_a_token_file_that_changes_under_a_running_epoch(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_path: list[Flow]
) -> None:
    """Without a pause in which both are valid, and in a copy, as a DataLoader worker has it."""
    tokens, mine = tmp_path / "tokens.toml", tmp_path / "token"
    tokens.write_text('[trainers]\ntoken = "old"\n')
    mine.write_text("old\n")
    settings = ServeSettings(tokens_file=tokens)
    credentials = Credentials(settings)
    app, changes = create_app(snapshot, settings, credentials=credentials), threading.Event()

    async def held(scope: Scope, receive: Receive, send: Send) -> None:
        """What is asked for in between would be refused twice."""
        while changes.is_set():
            await asyncio.sleep(0.001)
        await app(scope, receive, send)

    monkeypatch.delenv("CPSTREAM_TOKEN", raising=False)
    monkeypatch.setenv("CPSTREAM_TOKEN_FILE", str(mine))
    monkeypatch.setattr(http_options, "_LOOK_EVERY_S", 0.0)
    with serving(held) as url:
        client = pickle.loads(pickle.dumps(Client(url)))
        batches = client.batches("train", batch_size=64)
        got = [next(batches).index]
        changes.set()
        mine.write_text("newest\n")
        tokens.write_text('[trainers]\ntoken = "newest"\n')
        credentials.read_again()
        changes.clear()
        got += [batch.index for batch in batches]
        assert np.array_equal(np.concatenate(got), np.arange(1800))
        mine.unlink()  # between an old and a new one
        client.splits()


# Hooks and headers


def test_hooks_see_every_request_and_reply(run_server: Callable[..., Server]) -> None:
    server = run_server(token="s3cret")
    seen: Counter[tuple[str, str, int]] = Counter()

    def note(response: httpx.Response) -> None:
        request = response.request
        assert request.headers["x-team"] == "speech"
        seen[request.method, request.url.path.rpartition("/")[2], response.status_code] += 1

    hooks = {"response": [note], "request": [lambda request: request.headers.update({"X-Team": "speech"})]}
    client = Client(server.url, token="s3cret", event_hooks=hooks)
    check_epoch(client)
    with pytest.raises(NotFoundError):
        client.split("trian")
    assert seen == {("GET", "train", 200): 2, ("GET", "batches", 200): 1, ("POST", "take", 200): 1, ("GET", "trian", 404): 1}


def test_a_hook_may_read_the_reply_and_its_errors_are_its_own(server: Server) -> None:
    def read(response: httpx.Response) -> None:
        response.read()

    check_epoch(server.url, event_hooks={"response": [read]})

    def fail(request: httpx.Request) -> None:
        raise ZeroDivisionError

    with Client(server.url, event_hooks={"request": [fail]}) as client, pytest.raises(ZeroDivisionError):
        client.splits()


def test_headers_are_sent(server: Server) -> None:
    sent: list[httpx.Request] = []
    client = Client(server.url, headers={"X-Tenant": "a"}, event_hooks={"request": [sent.append]})
    check_epoch(client)
    assert {request.headers["x-tenant"] for request in sent} == {"a"}


# With and without httpx.Client.send, which is passed by where it would do nothing


def masked(request: bytes) -> tuple[bytes, bytes]:
    """A request without its id, and the id."""
    head, found, tail = re.split(rb"(?i)(?<=x-request-id: )([0-9a-f]+)", request)
    return head + tail, found


@pytest.mark.parametrize("is_forward", [False, True])
def test_both_ways_send_the_same_bytes(run_server: Callable[..., Server], is_forward: bool) -> None:
    server = run_server(token="s3cret")
    sent: list[list[tuple[bytes, bytes]]] = []
    for hooks in (None, {"request": [lambda request: None]}):
        with Proxy(upstream="" if is_forward else server.url) as proxy:
            options: dict[str, Any] = {"proxy": httpx.Proxy(proxy.url, auth=("me", "pass"))} if is_forward else {}
            url = server.url if is_forward else proxy.url.replace("127.0.0.1", "localhost")
            with Client(url, token="s3cret", headers={"X-Team": "speech"}, event_hooks=hooks, **options) as client:
                info = client.split("train")
                for indices in ([1, 2], [3, 4], [5], []):
                    client.take("train", indices, info=info)
                assert sum(batch.num_rows for batch in client.batches("train", batch_size=256, info=info)) == 1800
            sent.append([masked(request.replace(proxy.url.rpartition(":")[2].encode(), b"PORT")) for request in proxy.requests])
    short, long = ([request for request, _ in requests] for requests in sent)
    assert short == long
    assert len(short) == 6
    ids = {found for requests in sent for _, found in requests}
    assert len(ids) == 12


@pytest.mark.parametrize("hooks", [None, {"request": [lambda request: None]}])
def test_cookies_are_returned(snapshot: Snapshot, hooks: Any) -> None:
    """By which a balancer keeps a client at one replica."""
    app = create_app(snapshot, ServeSettings())
    seen: list[bytes | None] = []

    async def sticky(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"set-cookie", b"replica=b; Path=/")]}
            await send(message)

        if scope["type"] == "http":
            seen.append(dict(scope["headers"]).get(b"cookie"))
        await app(scope, receive, with_cookie if scope["type"] == "http" else send)

    with serving(sticky) as url:
        check_epoch(Client(url, event_hooks=hooks))
    assert seen == [None, *[b"replica=b"] * (len(seen) - 1)]
    assert len(seen) > 2


def test_a_header_with_a_line_break_is_refused(server: Server) -> None:
    for hooks in (None, {"request": [lambda request: None]}):
        client = Client(server.url, headers={"X-Team": "a\r\nX-Role: admin"}, event_hooks=hooks)
        with client, pytest.raises(ValueError, match="line break"):
            client.splits()


# Other clients


def make_plain() -> httpx.Client:
    return httpx.Client(trust_env=False)


def test_a_plain_httpx_client(server: Server) -> None:
    check_epoch(server.url, http=make_plain)
    with make_plain() as http:
        check_epoch(server.url, http=http)
        assert not http.is_closed


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_function_is_called_once_a_process(server: Server, context: str) -> None:
    options: dict[str, Any] = {"batch_size": 64, "shuffle": True, "http": make_plain}
    train = StreamingEmbeddingsDataset(server.url, "train", **options)
    del options["http"]
    batches = loader(train, num_workers=2, multiprocessing_context=context)
    assert_same(batches, epoch_of(local("train"), batch_size=64))
    made: list[int] = []
    threads_in = threading.Barrier(4)

    def make() -> httpx.Client:
        made.append(os.getpid())
        return make_plain()

    with Client(server.url, http=make) as client, ThreadPoolExecutor(4) as threads:

        def ask(_: int) -> int:
            threads_in.wait()
            return client.split("train").num_samples

        assert list(threads.map(ask, range(4))) == [1800] * 4
    assert made == [os.getpid()]


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_a_client_of_one_process_is_refused_in_another(server: Server) -> None:
    with make_plain() as http:
        with pytest.raises(TypeError, match="give http= a function"):
            pickle.dumps(Client(server.url, http=http))
        train = StreamingEmbeddingsDataset(server.url, "train", http=http)
        with pytest.raises(CpstreamError, match="give http= a function"):
            list(loader(train, num_workers=1))
        with pytest.raises(TypeError, match="give http= a function"):
            list(loader(train, num_workers=1, multiprocessing_context="spawn"))
    with pytest.raises(TypeError, match="give the path of the CA file"):
        pickle.dumps(Client(server.url, verify=ssl.create_default_context()))
    with pytest.raises(TypeError, match=r"made a int; it must make an httpx\.Client"):
        Client(server.url, http=int).splits()  # type: ignore[arg-type]


def test_starlettes_test_client(snapshot: Snapshot) -> None:
    """The service without a socket, as tests of a training script may want it."""
    with TestClient(create_app(snapshot, ServeSettings())) as http:
        check_epoch("http://testserver", http=http)


def test_a_mock_transport(server: Server) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        with make_plain() as http:
            real = http.request(request.method, request.url, headers=request.headers, content=request.read())
        headers = {name: value for name, value in real.headers.items() if name != "content-length"}
        return httpx.Response(real.status_code, headers=headers, content=real.content)

    check_epoch(server.url, http=lambda: httpx.Client(transport=httpx.MockTransport(answer)))

    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("nobody", request=request)

    impatient = Retry(timeout_s=0)
    client = Client(server.url, http=lambda: httpx.Client(transport=httpx.MockTransport(away)), retry=impatient)
    with client, pytest.raises(TransportError, match="nobody"):
        client.splits()


def test_options_beside_a_client_are_refused(server: Server) -> None:
    with pytest.raises(TypeError, match="verify given beside a Client"):
        StreamingEmbeddingsDataset(Client(server.url), "train", verify=False)
    with pytest.raises(TypeError, match="verfy"):
        RemoteEmbeddingsDataset(server.url, "train", verfy=False)  # type: ignore[call-arg]


# Names and other services


def test_a_host_that_does_not_resolve_is_said_at_once() -> None:
    for host in ("no-such-host.invalid", "a" * 70 + ".example"):
        with Client(f"http://{host}:8000", retry=PATIENT) as client, pytest.raises(UnreachableError, match="does not resolve"):
            client.splits()


@contextmanager
def answering(status: int, content_type: str, body: bytes, **headers: str) -> Iterator[tuple[str, Counter[str]]]:
    """Something that is no cpstream service."""
    asked: Counter[str] = Counter()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        asked[scope["path"]] += 1
        sent = [(name.encode(), value.encode()) for name, value in {"content-type": content_type, **headers}.items()]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": body})

    with serving(app) as url:
        yield url, asked


PAGE = b"<html>hello</html>"


@pytest.mark.parametrize(
    ("status", "content_type", "headers", "said"),
    [
        (308, "text/html", {"location": "https://data.example/v1/splits"}, r"answered 308 .*set url='https://data\.example'"),
        (
            302,
            "text/html",
            {"location": "https://sso.example/login?token=s3"},
            r"to https://sso\.example/login; .*set token=, auth=",
        ),
        (301, "text/html", {}, "to nowhere"),
        (413, "text/html", {}, "answered 413 .*client_max_body_size"),
        (400, "text/html", {}, "answered 400 .*is this a cpstream service"),
        (404, "application/problem+json", {}, "answered 404 .*check the path of the url"),
        (200, "text/html", {}, "answered 200 with text/html, not application/json"),
        (204, "text/plain", {}, "answered 204"),
        (200, "application/json", {}, "no Content-Digest; is this a cpstream service"),
        (200, "application/json", {"content-encoding": "gzip"}, "compressed .gzip."),
    ],
)
def test_something_else_that_answers_is_final_and_says_what(
    status: int, content_type: str, headers: dict[str, str], said: str
) -> None:
    body = b"" if status == 204 else PAGE
    with answering(status, content_type, body, **headers) as (url, asked), Client(url, retry=PATIENT) as client:
        with pytest.raises(CpstreamError, match=said) as caught:
            client.splits()
        assert "\n" not in str(caught.value)
        assert "s3" not in str(caught.value)
        assert asked.total() == 2  # a second opinion, for it may have been a damaged byte


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_gateway_that_is_back_is_not_noticed(snapshot: Snapshot, status: int) -> None:
    """Whatever it says meanwhile: that is a proxy in front of a service that is being replaced."""
    app = create_app(snapshot, ServeSettings())
    left = 3

    async def away(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal left
        if scope["type"] == "http" and left:
            left -= 1
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": PAGE})
            return
        await app(scope, receive, send)

    with serving(away) as url:
        check_epoch(url, retry=Retry(first_delay_s=0.01))


def test_a_reply_that_lost_its_headers_is_damage(snapshot: Snapshot) -> None:
    """However often in a row: what else answers with 200 says of what type its page is."""
    app = create_app(snapshot, ServeSettings())
    left = 3

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal left
        if scope["type"] == "http" and left:
            left -= 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"content of which nobody knows what it is"})
        else:
            await app(scope, receive, send)

    with serving(bare) as url:
        check_epoch(url, retry=Retry(first_delay_s=0.01))
    assert left == 0


def test_a_connection_that_was_shut_down_carries_no_other_request(server: Server) -> None:
    """By whoever broke off an epoch at the moment at which a lane had read all of its reply."""
    with Client(server.url, retry=Retry(timeout_s=0, contact_timeout_s=0)) as client:
        service, line = client.service, Line()
        endpoint = service.replicas.choose(0)
        with service.send(endpoint, "GET", "/v1/splits", {}, JSON, line=line).reply() as reply:
            reply.read()
            line.abort()
        assert [info.split for info in client.splits()] == ["train", "dev", "test"]
