"""The table of a split's recordings, and one of them: by links and forms alone, as a browser without JavaScript has it."""

import csv
import io
import re
from collections.abc import Iterator
from urllib.parse import quote, urljoin

import httpx
import numpy as np
import pytest
from conftest import poll, serving
from data import make_rows, make_settings, write_cps, write_npy
from looked_at import LookedAt, look

from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot

HOSTILE = (
    "<script>alert(1)</script>.wav",
    '"><img src=x onerror=alert(1)>.wav',
    "abc\u202egnp.wav",
    '=HYPERLINK("http://evil")',
    "{{ 7 * 7 }}.wav",
    "a" * 4000 + ".wav",
)
ODD = 'o/d "d"\''
N = 130
PAGE = 50


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """train: N recordings with a label that every third lacks; a split of an odd name and hostile paths; one of one recording."""
    folder = tmp_path_factory.mktemp("data")
    train, odd = make_rows(N), make_rows(len(HOSTILE), seed=1)
    for row, path in zip(odd, HOSTILE, strict=True):
        row["file_path"] = path
    odd[0]["embedding"][:] = 0
    single = [make_rows(1, seed=2)[0] | {"file_path": train[7]["file_path"]}]
    rows = [row | {"split": name} for name, some in (("train", train), (ODD, odd), ("single", single)) for row in some]
    rates = {row["file_path"]: 5 + (i * 37 % N) / 8 for i, row in enumerate(train)} | dict.fromkeys(HOSTILE, 9.5)
    table = [(path, rate, "" if i % 3 == 0 else -i) for i, (path, rate) in enumerate(rates.items())]
    write_npy(folder, rows)
    write_cps(folder / "cps.csv", table, ("audio_path", "cps", "pitch"))
    return load(make_settings(folder, cps_csv=str(folder / "cps.csv"), labels=("pitch",))).snapshot


