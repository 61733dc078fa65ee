"""The bytes of the service's Arrow replies, read by pyarrow alone: rows, order, checksums and Content-Length."""

import http.client
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import Server, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_bytes import check_checksums

from cpstream_client.contract.index_batches import IndexBatches
from cpstream_client.contract.plan import REMAINDERS
from cpstream_client.contract.wire import ARROW_STREAM, COLUMNS, BatchQuery, Column, split_path
from cpstream_service.app import create_app
from cpstream_service.batches import gather as batches
from cpstream_service.batches.server import BatchServer
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

SHAPES = {"one": (1, 1), "wide": (7, 700), "düsseldorf, 電話": (97, 5), "long": (1000, 33)}
NAMES = ["plain.wav", "größer/ñandú.wav", "電話/聲音.wav", "", "emoji 🎙.wav", "x" * 300]


Kept = http.client.HTTPConnection


@pytest.fixture(scope="module", params=[batches.CHUNK_BYTES, 3000], ids=["usual chunks", "tiny chunks"])
def served(request: pytest.FixtureRequest, snapshot: Snapshot) -> Iterator[Server]:
    """Splits of odd shapes and names. With tiny chunks, most batches are larger than a chunk."""
    base = snapshot.splits["train"]
    generator = np.random.default_rng(0)
    splits = {}
    for name, (n, dim) in SHAPES.items():
        splits[name] = replace(
            base,
            name=name,
            embeddings=generator.standard_normal((n, dim), np.float32),
            cps=generator.random(n, np.float32),
            file_paths=pa.array([f"{i}-{NAMES[i % len(NAMES)]}" for i in range(n)], pa.string()),
            fingerprint=f"{n:032x}",  # all are of one folder, in which their float16 copies are told apart by it
            info=base.info.model_copy(update={"split": name, "num_samples": n, "embedding_dim": dim}),
        )
    served = replace(snapshot, splits=splits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchServer, "chunk_bytes", lambda *_: request.param)
        with serving(create_app(served, ServeSettings())) as url:
            yield Server(url, served)


@pytest.fixture(scope="module")
def connection(served: Server) -> Iterator[http.client.HTTPConnection]:
    """Kept alive over all requests: a byte too many or too few in a reply would spoil the next one."""
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=20)
    yield connection
    connection.close()


def ask(connection: Kept, method: str, split: str, query: BatchQuery) -> tuple[http.client.HTTPResponse, bytes]:
    params = "&".join(f"{name}={value}" for name, value in query.to_params().items())
    connection.request(method, f"{split_path(split, 'batches')}?{params}", headers={"Accept": ARROW_STREAM})
    response = connection.getresponse()
    return response, response.read()


@st.composite
def queries(draw: st.DrawFn) -> tuple[str, BatchQuery]:
    split = draw(st.sampled_from(sorted(SHAPES)))
    n = SHAPES[split][0]
    world_size, num_workers = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    columns = draw(st.sets(st.sampled_from(COLUMNS), min_size=1))
    return split, BatchQuery(
        batch_size=draw(st.one_of(st.integers(1, 40), st.integers(1, 2 * n))),
        shuffle=draw(st.sampled_from(["none", "uniform", "blocks"])),  # type: ignore[arg-type]
        seed=draw(st.integers(-3, 3)),
        epoch=draw(st.integers(0, 3)),
        world_size=world_size,
        rank=draw(st.integers(0, world_size - 1)),
        remainder=draw(st.sampled_from(REMAINDERS)),  # type: ignore[arg-type]
        drop_last=draw(st.booleans()),
        start=draw(st.integers(0, n)),
        limit=draw(st.none() | st.integers(1, 5)),
        worker=draw(st.integers(0, num_workers - 1)),
        num_workers=num_workers,
        dtype=draw(st.sampled_from(["float32", "float16"])),  # type: ignore[arg-type]
        columns=tuple(columns),
    )


def test_any_reply_is_what_numpy_gathers(served: Server, connection: Kept) -> None:
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(asked=queries())
    def check(asked: tuple[str, BatchQuery]) -> None:
        name, query = asked
        split = served.snapshot.splits[name]
        n = len(split.cps)
        plan = query.plan(n)
        order = plan.order()
        expected = [plan.batch(order, step) for step in query.steps(n)]
        response, body = ask(connection, "GET", name, query)
        assert response.status == 200, body
        assert int(response.headers["Content-Length"]) == len(body)

        reader = pa.ipc.open_stream(body)
        metadata = {key.decode(): value.decode() for key, value in reader.schema.metadata.items()}
        assert (metadata["split"], metadata["fingerprint"]) == (name, split.fingerprint)
        assert (metadata["num_batches"], metadata["num_rows"]) == (str(len(expected)), str(sum(map(len, expected))))
        assert json.loads(metadata["query"]) == query.to_params()
        got = list(reader)
        assert len(got) == len(expected)
        for batch, indices in zip(got, expected, strict=True):
            batch.validate(full=True)
            assert batch.schema.names == list(query.columns)
            assert batch.num_rows == len(indices)
            check_columns(batch, indices, split.embeddings.astype(query.dtype), split.cps, split.file_paths, query.columns)
        check_checksums(body, len(expected))

    check()


