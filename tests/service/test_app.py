"""What the service answers when all is well, over real HTTP on the bundled data."""

import gc
import io
import logging
import re
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pyarrow as pa
import pytest
from conftest import Server, poll, published
from starlette.requests import Request

from cpstream_client.contract import bodies, wire
from cpstream_client.contract.plan import Plan
from cpstream_service.snapshot.store import Split


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture
def dev(server: Server) -> Split:
    return server.snapshot.splits["dev"]


def table_of(reply: httpx.Response) -> pa.Table:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == wire.ARROW_STREAM
    assert len(reply.content) == int(reply.headers["content-length"])
    return pa.ipc.open_stream(io.BytesIO(reply.content)).read_all()


def test_health_and_index(http: httpx.Client, server: Server) -> None:
    assert http.get("/livez").json() == {"status": "alive"}
    ready = http.get("/readyz").json()
    assert (ready["status"], ready["stale_reason"]) == ("ready", None)
    assert (ready["fingerprint"], set(ready["splits"])) == (server.snapshot.fingerprint, {"train", "dev", "test"})
    links = http.get("/").json()
    for path in ("splits", "documentation", "openapi", "ready", "metrics", "client"):
        assert http.get(links[path]).status_code == 200, path


def test_stale_data_is_ready_but_said_so(run_server: Callable[..., Server]) -> None:
    server = run_server(stale_reason="Chroma at chroma:8000 cannot be reached")
    reply = httpx.get(f"{server.url}/readyz")
    assert (reply.status_code, reply.json()["stale_reason"]) == (200, "Chroma at chroma:8000 cannot be reached")


def test_metadata_equals_the_snapshot(http: httpx.Client, server: Server, dev: Split) -> None:
    listed = bodies.SplitList.model_validate_json(http.get("/v1/splits").content)
    assert listed == bodies.SplitList(
        fingerprint=server.snapshot.fingerprint, splits=tuple(published(split) for split in server.snapshot.splits.values())
    )
    one = bodies.SplitInfo.model_validate_json(http.get("/v1/splits/dev").content)
    assert one == published(dev)
    assert one.cps.mean == pytest.approx(float(np.mean(dev.cps, dtype=np.float64)))
    assert (one.num_samples, one.embedding_dim) == dev.embeddings.shape
    assert bodies.AlignmentReport.model_validate_json(http.get("/v1/splits/dev/alignment").content) == dev.report


def test_rows_page_through_the_split_once(http: httpx.Client, dev: Split) -> None:
    seen: list[bodies.Sample] = []
    while True:
        reply = http.get("/v1/splits/dev/rows", params={"offset": len(seen), "length": 128, "embedding": True})
        page = bodies.Rows.model_validate_json(reply.content)
        assert (page.offset, page.total, page.fingerprint) == (len(seen), len(dev.cps), dev.fingerprint)
        if not page.rows:
            break
        seen += page.rows
    assert [sample.index for sample in seen] == list(range(len(dev.cps)))
    assert [sample.file_path for sample in seen] == dev.file_paths.to_pylist()
    assert np.array_equal(np.array([sample.cps for sample in seen], np.float32), dev.cps)
    assert np.array_equal(np.array([sample.embedding for sample in seen], np.float32), dev.embeddings)
    assert http.get("/v1/splits/dev/rows", params={"length": 1}).json()["rows"][0].keys() == {"index", "file_path", "cps"}


