"""How a query is cut into requests: by what its columns weigh, and no finer than it must be."""

import pytest
from conftest import Server

from cpstream_client import BatchQuery
from cpstream_client.contract.wire import Column
from cpstream_client.stream.course import WIRE_BATCH_ROWS, Course
from cpstream_client.transport.service import REQUEST_BYTES


@pytest.mark.parametrize("columns", [("cps",), ("index",), ("cps", "index", "file_path")])
def test_small_columns_are_fetched_by_few_requests(server: Server, columns: tuple[Column, ...]) -> None:
    info = server.snapshot.splits["train"].info.model_copy(update={"num_samples": 800_000, "embedding_dim": 768})
    course = Course(BatchQuery(columns=columns, batch_size=1), info)
    ask = course.ask(0, REQUEST_BYTES)
    assert ask is not None
    assert ask.count == len(course) == -(-800_000 // WIRE_BATCH_ROWS)


@pytest.mark.parametrize(("dtype", "row_bytes"), [("float32", 768 * 4 + 12), ("float16", 768 * 2 + 12)])
def test_embeddings_are_fetched_by_requests_of_the_size_that_is_set(server: Server, dtype: str, row_bytes: int) -> None:
    info = server.snapshot.splits["train"].info.model_copy(update={"num_samples": 1_000_000, "embedding_dim": 768})
    course = Course(BatchQuery(batch_size=256, dtype=dtype), info)  # type: ignore[arg-type]
    ask = course.ask(0, REQUEST_BYTES)
    assert ask is not None
    assert 0.9 * REQUEST_BYTES < sum(ask.rows) * row_bytes <= REQUEST_BYTES