def check_columns(batch, indices, embeddings, cps, file_paths, columns: tuple[Column, ...]) -> None:  # type: ignore[no-untyped-def]
    if "embedding" in columns:
        values = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(len(indices), -1 if len(indices) else 0)
        assert np.array_equal(values, embeddings[indices].reshape(values.shape))
    if "cps" in columns:
        assert np.array_equal(batch["cps"].to_numpy(), cps[indices])
    if "index" in columns:
        assert np.array_equal(batch["index"].to_numpy(), indices)
    if "file_path" in columns:
        assert batch["file_path"].equals(file_paths.take(pa.array(indices)))


def test_head_announces_the_length_of_get(served: Server, connection: Kept) -> None:
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(asked=queries())
    def check(asked: tuple[str, BatchQuery]) -> None:
        head, nothing = ask(connection, "HEAD", *asked)
        get, body = ask(connection, "GET", *asked)
        assert (head.status, get.status, nothing) == (200, 200, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(body))
        assert head.headers["ETag"] == get.headers["ETag"]

    check()


@pytest.mark.parametrize("columns", [COLUMNS, ("file_path",), ("embedding",)])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_take_is_one_batch(served: Server, connection: Kept, columns: tuple[Column, ...], count: int) -> None:
    split = served.snapshot.splits["long"]
    indices = np.random.default_rng(count).integers(0, 1000, count)
    path = f"{split_path('long', 'take')}?columns={','.join(columns)}"
    connection.request("POST", path, indices.astype("<i8").tobytes(), {"Content-Type": "application/octet-stream"})
    response = connection.getresponse()
    body = response.read()
    assert int(response.headers["Content-Length"]) == len(body)
    (batch,) = pa.ipc.open_stream(body)
    check_columns(batch, indices, split.embeddings, split.cps, split.file_paths, columns)
    check_checksums(body, 1)


def test_any_indices_are_the_batches_that_numpy_gathers(served: Server, connection: Kept) -> None:
    split, path = served.snapshot.splits["long"], split_path("long", "batches")

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        sizes=st.lists(st.integers(0, 40) | st.sampled_from([0, 700]), max_size=6),
        seed=st.integers(0, 99),
        columns=st.sampled_from([COLUMNS, ("file_path",), ("embedding",), ("cps", "index")]),
        as_json=st.booleans(),
    )
    def check(sizes: list[int], seed: int, columns: tuple[Column, ...], as_json: bool) -> None:
        random = np.random.default_rng(seed)
        wanted = [random.integers(0, 1000, size) for size in sizes]
        sent = json.dumps({"batches": [each.tolist() for each in wanted]}).encode() if as_json else IndexBatches.of(wanted).pack()
        kind = "application/json" if as_json else "application/octet-stream"
        params = f"columns={','.join(columns)}&fingerprint={split.fingerprint}"
        connection.request("POST", f"{path}?{params}", sent, {"Content-Type": kind})
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        assert int(response.headers["Content-Length"]) == len(body)
        assert (response.headers["Cache-Control"], response.headers["ETag"]) == ("no-transform", None)
        reader = pa.ipc.open_stream(body)
        metadata = reader.schema.metadata
        assert (int(metadata[b"num_batches"]), int(metadata[b"num_rows"])) == (len(sizes), sum(sizes))
        for batch, indices in zip(list(reader), wanted, strict=True):
            batch.validate(full=True)
            check_columns(batch, indices, split.embeddings, split.cps, split.file_paths, columns)
        check_checksums(body, len(sizes))

    check()


def test_any_batches_as_json(served: Server, connection: Kept) -> None:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    connection.request("POST", f"{split_path('long', 'batches')}?columns=index", b'{"batches": [[7, 0], [], [7]]}', headers)
    reply = json.loads(connection.getresponse().read())
    assert [[sample["index"] for sample in batch["samples"]] for batch in reply["batches"]] == [[7, 0], [], [7]]
    assert (reply["num_rows"], [batch["step"] for batch in reply["batches"]]) == (3, [0, 1, 2])


def test_padding_holds_nothing_of_other_replies(served: Server, connection: Kept) -> None:
    """Buffers are used again: what no column covers is zero, whatever lay there before."""
    query = BatchQuery(batch_size=3, columns=("cps", "file_path"))
    bodies = set()
    for seed in range(4):  # other numbers into the same buffers in between
        ask(connection, "GET", "long", BatchQuery(batch_size=1000, shuffle="uniform", seed=seed))
        bodies.add(ask(connection, "GET", "one", query)[1])
    assert len(bodies) == 1