@pytest.mark.parametrize(
    "accept", [None, "*/*", "application/*", wire.ARROW_STREAM, f"{wire.JSON};q=0.5, */*;q=0.8", "text/html,*/*;q=0.1"]
)
def test_batches_are_arrow_by_default(http: httpx.Client, dev: Split, accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    params = {"batch_size": 32, "shuffle": "true", "seed": 7, "epoch": 3, "columns": "file_path,index,cps,embedding"}
    table = table_of(http.get("/v1/splits/dev/batches", params=params, headers=headers))
    order = Plan(len(dev.cps), shuffle="uniform", seed=7, epoch=3).order()
    assert table.column_names == ["embedding", "cps", "index", "file_path"]
    assert np.array_equal(table["index"].to_numpy(), order)
    assert np.array_equal(table["cps"].to_numpy(), dev.cps[order])
    assert table["file_path"].to_pylist() == dev.file_paths.take(order).to_pylist()
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(flat.reshape(len(order), -1), dev.embeddings[order])
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert (metadata["fingerprint"], metadata["num_rows"]) == (dev.fingerprint, str(len(order)))


@pytest.mark.parametrize(
    "accept", [wire.JSON, f"{wire.ARROW_STREAM};q=0, */*", f"{wire.ARROW_STREAM};q=0.5, {wire.JSON}", f"{wire.JSON}, */*;q=0.1"]
)
def test_json_where_it_is_preferred(http: httpx.Client, accept: str) -> None:
    reply = http.get("/v1/splits/dev/batches", params={"limit": 1}, headers={"Accept": accept})
    assert reply.headers["content-type"] == wire.JSON


def test_json_batches_hold_what_arrow_holds(http: httpx.Client, dev: Split) -> None:
    params = {
        "batch_size": 4,
        "limit": 2,
        "shuffle": "uniform",
        "rank": 1,
        "world_size": 3,
        "columns": "embedding,cps,index,file_path",
    }
    table = table_of(http.get("/v1/splits/dev/batches", params=params))
    reply = http.get("/v1/splits/dev/batches", params=params, headers={"Accept": wire.JSON})
    body = bodies.JsonBatches.model_validate_json(reply.content)
    assert (body.split, body.num_rows, [batch.step for batch in body.batches]) == ("dev", 8, [0, 1])
    whole = http.get("/v1/splits/dev/batches", params={"batch_size": 128}, headers={"Accept": wire.JSON}).json()
    assert whole["num_rows"] == len(dev.cps) == sum(len(batch["samples"]) for batch in whole["batches"])
    samples = [sample.model_dump(mode="json") for batch in body.batches for sample in batch.samples]
    assert samples == table.to_pylist()


@pytest.mark.parametrize(
    ("spelled", "canonical"), [("True", "uniform"), ("true", "uniform"), ("false", "none"), ("NONE", "none"), ("blocks", "blocks")]
)
def test_shuffle_spellings(http: httpx.Client, dev: Split, spelled: str, canonical: str) -> None:
    reply = http.get("/v1/splits/dev/batches", params={"shuffle": spelled, "columns": "index"})
    expected = Plan(len(dev.cps), shuffle=canonical).order()  # type: ignore[arg-type]
    assert np.array_equal(table_of(reply)["index"].to_numpy(), expected)


def test_workers_and_ranks_part_an_epoch(http: httpx.Client, dev: Split) -> None:
    seen: list[int] = []
    for rank in (0, 1):
        for worker in (0, 1, 2):
            params = {"batch_size": 16, "remainder": "exact", "rank": rank, "world_size": 2, "worker": worker, "num_workers": 3}
            table = table_of(http.get("/v1/splits/dev/batches", params=params | {"columns": "index", "start": 20}))
            seen += table["index"].to_pylist()
    assert sorted(seen) == list(range(20, len(dev.cps)))


def test_start_at_the_end_gives_no_batch(http: httpx.Client, dev: Split) -> None:
    params = {"start": len(dev.cps)}
    assert table_of(http.get("/v1/splits/dev/batches", params=params)).num_rows == 0
    assert http.get("/v1/splits/dev/batches", params=params, headers={"Accept": wire.JSON}).json()["batches"] == []


def test_take_by_json_and_by_raw_indices(http: httpx.Client, dev: Split) -> None:
    indices = np.array([7, 0, 7, len(dev.cps) - 1])
    by_json = http.post("/v1/splits/dev/take", json={"indices": indices.tolist()})
    raw = {"Content-Type": wire.OCTET_STREAM}
    by_raw = http.post("/v1/splits/dev/take", content=indices.astype("<i8").tobytes(), headers=raw)
    assert by_json.content == by_raw.content
    table = table_of(by_json)
    assert np.array_equal(table["index"].to_numpy(), indices)
    assert np.array_equal(table["cps"].to_numpy(), dev.cps[indices])
    params = {"dtype": "float16", "columns": "embedding"}
    half = table_of(http.post("/v1/splits/dev/take", json={"indices": [5]}, params=params))
    assert np.array_equal(half["embedding"].combine_chunks().flatten().to_numpy(), dev.embeddings[5].astype(np.float16))
    as_json = http.post(
        "/v1/splits/dev/take", json={"indices": [3, 1]}, params={"columns": "cps,index"}, headers={"Accept": wire.JSON}
    )
    assert [sample["index"] for sample in as_json.json()["batches"][0]["samples"]] == [3, 1]
    assert table_of(http.post("/v1/splits/dev/take", json={"indices": []})).num_rows == 0


@pytest.mark.parametrize("remainder", ["pad", "drop", "exact"])
def test_plan_says_what_every_rank_gets(http: httpx.Client, dev: Split, remainder: str) -> None:
    epoch = {"batch_size": 8, "shuffle": "true", "seed": 5, "epoch": 2, "world_size": 3, "remainder": remainder, "start": 30}
    last = http.get("/v1/splits/dev/plan", params=epoch).json()["num_steps"] - 1
    for step in (0, last):
        plan = bodies.PlanStep.model_validate_json(http.get("/v1/splits/dev/plan", params=epoch | {"step": step}).content)
        assert plan.next_start == min(30 + (step + 1) * 8 * 3, len(dev.cps))
        for rank in plan.ranks:
            params = epoch | {"rank": rank.rank, "columns": "index,file_path,cps"}
            batches = list(pa.ipc.open_stream(http.get("/v1/splits/dev/batches", params=params).content))
            assert [sample.model_dump(mode="json") for sample in rank.samples] == batches[step].to_pylist()


def test_etag_answers_304_and_changes_with_the_query(http: httpx.Client) -> None:
    for path in (
        "/v1/splits",
        "/v1/splits/dev",
        "/v1/splits/dev/alignment",
        "/v1/splits/dev/rows",
        "/v1/splits/dev/batches",
        "/v1/splits/dev/cps.npy",
    ):
        first = http.get(path)
        etag = first.headers["etag"]
        assert etag.startswith('"')
        assert etag.endswith('"')
        assert http.get(path).headers["etag"] == etag
        again = http.get(path, headers={"If-None-Match": f'"other", W/{etag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag), path
        assert http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    tags = {http.get("/v1/splits/dev/batches", params={"seed": seed, "shuffle": "true"}).headers["etag"] for seed in range(3)}
    for seed in range(3):
        params = {"limit": 1, "seed": seed, "shuffle": "true"}
        tags.add(http.get("/v1/splits/dev/batches", params=params, headers={"Accept": wire.JSON}).headers["etag"])
        tags.add(http.get("/v1/splits/dev/rows", params={"offset": seed}).headers["etag"])
    assert len(tags) == 9


def test_a_pinned_reply_may_be_kept_for_ever(http: httpx.Client, dev: Split) -> None:
    assert "no-cache" in http.get("/v1/splits/dev/batches", params={"limit": 1}).headers["cache-control"]
    pinned = http.get("/v1/splits/dev/batches", params={"limit": 1, "fingerprint": dev.fingerprint})
    assert "immutable" in pinned.headers["cache-control"]
    assert "no-transform" in pinned.headers["cache-control"]


def test_head_is_get_without_the_body(http: httpx.Client) -> None:
    for path in (
        "/",
        "/livez",
        "/readyz",
        "/v1/splits",
        "/v1/splits/dev",
        "/v1/splits/dev/rows",
        "/v1/splits/dev/batches",
        "/v1/splits/dev/cps.npy",
    ):
        head, get = http.head(path), http.get(path)
        assert (head.status_code, head.content) == (200, b""), path
        for name in ("content-length", "content-type", "etag"):
            assert head.headers.get(name) == get.headers.get(name), (path, name)


def test_json_carries_the_digest_of_the_body_that_is_sent(http: httpx.Client) -> None:
    for path in ("/livez", "/openapi.json", "/v1/splits/dev", "/v1/splits/dev/rows", "/v1/splits/nowhere"):
        get, head = http.get(path), http.head(path)
        assert get.headers["content-digest"] == wire.content_digest(get.content), path
        assert "content-digest" not in head.headers, path
        assert head.headers.get("content-location") == get.headers.get("content-location"), path


def test_no_request_outlives_its_reply(run_server: Callable[..., Server]) -> None:
    server = run_server()
    for length in range(1, 20):
        indices, params = {"indices": [0] * length}, {"columns": "cps," * length + "index"}
        assert httpx.post(f"{server.url}/v1/splits/dev/take", json=indices, params=params).status_code == 200
    poll(lambda: gc.collect() is not None and not [each for each in gc.get_objects() if type(each) is Request])


def test_bodies_are_never_compressed(http: httpx.Client) -> None:
    for path in ("/v1/splits", "/v1/splits/dev/batches", "/v1/splits/dev/embeddings.npy"):
        assert "content-encoding" not in http.get(path, headers={"Accept-Encoding": "gzip, br"}).headers


def test_metrics_count_requests_bytes_and_samples(run_server: Callable[..., Server]) -> None:
    server = run_server()
    with httpx.Client(base_url=server.url) as http:
        nbytes = len(http.get("/v1/splits/dev/batches", params={"batch_size": 10, "limit": 3}).content)
        http.post("/v1/splits/dev/take", json={"indices": [1, 2]})
        http.head("/v1/splits/dev/embeddings.npy")
        http.get("/v1/splits/nowhere")
        http.get("/v1/" + "x" * 50)
        poll(lambda: len(re.findall(r"^cpstream_requests_total{.*} 1", http.get("/metrics").text, re.MULTILINE)) >= 5)  # at the end
        text = http.get("/metrics").text
    batches = 'route="/v1/splits/{split}/batches"'
    assert f'cpstream_requests_total{{method="GET",{batches},status="200"}} 1.0' in text
    assert f'cpstream_sent_bytes_total{{{batches},token=""}} {float(nbytes)}' in text
    assert 'cpstream_sent_bytes_total{route="/v1/splits/{split}/embeddings.npy",token=""} 0.0' in text
    assert 'cpstream_samples_total{split="dev",token=""} 32.0' in text
    assert 'route="/v1/splits/{split}",status="404"' in text
    assert 'route="unmatched",status="404"' in text
    assert "cpstream_open_streams 0.0" in text
    assert f'cpstream_split_samples{{fingerprint="{server.snapshot.splits["dev"].fingerprint}",split="dev"}} 300.0' in text
    assert "process_resident_memory_bytes" in text
    assert "xxxx" not in text


def test_request_ids_are_kept_if_sane(http: httpx.Client) -> None:
    assert http.get("/livez", headers={"X-Request-ID": "trainer-3:step.7"}).headers["x-request-id"] == "trainer-3:step.7"
    for insane in ("", "a b", "x" * 129, "ä".encode()):
        made = http.get("/livez", headers={"X-Request-ID": insane}).headers["x-request-id"]
        assert len(made) == 32
    assert http.get("/livez").headers["x-request-id"] != http.get("/livez").headers["x-request-id"]


def test_the_access_log_says_what_became_of_a_request(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if getattr(record, "request_id", "") == "log-me"]

    with caplog.at_level("INFO", "cpstream.access"):
        reply = http.get("/v1/splits/dev/batches", params={"limit": 1}, headers={"X-Request-ID": "log-me"})
        poll(lines)  # a line is written once the reply has left
    (record,) = lines()
    logged = vars(record)
    assert (logged["split"], logged["status"], logged["bytes"], logged["complete"]) == ("dev", 200, len(reply.content), True)
    assert (logged["route"], logged["query"]) == ("/v1/splits/{split}/batches", "limit=1")


def test_health_checks_do_not_fill_the_log(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "cpstream.access"):
        for path in ("/livez", "/readyz", "/metrics", "/livez?typo=1", "/v1/splits"):
            http.get(path)
        poll(lambda: len(caplog.records) >= 2)  # a line is written once the reply has left
    said = [record.getMessage().split()[1] for record in caplog.records]
    assert said == ["/livez?typo=1", "/v1/splits"]
    with caplog.at_level("DEBUG", "cpstream.access"):
        http.get("/livez")
        poll(lambda: caplog.records[-1].getMessage().startswith("GET /livez -> 200"))


def test_a_path_cannot_forge_a_line_of_the_log(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "cpstream.access"):
        assert http.get("/v1/splits/x%0d%0aINFO%20forged").status_code == 404
        poll(lambda: any("x%0d%0aINFO%20forged" in record.getMessage() for record in caplog.records))
    messages = [record.getMessage() for record in caplog.records]
    assert not any("\n" in message or "\r" in message for message in messages)


def test_the_token_guards_all_but_health(run_server: Callable[..., Server]) -> None:
    server = run_server(token="s3cret-é")
    with httpx.Client(base_url=server.url) as http:
        for path in ("/livez", "/readyz", "/problems/unauthorized"):
            assert http.get(path).status_code == 200, path
        for header in (None, "s3cret-é", "Bearer", "Bearer wrong", "Basic s3cret-é"):
            headers = {} if header is None else {"Authorization": header.encode()}
            for path in ("/v1/splits", "/v1/splits/dev/take", "/v1/nothing", "/v1", "/metrics", "/openapi.json", "/docs", "/"):
                reply = http.get(path, headers=headers)
                assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized"), (header, path)
                assert reply.headers["www-authenticate"] == "Bearer"
        for scheme in ("Bearer", "bearer"):
            assert http.get("/v1/splits", headers={"Authorization": f"{scheme} s3cret-é".encode()}).status_code == 200


def test_the_description_documents_every_parameter_and_error(run_server: Callable[..., Server]) -> None:
    url = run_server(token="s3cret").url
    headers = {"Authorization": "Bearer s3cret"}
    description = httpx.get(f"{url}/openapi.json", headers=headers).json()
    assert httpx.get(f"{url}/docs", headers=headers).status_code == 200
    codes = {code.code for code in wire.ErrorCode}
    for path, operations in description["paths"].items():
        for operation in operations.values():
            where = f"{operation['summary']} {path}"
            assert operation.get("description"), where
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), f"{where}: {parameter['name']}"
            for status, reply in operation["responses"].items():
                if "$ref" in reply:
                    reply = description["components"]["responses"][reply["$ref"].rpartition("/")[2]]
                assert reply["description"], f"{where}: {status}"
                if int(status) >= 400:
                    codes -= set(reply["content"][wire.PROBLEM_JSON]["examples"])
            assert "HTTPValidationError" not in str(operation), where
    assert codes <= {"method-not-allowed", "not-ready"}  # the first is of no operation; the second is for servers that load late