@pytest.fixture(scope="module")
def http(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    app = create_app(snapshot, ServeSettings(state_dir=tmp_path_factory.mktemp("state")))
    with serving(app) as url, httpx.Client(base_url=url) as client:
        yield client


def shown(page: LookedAt) -> list[int]:
    """Indices of the rows of a table, as their links have them."""
    return [int(link.rpartition("/")[2]) for tag, link in page.links if re.fullmatch(r"samples/\d+", link)]


def by_api(http: httpx.Client, split: str, **query: object) -> list[int]:
    reply = http.get(f"/v1/splits/{split}/rows", params={"length": 1000, **query})  # type: ignore[dict-item]
    return [row["index"] for row in reply.json()["rows"]]


def test_the_pages_have_each_recording_once(http: httpx.Client) -> None:
    seen, address = [], "/page/splits/train/rows"
    while address:
        page = look(http, address)
        seen += shown(page)
        (on,) = [attrs["href"] for tag, attrs in page.tags if attrs.get("rel") == "next"] or [None]
        address = urljoin(address, on) if on else ""
    assert seen == list(range(N))
    assert f"{N - N % PAGE + 1} to {N} of {N}" in page.text


def test_a_search_is_what_the_api_finds(http: httpx.Client) -> None:
    page = look(http, "/page/splits/train/rows?q=%2F004&min_cps=6&max_cps=&sort=cps&descending=true")
    found = by_api(http, "train", search="/004", min_cps=6, sort="cps", descending=True)
    assert shown(page) == found
    assert f"{len(found)} recordings of {N} match" in page.text
    fields = {attrs["name"]: attrs.get("value") for tag, attrs in page.tags if tag == "input"}
    assert fields == {"q": "/004", "min_cps": "6", "max_cps": "", "sort": "cps", "descending": "true"}
    (link,) = [link for _, link in page.links if link.startswith("rows.csv")]
    table = http.get(urljoin("/page/splits/train/", link))
    assert table.headers["content-disposition"] == 'attachment; filename="train-rows.csv"'
    assert [int(row["index"]) for row in csv.DictReader(io.StringIO(table.text))] == found
    assert "No recordings" in look(http, "/page/splits/train/rows?q=nowhere").text


@pytest.mark.parametrize("column", ["index", "file_path", "cps", "pitch"])
def test_a_click_on_a_head_sorts(http: httpx.Client, column: str) -> None:
    address = "/page/splits/train/rows?q=audio"
    if column == "index":  # by which it is sorted at first
        address += "&sort=cps"
    for order, descending in (("ascending", False), ("descending", True)):
        page = look(http, address)
        (link,) = [link for _, link in page.links if link.startswith("rows?") and clicked(link, column)]
        address = urljoin(address, link)
        page = look(http, address)
        assert [attrs["aria-sort"] for tag, attrs in page.tags if "aria-sort" in attrs] == [order]
        assert shown(page) == by_api(http, "train", sort=column, descending=descending)[:PAGE]


def clicked(link: str, column: str) -> bool:
    query = httpx.URL(link).params
    return query.get("sort", "index") == column and "offset" not in query


def test_what_has_no_label_says_so(http: httpx.Client, snapshot: Snapshot) -> None:
    page = look(http, f"/page/splits/train/rows?sort=pitch&offset={N - 5}")
    assert np.isnan(snapshot.splits["train"].labels["pitch"][shown(page)]).all()
    assert page.text.count("–") == 5


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("min_cps=9&max_cps=5", "min_cps is 9, above max_cps, 5; swap them"),
        ("min_cps=fast", "min_cps is 'fast'; it must be a number"),
        ("sort=colour", "sort is 'colour'; it must be one of index, file_path, cps, pitch"),
        ("q=audio&offset=999", "offset is 999; it must be from 0 to the 130 samples that match"),
        ("offset=-1", "offset is '-1'; it must be 0 or more"),
        ("length=5", "parameter 'length' is not known here"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_beside_it(http: httpx.Client, query: str, said: str) -> None:
    page = look(http, f"/page/splits/train/rows?{query}", 422)
    assert said in page.text
    assert shown(page) == []
    given = dict(httpx.QueryParams(query))
    fields = {attrs["name"]: attrs.get("value") for tag, attrs in page.tags if tag == "input"}
    assert fields.items() >= {name: value for name, value in given.items() if name in fields}.items()


def test_text_of_others_stays_text(http: httpx.Client) -> None:
    page = look(http, f"/page/splits/{quote(ODD, safe='')}/rows?q=.wav")
    assert {"script", "img"} & {tag for tag, _ in page.tags if tag != "script"} == set()
    for text in (ODD, HOSTILE[0], HOSTILE[1], r"abc\u202egnp.wav", HOSTILE[4]):
        assert text in page.text
    assert "a" * 200 not in page.text
    for index in range(len(HOSTILE)):
        sample = look(http, f"/page/splits/{quote(ODD, safe='')}/samples/{index}")
        assert "\u202e" not in sample.text
        assert all(
            http.get(address).status_code == 200 for address in sample.addresses(str(http.base_url)) if "/samples/" in address
        )
    name = quote('"><b>', safe="")
    assert '"><b>' in look(http, f"/page/splits/{name}/rows", 404).text


def test_a_sample_and_its_neighbours(http: httpx.Client, snapshot: Snapshot) -> None:
    train = snapshot.splits["train"]
    page = look(http, "/page/splits/train/samples/7")
    found = http.get("/v1/splits/train/neighbours", params={"index": 7}).json()["neighbours"]
    assert [int(link) for _, link in page.links if link.isdigit()] == [6, 8, *(near["index"] for near in found)]
    assert all(f"{near['cosine']:.4f}" in page.text and f"{near['cps']:.2f}" in page.text for near in found)
    assert train.file_paths[7].as_py() in page.text
    assert f"{train.cps[7]:.2f} characters a second" in page.text
    slower = np.count_nonzero(train.cps < train.cps[7])
    assert f"{100 * slower / N:.1f} % of the split is slower" in page.text
    assert "No predictions have been published for this split" in page.text
    other = "/page/splits/single/samples/0"
    assert other in {urljoin("/page/splits/train/samples/7", link) for _, link in page.links}
    alone = look(http, other)
    assert "the only recording of the split" in alone.text
    assert "/page/splits/train/samples/7" in {urljoin(other, link) for _, link in alone.links}


def test_the_bar_of_a_sample_is_marked_once_the_figures_are_there(http: httpx.Client, snapshot: Snapshot) -> None:
    poll(lambda: http.get("/v1/splits/train/statistics").status_code == 200)
    histogram = http.get("/v1/splits/train/statistics").json()["cps"]["histogram"]
    for index in (0, int(snapshot.splits["train"].cps.argmax()), int(snapshot.splits["train"].cps.argmin())):
        bars = [attrs for tag, attrs in look(http, f"/page/splits/train/samples/{index}").tags if tag == "rect"]
        assert len(bars) == len(histogram["counts"])
        (at,) = np.flatnonzero(np.histogram(snapshot.splits["train"].cps[index], histogram["edges"])[0])
        assert [i for i, bar in enumerate(bars) if bar.get("class") == "here"] == [at]
        heights = [float(bar["height"] or 0) for bar in bars]
        np.testing.assert_allclose(heights, 100 * np.array(histogram["counts"]) / max(histogram["counts"]), atol=1e-3)
    bars = [attrs for tag, attrs in look(http, "/page/splits/single/samples/0").tags if tag == "rect"]
    assert [bar.get("class") for bar in bars] == ["here"]


def test_a_sample_without_a_direction_and_one_that_is_not_there(http: httpx.Client, snapshot: Snapshot) -> None:
    odd = snapshot.splits[ODD]
    zero = int(np.flatnonzero((np.asarray(odd.embeddings) == 0).all(axis=1))[0])
    assert "all zero, of which there is no cosine" in look(http, f"/page/splits/{quote(ODD, safe='')}/samples/{zero}").text
    assert "index is 130; it must be from 0 to 129" in look(http, "/page/splits/train/samples/130", 422).text
    assert look(http, "/page/splits/train/samples/first", 422).headings


def test_another_search_that_goes_on_is_said(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpstream_service.api.routes.page_rows._AGAIN_S", 0)
    app = create_app(snapshot, ServeSettings())
    with serving(app) as url, httpx.Client(base_url=url) as http, app.state.service.searches.alone():
        page = look(http, "/page/splits/train/samples/7")
    assert "Another search for neighbours is under way" in page.text
    assert "This service keeps no predictions" in page.text
