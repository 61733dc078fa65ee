"""Whatever goes wrong is answered with one shape: problem+json with a code, a detail that names value and remedy, an id."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Server, grown, poll, serving, stalled_stream
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpstream_client.contract import bodies, wire
from cpstream_service.api import problems
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

DEV = "/v1/splits/dev"
BIG = 2**63
INTEGERS = ("batch_size", "seed", "epoch", "rank", "world_size", "start", "limit", "worker", "num_workers")
NO_INT64 = ("", "x", "1.5", "NaN", "inf", "1e3", str(BIG), str(-BIG - 1), "9" * 40)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


def problem_of(reply: httpx.Response) -> dict[str, Any]:
    """The problem, after checks that hold for every one of them."""
    assert reply.headers["content-type"] == wire.PROBLEM_JSON, reply.text
    body: dict[str, Any] = reply.json()
    code = next(code for code in wire.ErrorCode if code.code == body["code"])
    assert (body["status"], body["title"], body["type"]) == (code.status, code.title, f"/problems/{code.code}")
    assert reply.status_code == code.status
    assert body["request_id"] == reply.headers["x-request-id"] != ""
    assert body["instance"] == reply.request.url.raw_path.decode()
    assert body["detail"]
    assert "Traceback" not in reply.text
    assert "/tmp" not in body["detail"]
    assert bodies.Problem.model_validate_json(reply.content).model_dump() == body
    return body


@dataclass(frozen=True)
class Case:
    url: str
    code: str
    says: tuple[str, ...]
    method: str = "GET"
    body: bytes | None = None
    headers: dict[str, str] | None = None


def take(body: bytes | str, code: str, *says: str, raw: bool = False, to: str = "take") -> Case:
    content = body.encode() if isinstance(body, str) else body
    headers = {"Content-Type": wire.OCTET_STREAM if raw else wire.JSON}
    return Case(f"{DEV}/{to}", code, says, "POST", content, headers)


def chosen(body: bytes | str | list[int], code: str, *says: str) -> Case:
    """A list is a raw body."""
    return take(
        np.array(body, "<i8").tobytes() if isinstance(body, list) else body, code, *says, raw=isinstance(body, list), to="batches"
    )


def batches(query: str, *says: str, code: str = "invalid-parameter", accept: str = "*/*") -> Case:
    return Case(f"{DEV}/batches?{query}".rstrip("?"), code, says, headers={"Accept": accept})


CASES = [
    # Paths and methods
    Case("/nope", "not-found", ("/nope", "GET /")),
    Case("/v1", "not-found", ("/v1",)),
    Case("/v1/splits/", "not-found", ("/v1/splits/",)),
    Case("/v1/splits/dev/embeddings.csv", "not-found", ()),
    Case("/problems/nope", "not-found", ("'nope'", "unknown-split")),
    Case("/v1/splits", "method-not-allowed", ("DELETE", "GET"), "DELETE"),
    Case(f"{DEV}/batches", "method-not-allowed", ("PUT", "GET", "POST"), "PUT"),
    Case(f"{DEV}/take", "method-not-allowed", ("GET", "POST")),
    Case("/livez", "method-not-allowed", ("PUT",), "PUT"),
    *(
        Case(f"/v1/splits/trian{rest}", "unknown-split", ("'trian'", "train", "dev", "test"))
        for rest in ("", "/alignment", "/rows", "/batches", "/plan", "/embeddings.npy", "/cps.npy", "/file_paths.json")
    ),
    Case("/v1/splits/trian/take", "unknown-split", ("'trian'",), "POST", b'{"indices": []}'),
    Case("/v1/splits/..%2f..%2fetc%2fpasswd", "unknown-split", ("'../../etc/passwd'",)),
    Case("/v1/splits/%00", "unknown-split", ("\\x00",)),
    Case("/v1/splits/%ff%fe", "unknown-split", ()),
    # Parameters
    batches("bacth_size=3", "'bacth_size'", "did you mean 'batch_size'?"),
    batches("zzz=3", "'zzz'", "world_size"),
    batches("batch_size=1&batch_size=2", "'batch_size'", "2 times", "'1', '2'"),
    batches("batch_size=1&batch%5Fsize=2", "'batch_size'", "2 times"),
    batches("batch_size=0&limt=3&seed=x", "batch_size is '0'", "'limt' is not known here; did you mean 'limit'?", "seed is 'x'"),
    batches("&".join(f"x{i}=1" for i in range(900)), "'x0'", "and 892 more"),
    Case(f"{DEV}/take?dtype=float16&dtype=float16", "invalid-parameter", ("'dtype'", "2 times"), "POST", b'{"indices": [0]}'),
    Case(f"{DEV}/take?colums=cps", "invalid-parameter", ("did you mean 'columns'?",), "POST", b'{"indices": [0]}'),
    Case(f"{DEV}/cps.npy?split=dev", "invalid-parameter", ("'split'", "fingerprint")),
    Case("/openapi.json?x=1", "invalid-parameter", ("'x'", "no parameters")),
    Case("/v1/splits?split=dev", "invalid-parameter", ("'split'", "no parameters")),
    Case("/livez?x=1", "invalid-parameter", ("'x'",)),
    *(batches(f"{name}={value}", name, repr(value)) for name in INTEGERS for value in NO_INT64),
    *(batches(f"{name}=-1", name, "'-1'", "0 or more") for name in ("epoch", "rank", "start", "worker")),
    *(batches(f"{name}=0", name, "'0'", "1 or more") for name in ("batch_size", "world_size", "limit", "num_workers")),
    batches("batch_size=0&limit=0", "batch_size", "limit"),
    batches("shuffle=maybe", "shuffle", "'maybe'", "uniform", "blocks"),
    batches("shuffle=", "shuffle"),
    batches("remainder=keep", "remainder", "'keep'", "pad", "exact"),
    batches("drop_last=maybe", "drop_last", "'maybe'", "true or false"),
    batches("dtype=float64", "dtype", "'float64'", "float16"),
    batches("columns=", "columns", "embedding, cps, index, file_path"),
    batches("columns=cps,sex", "columns", "'sex'", "embedding, cps, index, file_path"),
    batches("fingerprint=", "fingerprint"),
    batches("rank=3&world_size=3", "rank is 3", "0 to 2"),
    batches("worker=2&num_workers=2", "worker is 2", "0 to 1"),
    batches("start=301", "start is 301", "300"),
    Case(f"{DEV}/rows?offset=-1", "invalid-parameter", ("offset",)),
    Case(f"{DEV}/rows?length=0", "invalid-parameter", ("length",)),
    Case(f"{DEV}/rows?length=1025", "invalid-parameter", ("length is 1025", "1 to 1024")),
    Case(f"{DEV}/rows?offset=301", "index-out-of-range", ("offset is 301", "300")),
    Case(f"{DEV}/rows?embedding=perhaps", "invalid-parameter", ("embedding", "true or false")),
    Case(f"{DEV}/plan?batch_size=100&step=3", "index-out-of-range", ("step is 3", "0 to 2")),
    Case(f"{DEV}/plan?start=300", "index-out-of-range", ("step is 0", "none")),
    Case(f"{DEV}/plan?rank=0", "invalid-parameter", ("'rank'",)),
    Case(f"{DEV}/plan?world_size=2000", "payload-too-large", ("2000", "1024")),
    # Pins and representations
    *(
        Case(f"{DEV}{rest}?fingerprint=0123", "dataset-changed", ("0123", "dev"))
        for rest in ("", "/alignment", "/rows", "/batches", "/plan", "/embeddings.npy", "/cps.npy", "/file_paths.json")
    ),
    Case(f"{DEV}/take?fingerprint=0123", "dataset-changed", ("0123",), "POST", b'{"indices": [0]}'),
    batches("", "text/csv", wire.ARROW_STREAM, code="not-acceptable", accept="text/csv"),
    batches("", wire.JSON, code="not-acceptable", accept=f"*/*;q=0, {wire.JSON};q=0"),
    # Bodies
    take("{", "invalid-parameter", "not JSON", '{"indices"'),
    take("", "invalid-parameter", "not JSON"),
    take(b"\xff\xfe", "invalid-parameter", "not JSON"),
    take("[" * 100_000, "invalid-parameter"),
    take("[1, 2]", "invalid-parameter", "indices"),
    take('{"indices": 3}', "invalid-parameter", "indices"),
    take('{"indices": [1], "columns": "cps"}', "invalid-parameter", "one member"),
    take('{"indices": [1, 2.5]}', "invalid-parameter", "indices[1] is 2.5"),
    take('{"indices": [true]}', "invalid-parameter", "indices[0] is true"),
    take('{"indices": ["1"]}', "invalid-parameter", 'indices[0] is "1"'),
    take('{"indices": [NaN]}', "invalid-parameter", "indices[0]"),
    take('{"indices": [null]}', "invalid-parameter", "indices[0] is null"),
    take(f'{{"indices": [{BIG}]}}', "invalid-parameter", "64 bits"),
    take(f'{{"indices": [{"9" * 5000}]}}', "invalid-parameter"),
    take('{"indices": [0, 300]}', "index-out-of-range", "index 300", "number 1", "0 to 299"),
    take('{"indices": [-1]}', "index-out-of-range", "index -1"),
    take(b"1234567", "invalid-parameter", "7 bytes", "int64", raw=True),
    take(np.array([-BIG, 0], "<i8").tobytes(), "index-out-of-range", str(-BIG), raw=True),
    chosen("{", "invalid-parameter", "not JSON", '{"batches"'),
    chosen('{"batches": 3}', "invalid-parameter", "list of lists"),
    chosen('{"batches": [3]}', "invalid-parameter", "list of lists"),
    chosen('{"indices": [3]}', "invalid-parameter", "one member, batches"),
    chosen('{"batches": [[1], [2, 2.5]]}', "invalid-parameter", "batches[1][1] is 2.5"),
    chosen('{"batches": [[1], [false]]}', "invalid-parameter", "batches[1][0] is false"),
    chosen(f'{{"batches": [[{BIG}]]}}', "invalid-parameter", "64 bits"),
    chosen('{"batches": [[], [0, 1], [], [2, 300]]}', "index-out-of-range", "index 300", "number 1 of batch 3", "0 to 299"),
    chosen([2, 1, 2, 0, 0, -1], "index-out-of-range", "index -1", "number 1 of batch 1"),
    chosen([], "invalid-parameter", "0 bytes", "the number of batches"),
    take(b"123456789", "invalid-parameter", "9 bytes", raw=True, to="batches"),
    chosen([-1], "invalid-parameter", "says -1 batches"),
    chosen([3, 1, 1], "invalid-parameter", "says 3 batches, and has 2 numbers more"),
    chosen([2**62, 1, 1], "invalid-parameter", f"says {2**62} batches"),
    chosen([2, 1, 1, 0], "invalid-parameter", "batches are 2 together, its indices 1"),
    chosen([1, -1, 0, 0], "invalid-parameter", "batch 0 has -1 indices"),
    chosen([3, 2**62, 2**62, 2**63 - 1, 0], "invalid-parameter", f"batch 0 has {2**62} indices"),
    Case(f"{DEV}/batches?batch_size=8", "invalid-parameter", ("'batch_size'",), "POST", b'{"batches": [[0]]}'),
    Case(f"{DEV}/batches?fingerprint=0123", "dataset-changed", ("0123",), "POST", b'{"batches": [[0]]}'),
    Case("/v1/splits/trian/batches", "unknown-split", ("'trian'",), "POST", b'{"batches": []}'),
    Case(f"{DEV}/take?dtype=int8", "invalid-parameter", ("dtype",), "POST", b'{"indices": [0]}'),
    Case(f"{DEV}/take?batch_size=8", "invalid-parameter", ("'batch_size'",), "POST", b'{"indices": [0]}'),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.url[:60]}-{case.code}-{(case.body or b'')[:20]!r}")
def test_every_mistake_is_named(http: httpx.Client, case: Case) -> None:
    body = problem_of(http.request(case.method, case.url, content=case.body, headers=case.headers))
    assert body["code"] == case.code, body
    for words in case.says:
        assert words in body["detail"], body["detail"]


def test_accept_may_be_given_in_several_lines(http: httpx.Client) -> None:
    reply = http.get(f"{DEV}/batches", params={"limit": 1}, headers=[("Accept", "text/html"), ("Accept", wire.JSON)])
    assert (reply.status_code, reply.headers["content-type"]) == (200, wire.JSON)


def test_a_problem_repeats_little_of_a_long_request(http: httpx.Client) -> None:
    for query in ("x" * 9000, f"columns={'x' * 9000}", f"shuffle={'x' * 9000}", "&".join(["seed=1"] * 900)):
        assert len(problem_of(http.get(f"{DEV}/batches?{query}"))["detail"]) < 500


def test_head_errors_have_the_status_of_get(http: httpx.Client) -> None:
    for url in ("/nope", "/v1/splits/trian", f"{DEV}/batches?x=1", f"{DEV}/cps.npy?fingerprint=1"):
        head = http.head(url)
        assert (head.status_code, head.content) == (http.get(url).status_code, b"")


def test_method_not_allowed_says_which_are(http: httpx.Client) -> None:
    for path in ("/", "/metrics", "/v1/splits", f"{DEV}/rows", f"{DEV}/cps.npy"):
        assert http.delete(path).headers["allow"] == "GET, HEAD"
        assert http.head(path).status_code == 200
    assert http.get(f"{DEV}/take").headers["allow"] == "POST"
    assert http.delete(f"{DEV}/batches").headers["allow"] == "GET, HEAD, POST"


def test_a_changed_dataset_names_both_fingerprints(http: httpx.Client, server: Server) -> None:
    body = problem_of(http.get(f"{DEV}/batches", params={"fingerprint": "0123"}))
    assert (body["expected"], body["actual"]) == ("0123", server.snapshot.splits["dev"].fingerprint)


def test_every_code_is_explained_at_its_type(http: httpx.Client) -> None:
    for code in wire.ErrorCode:
        explained = http.get(problems.problem_type(code)).json()
        assert (explained["code"], explained["status"]) == (code.code, code.status)
        assert explained["meaning"]


def test_limits_answer_413_with_the_remedy(run_server: Callable[..., Server]) -> None:
    server = run_server(max_json_rows=10, max_reply_bytes=10_000)
    with httpx.Client(base_url=server.url) as http:
        as_json = {"Accept": wire.JSON}
        for reply in (
            http.get(f"{DEV}/batches", params={"batch_size": 11, "limit": 1}, headers=as_json),
            http.get(f"{DEV}/batches", params={"batch_size": 5, "limit": 3}, headers=as_json),
            http.get(f"{DEV}/plan", params={"batch_size": 6, "world_size": 2}),
            http.post(f"{DEV}/take", json={"indices": [0] * 11}, headers=as_json),
            http.get(f"{DEV}/batches"),
            http.post(f"{DEV}/take", json={"indices": [0] * 100}),
            http.post(f"{DEV}/batches", json={"batches": [[0] * 6, [0] * 5]}, headers=as_json),
            http.post(f"{DEV}/batches", json={"batches": [[]] * 11}, headers=as_json),
            http.post(f"{DEV}/batches", json={"batches": [[0] * 50] * 2}),
        ):
            body = problem_of(reply)
            assert body["code"] == "payload-too-large"
            assert "ask for" in body["detail"] or "lower" in body["detail"]
        assert http.get(f"{DEV}/batches", params={"batch_size": 10, "limit": 1}, headers=as_json).status_code == 200
        assert problem_of(http.get(f"{DEV}/rows", params={"length": 11}))["code"] == "invalid-parameter"
        assert http.get(f"{DEV}/rows").status_code == 200  # the default length must not exceed the limit


@pytest.mark.parametrize("path", ["take", "batches"])
@pytest.mark.parametrize("kind", [wire.JSON, wire.OCTET_STREAM])
def test_a_body_beyond_the_limit_is_refused_while_it_arrives(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, kind: str, path: str
) -> None:
    limit = "MAX_JSON_BYTES" if kind == wire.JSON else "MAX_BODY_BYTES"
    monkeypatch.setattr(f"cpstream_service.api.take_body.{limit}", 1000)
    body = problem_of(http.post(f"{DEV}/{path}", content=iter([b" " * 600] * 3), headers={"Content-Type": kind}))
    assert body["code"] == "payload-too-large"
    assert "1000 bytes" in body["detail"]


def test_too_many_streams_are_refused_and_recover(run_server: Callable[..., Server], snapshot: Snapshot) -> None:
    server = run_server(snapshot=grown(snapshot, "train", 50_000), max_streams=1)
    path = f"{server.url}/v1/splits/train/batches"
    with httpx.Client() as http:
        with stalled_stream(server.url, "/v1/splits/train/batches"):
            poll(lambda: "cpstream_open_streams 1.0" in http.get(f"{server.url}/metrics").text)
            reply = http.get(path, params={"limit": 1})
            assert problem_of(reply)["code"] == "overloaded"
            assert int(reply.headers["retry-after"]) >= 1
            assert http.get(f"{server.url}/readyz").status_code == 200
        poll(lambda: http.get(path, params={"limit": 1}).status_code == 200)


def test_an_unexpected_error_tells_nothing_of_the_inside(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(snapshot, ServeSettings())

    @app.get("/break")
    def break_down() -> None:
        raise RuntimeError("cannot read /tmp/secret")

    with serving(app) as url, caplog.at_level("ERROR", "cpstream.service"):
        body = problem_of(httpx.get(f"{url}/break"))
    assert body["code"] == "internal"
    assert "secret" not in json.dumps(body)
    assert body["request_id"] in caplog.text
    assert "cannot read /tmp/secret" in caplog.text


def test_what_the_framework_refuses_is_a_problem_too(snapshot: Snapshot) -> None:
    app = create_app(snapshot, ServeSettings())

    @app.post("/typed/{number}")
    def typed(number: int, body: dict[str, int]) -> None:
        pass

    with serving(app) as url:
        body = problem_of(httpx.post(f"{url}/typed/x", json={"a": "b"}))
    assert body["code"] == "invalid-parameter"
    assert "number is 'x'; it must be a whole number" in body["detail"]
    assert "a is 'b'" in body["detail"]


def test_a_refusal_is_no_error_of_the_service(
    run_server: Callable[..., Server], snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    server = run_server(snapshot=grown(snapshot, "train", 50_000), max_streams=1)
    with stalled_stream(server.url, "/v1/splits/train/batches"), caplog.at_level("WARNING"):
        for _ in range(3):  # the first request of a kind, and those that follow
            assert problem_of(httpx.post(f"{server.url}{DEV}/take", json={"indices": [0]}))["code"] == "overloaded"
            assert problem_of(httpx.post(f"{server.url}{DEV}/take", json={"indices": [300]}))["code"] == "index-out-of-range"
    assert not caplog.records


def test_an_error_in_mid_reply_cuts_the_connection(snapshot: Snapshot) -> None:
    app = create_app(snapshot, ServeSettings())
    app.add_middleware(_CutAfterStart)
    with serving(app) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{url}/v1/splits/dev")


class _CutAfterStart:
    """Fails once the reply has begun."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def failing(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                await asyncio.sleep(0)
                raise RuntimeError("the disk failed")

        await self.app(scope, receive, failing if scope["type"] == "http" else send)


