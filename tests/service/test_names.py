"""Splits are called what people call them: every resource of theirs answers, by the client and by plain HTTP."""

import re
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import unquote

import httpx
import pytest
from conftest import Server, serving

from cpstream_client import BatchQuery, Client
from cpstream_client.contract.wire import split_path
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

NAMES = ["düsseldorf, 電話", "a/b", "100%", "a%2Fb", 'say "hi"', "two\nlines", "dev?x=1#y", "rows", "{split}", "+ &"]


@pytest.fixture(scope="module")
def served(snapshot: Snapshot) -> Iterator[Server]:
    """Each name is a split of as many samples as its position."""
    base, splits = snapshot.splits["dev"], {}
    for n, name in enumerate(NAMES, start=1):
        info, paths = base.info.model_copy(update={"split": name, "num_samples": n}), base.file_paths.slice(0, n)
        splits[name] = replace(base, name=name, embeddings=base.embeddings[:n], cps=base.cps[:n], file_paths=paths, info=info)
    odd = replace(snapshot, splits=splits)
    with serving(create_app(odd, ServeSettings())) as url:
        yield Server(url, odd)


def test_the_client_finds_every_split(served: Server) -> None:
    with Client(served.url) as client:
        assert {info.split for info in client.splits()} == set(NAMES)
        for n, name in enumerate(NAMES, start=1):
            info = client.split(name)
            assert (info.split, info.num_samples) == (name, n)
            assert sum(batch.num_rows for batch in client.batches(name, BatchQuery(batch_size=3))) == n
            assert client.take(name, [n - 1, 0]).num_rows == 2
            assert len(client.rows(name).rows) == n
            assert client.plan(name, 0).split == name


@pytest.mark.parametrize("name", NAMES)
def test_a_download_is_named_after_its_split(served: Server, name: str) -> None:
    with httpx.Client(base_url=served.url) as http:
        reply = http.get(split_path(name, "cps.npy"))
        assert reply.status_code == 200, reply.text
        assert http.get(split_path(name, "file_paths.json")).json() == served.snapshot.splits[name].file_paths.to_pylist()
    header = reply.headers["content-disposition"]
    kept = "".join("_" if letter in '/"%\n?' else letter for letter in name) + "-cps.npy"
    plain, encoded = re.fullmatch(r"attachment; filename=\"([ -!#-~]*)\"(?:; filename\*=UTF-8''([!#-~]*))?", header).groups()  # type: ignore[union-attr]
    assert (unquote(encoded) if encoded else plain) == kept
    assert len(plain) == len(kept)


def test_a_slash_between_segments_is_no_slash_of_a_name(served: Server) -> None:
    with httpx.Client(base_url=served.url) as http:
        assert http.get("/v1/splits/a/b").json()["code"] == "not-found"
        assert http.get("/v1/splits/a%2fb").json()["split"] == "a/b"
        assert http.get("/v1/splits/a%252Fb").json()["split"] == "a%2Fb"
        assert http.get("/v1%2Fsplits").json()["code"] == "not-found"
        assert http.get("/%76%31/splits/r%6Fws/%72ows").json()["split"] == "rows"
