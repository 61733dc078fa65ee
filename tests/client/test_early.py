"""The first batch of a far service is asked for beside its metadata, and nothing else changes."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from conftest import poll, serving
from oracle import assert_same, epoch_of, local
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cpstream_client import NotFoundError, Retry
from cpstream_client.stream.lanes import Flow
from cpstream_client.torch import StreamingEmbeddingsDataset, loader
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

RETRY = Retry(timeout_s=30, first_delay_s=0.01, max_delay_s=0.05)


@dataclass
class Watched:
    """An app that notes what is asked for. at: called with each path and query; what it returns, if anything, answers instead."""

    app: ASGIApp
    at: Callable[[str, str], Any] = lambda path, query: None
    metadata_after: int = 0  # so many requests for batches: before that, what is asked for them waits
    metadata: int = 0
    batches: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, query = scope["path"].rsplit("/", 1)[1], scope["query_string"].decode()
        if path == "batches":
            self.batches.append(query)
        else:
            self.metadata += 1
            while len(self.batches) < self.metadata_after:
                await asyncio.sleep(0.001)
        instead = self.at(path, query)
        await ((await instead if asyncio.iscoroutine(instead) else instead) or self.app)(scope, receive, send)

    @property
    def early(self) -> list[str]:
        return [query for query in self.batches if "fingerprint=" not in query]


@contextmanager
def watched(snapshot: Snapshot) -> Iterator[tuple[str, Watched]]:
    app = Watched(create_app(snapshot, ServeSettings()))
    with serving(app) as url:
        yield url, app


def starts(queries: list[str]) -> list[int]:
    return [int(found[1]) if (found := re.search(r"\bstart=(\d+)", query)) else 0 for query in queries]


@pytest.mark.parametrize("cache", [None, "auto"])
@pytest.mark.parametrize("use", ["dataset", "loader"])
def test_the_first_batch_is_asked_for_beside_the_metadata(
    snapshot: Snapshot, long_path: list[Flow], cache: str | None, use: str
) -> None:
    with watched(snapshot) as (url, app):
        app.metadata_after = 1  # or never
        train = StreamingEmbeddingsDataset(url, "train", batch_size=32, shuffle=True, seed=5, cache=cache, retry=RETRY)
        batches = train if use == "dataset" else loader(train)
        for epoch in range(3):
            train.set_epoch(epoch)
            assert_same(batches, epoch_of(local("train"), batch_size=32, seed=5, epoch=epoch))
        assert [len(app.early), starts(app.early)] == [1, [0]]  # and never again
        of_epoch = [query for query in app.batches if "epoch=" not in query]
        assert (train.stats()["reconnects"], sorted(starts(of_epoch))) == (0, sorted(set(starts(of_epoch))))  # none twice
        assert train.stats()["reconnects"] == 0


@pytest.mark.usefixtures("short_path")
def test_a_near_service_is_asked_for_its_metadata_first(snapshot: Snapshot) -> None:
    with watched(snapshot) as (url, app):
        train = StreamingEmbeddingsDataset(url, "train", batch_size=32, shuffle=True, cache=None)
        assert_same(train, epoch_of(local("train"), batch_size=32))
        assert not app.early
        assert len(app.batches) == 1


@pytest.mark.parametrize("kind", ["error", "other data", "nonsense"])
def test_an_early_reply_that_is_no_use_is_asked_for_again(snapshot: Snapshot, long_path: list[Flow], kind: str) -> None:
    train_split = snapshot.splits["train"]
    other = replace(snapshot, splits={"train": replace(train_split, fingerprint="0" * 32)})
    instead: Any = {
        "error": PlainTextResponse("busy", 503),
        "other data": create_app(other, ServeSettings()),
        "nonsense": PlainTextResponse("hello"),
    }[kind]
    with watched(snapshot) as (url, app):
        app.at = lambda path, query: instead if path == "batches" and "fingerprint=" not in query else None
        app.metadata_after = 1
        train = StreamingEmbeddingsDataset(url, "train", batch_size=32, shuffle=True, cache=None, retry=RETRY)
        assert_same(train, epoch_of(local("train"), batch_size=32))
        assert len(app.early) == train.stats()["reconnects"] == 1


def test_a_resumed_epoch_begins_with_the_batch_that_is_next(snapshot: Snapshot, long_path: list[Flow]) -> None:
    with watched(snapshot) as (url, app):
        options: dict[str, Any] = {"batch_size": 32, "shuffle": True, "cache": None, "retry": RETRY}
        app.metadata_after = 1
        first = StreamingEmbeddingsDataset(url, "train", **options)
        next(iter(first))
        state = first.state_dict()
        again = StreamingEmbeddingsDataset(url, "train", **options)
        again.load_state_dict(state)  # which looks at the metadata: there is nothing to ask early for
        assert_same(again, epoch_of(local("train"), batch_size=32)[1:])
        assert len(app.early) == 1
        # Ranks have batches of their own.
        app.metadata_after = len(app.batches) + 1
        rank = StreamingEmbeddingsDataset(url, "train", **options, rank=1, world_size=2)
        assert_same(rank, epoch_of(local("train"), batch_size=32, rank=1, world_size=2))
        assert "rank=1" in app.early[1]
        assert rank.stats()["reconnects"] == 0


def test_a_split_that_there_is_not_leaves_nothing_behind(snapshot: Snapshot, long_path: list[Flow]) -> None:
    with watched(snapshot) as (url, _):
        for _ in range(3):
            with pytest.raises(NotFoundError):
                next(iter(StreamingEmbeddingsDataset(url, "trian", cache=None)))
        poll(lambda: "cpstream-early" not in [thread.name for thread in threading.enumerate()])