TEXT = (
    st.text(max_size=12)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["true", "pad", "cps", "float16", "0", "1"])
)
OTHERS = ("shuffle", "remainder", "drop_last", "dtype", "columns", "fingerprint", "step", "offset", "length", "embedding", "x")
NAMES = st.sampled_from([*INTEGERS, *OTHERS])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["indices", "x"]), inner, max_size=2),
)


def test_a_client_that_goes_away_within_its_body_is_no_error(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cpstream.service")
    with serving(create_app(snapshot, ServeSettings())) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(f"POST {DEV}/take HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nshort".encode())
        poll(lambda: "the client went away during its request" in caplog.text)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    resource=st.sampled_from(["", "/alignment", "/rows", "/batches", "/plan", "/cps.npy"]),
    params=st.dictionaries(NAMES, TEXT, max_size=4),
    accept=st.sampled_from(["*/*", wire.JSON, wire.ARROW_STREAM]),
)
def test_no_query_breaks_the_service(http: httpx.Client, resource: str, params: dict[str, str], accept: str) -> None:
    reply = http.get(DEV + resource, params=params, headers={"Accept": accept})
    if reply.status_code != 200:
        assert problem_of(reply)["code"] in {"invalid-parameter", "dataset-changed", "index-out-of-range", "payload-too-large"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=40) | JSON_VALUES.map(lambda value: json.dumps(value).encode()), raw=st.booleans())
def test_no_body_breaks_take(http: httpx.Client, body: bytes, raw: bool) -> None:
    headers = {"Content-Type": wire.OCTET_STREAM if raw else wire.JSON}
    reply = http.post(f"{DEV}/take", content=body, headers=headers)
    if reply.status_code != 200:
        assert problem_of(reply)["code"] in {"invalid-parameter", "index-out-of-range"}
