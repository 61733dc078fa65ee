"""A service that sends less at a time than a client would ask for: `max_reply_bytes` is published, and every client keeps to it."""

from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import Server
from torch.utils.data import DataLoader

from cpstream_client import BatchQuery, Client, InvalidRequestError
from cpstream_client.contract.wire import COLUMNS, Column, Dtype
from cpstream_client.stream.course import Course
from cpstream_client.stream.sizes import sizes_of
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader
from cpstream_client.transport.service import REQUEST_BYTES
from cpstream_service.batches.frames import END_OF_STREAM
from cpstream_service.batches.gather import Columns, schema_message

LIMITS = (8 * 1024, 64 * 1024, 1024**2)
EVERY = list(chain.from_iterable(combinations(COLUMNS, count) for count in range(1, 5)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("columns", EVERY, ids=",".join)
def test_no_reply_is_larger_than_the_client_reckons(server: Server, columns: tuple[Column, ...], dtype: Dtype) -> None:
    split = server.snapshot.splits["train"]
    info = Client(server.url).split("train")
    sizes, of_split = sizes_of(dtype, columns, info), Columns(split.embeddings.astype(dtype), split.cps, split.file_paths, columns)
    longest = max(range(1800), key=lambda index: len(split.file_paths[index].as_py()))
    n, most = 10**18, 2**63 - 1
    query = BatchQuery(
        batch_size=n, shuffle="uniform", seed=most, epoch=most, rank=n, world_size=most, remainder="exact", drop_last=True,
        start=n, limit=most, worker=n, num_workers=most, dtype=dtype, columns=columns, fingerprint=info.fingerprint,
    )  # fmt: skip
    schema = schema_message(info.embedding_dim, "train", info.fingerprint, query, most, most)
    assert len(schema) + len(END_OF_STREAM) <= sizes.reply < len(schema) + 1400
    for num_rows in (1, 2, 3, 10, 1000):
        nbytes = of_split.frame_of(np.full(num_rows, longest)).nbytes
        assert nbytes <= sizes.record + num_rows * sizes.row < 1.01 * nbytes + 400


def test_a_record_batch_and_a_request_shrink_to_the_limit_and_no_further(server: Server) -> None:
    info = server.snapshot.splits["train"].info.model_copy(update={"num_samples": 10**6, "embedding_dim": 768})
    for limit, records, rows in ((None, 42, 512), (2**30, 42, 512), (8 * 1024**2, 5, 512), (1024**2, 1, 256), (1000, 1, 256)):
        ask = Course(BatchQuery(batch_size=256), info.model_copy(update={"max_reply_bytes": limit})).ask(0, REQUEST_BYTES)
        assert ask is not None
        assert (ask.count, ask.rows[0]) == (records, rows), limit


@pytest.mark.parametrize("limit", LIMITS)
def test_every_client_gets_what_there_is(run_server: Callable[..., Server], limit: int) -> None:
    small = run_server(max_reply_bytes=limit)
    split, client = small.snapshot.splits["train"], Client(small.url)
    info, embeddings, cps = client.split("train"), np.asarray(split.embeddings), np.asarray(split.cps)
    assert info.max_reply_bytes == limit
    order = torch.randperm(1800, generator=torch.Generator().manual_seed(3)).numpy()

    batches = list(client.batches("train", batch_size=8, shuffle="uniform", seed=3, columns=COLUMNS))
    assert np.array_equal(np.concatenate([batch.index for batch in batches]), order)
    assert np.array_equal(np.concatenate([batch.embeddings for batch in batches]), embeddings[order])
    table = pa.Table.from_batches(client.record_batches("train", batch_size=8, columns=("file_path",)))
    assert table["file_path"].combine_chunks() == split.file_paths

    for indices in (order, order[:7], order[:0], np.repeat(order, 3)):
        taken = client.take("train", indices, columns=("embedding", "cps", "file_path"))
        assert np.array_equal(taken.embeddings, embeddings[indices])
        assert np.array_equal(taken.cps, cps[indices])
        assert taken.file_paths == split.file_paths.take(indices).to_pylist()
        assert (taken.num_rows, taken.index) == (len(indices), None)

    frame = client.frame("train", ("embedding", "file_path", "cps", "index"))
    assert np.array_equal(np.stack(frame["embedding"]), embeddings)
    assert frame["file_path"].tolist() == client.file_paths("train") == split.file_paths.to_pylist()
    assert np.array_equal(client.load("train").embeddings, embeddings)
    assert 'status="413"' not in httpx.get(f"{small.url}/metrics").text


@pytest.mark.parametrize("cache", [None, "memory", "directory"])
def test_every_dataset_gets_what_there_is(run_server: Callable[..., Server], tmp_path: Path, cache: str | None) -> None:
    small = run_server(max_reply_bytes=64 * 1024)
    embeddings = torch.from_numpy(np.array(small.snapshot.splits["train"].embeddings))
    at = str(tmp_path) if cache == "directory" else cache
    order = torch.randperm(1800, generator=torch.Generator().manual_seed(0))
    train = StreamingEmbeddingsDataset(small.url, "train", batch_size=32, shuffle=True, cache=at)
    for num_workers in (0, 0, 2) if cache is None else (0, 0):
        train.set_epoch(0)
        loaded = [batch for batch, _ in DataLoader(train, batch_size=None, num_workers=num_workers)]
        assert torch.equal(torch.cat(loaded), embeddings[order])
    remote = RemoteEmbeddingsDataset(small.url, "train", cache=at)
    assert torch.equal(remote[order][0], embeddings[order])
    assert torch.equal(remote[:][0], remote.audio_data)
    assert 'status="413"' not in httpx.get(f"{small.url}/metrics").text


def test_a_sampler_gets_what_there_is(run_server: Callable[..., Server]) -> None:
    small = run_server(max_reply_bytes=64 * 1024)
    embeddings = torch.from_numpy(np.array(small.snapshot.splits["train"].embeddings))
    order = torch.randint(1800, (5000,), generator=torch.Generator().manual_seed(1)).tolist()
    train = StreamingEmbeddingsDataset(small.url, "train", batch_size=32, cache=None)
    got = [batch for batch, _ in loader(train, sampler=order)]
    assert torch.equal(torch.cat(got), embeddings[order])
    assert 'status="413"' not in httpx.get(f"{small.url}/metrics").text


def test_a_batch_that_the_service_never_sends_names_the_settings(run_server: Callable[..., Server]) -> None:
    client = Client(run_server(max_reply_bytes=64 * 1024).url)
    with pytest.raises(InvalidRequestError, match=r"256 samples, \d+ bytes, .* lower batch_size, .*--max-reply-bytes"):
        next(client.batches("train", batch_size=256))


def test_the_etag_of_metadata_follows_what_is_published(run_server: Callable[..., Server]) -> None:
    tags = {httpx.get(f"{run_server(max_reply_bytes=limit).url}/v1/splits/train").headers["etag"] for limit in (10**6, 10**7)}
    assert len(tags) == 2
