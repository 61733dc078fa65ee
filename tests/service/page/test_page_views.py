"""What the overview and a split's page say: of real data with all that can be wrong with it, of odd splits, of hostile names."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from arrays import snapshot_of
from conftest import Server, poll, serving
from data import make_rows, make_settings, write_cps, write_npy
from looked_at import LookedAt

from cpstream_service.api.versions import Version
from cpstream_service.app import create_app
from cpstream_service.errors import StatisticsFailed
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot, open_snapshot
from cpstream_service.statistics.jobs import Jobs
from cpstream_service.statistics.overlay import overlay

HTML = {"Accept": "text/html"}
HOSTILE = "</script><script>alert(1)</script>\"'&\u202egnp.\x00"


@contextmanager
def looking(snapshot: Snapshot, **settings: object) -> Iterator[Callable[[str], LookedAt]]:
    """A function that gives a page of the snapshot's service, once its figures are there."""
    app = create_app(snapshot, ServeSettings(**settings))  # type: ignore[arg-type]
    with serving(app) as url, httpx.Client(base_url=url, headers=HTML) as http:
        statistics = f"/v1/splits/{quote(next(iter(snapshot.splits)), safe='')}/statistics"
        poll(lambda: http.get(statistics).status_code != 202)

        def look(path: str) -> LookedAt:
            reply = http.get(path)
            assert reply.status_code == 200, reply.text
            page = LookedAt(reply.text)
            assert not page.faults, path
            return page

        yield look


def test_the_overview_says_what_the_demo_is(server: Server) -> None:
    with looking(server.snapshot) as look:
        page = look("/")
    assert page.headings[0] == ("h1", "2,400 recordings in 3 splits")
    assert server.snapshot.fingerprint in page.text
    assert "The embedding carries the speech rate (R2 0.9" in page.text
    assert re.search(r"train 1,800 154 \d", page.text)
    chart = json.loads(page.data[0])
    assert [trace["name"] for trace in chart["data"]] == ["train", "dev", "test"]
    for trace in chart["data"]:
        assert len(trace["x"]) == len(trace["y"])
        assert sum(trace["y"][:-1]) == pytest.approx(1, abs=0.02)


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Real files with a leak, an embedding of another file's in two splits, rows without a partner, and odd rates."""
    folder = tmp_path_factory.mktemp("flawed") / "data"
    train, dev = make_rows(60, seed=1), make_rows(30, seed=2, folder="dev")
    dev[0]["file_path"] = train[0]["file_path"]
    dev[1]["embedding"] = train[5]["embedding"].copy()
    train[7]["embedding"] = np.zeros_like(train[7]["embedding"])
    write_npy(folder, {"train": train, "dev": dev})
    write_cps(folder / "train_cps.csv", [(row["file_path"], 5 + i / 8 if i else 99.0) for i, row in enumerate(train[:57])])
    write_cps(folder / "dev_cps.csv", [*((row["file_path"], 25 + i / 8) for i, row in enumerate(dev)), ("gone.wav", 7.0)])
    return load(make_settings(folder), progress=False).snapshot


def test_warnings_are_said_in_plain_words_and_lead_to_their_figures(flawed: Snapshot) -> None:
    with looking(flawed) as look:
        overview, dev, train = look("/"), look("/page/splits/dev"), look("/page/splits/train")
    for sentence in [
        "Warning: 1 recording of dev is also in train",
        "Warning: 1 recording of dev has exactly the embedding of one in train",
        "train: 3 of 60 embeddings found no use (no-cps)",
        "dev: 1 of 31 rows of the table found no use (no-embedding)",
        "1 recording of train: the rate is outside the usual 1 to 60 characters a second",
        "1 recording of train: the embedding holds nothing but zeros",
        "dev is spoken faster than train, by",
    ]:
        assert sentence in overview.text, sentence
    assert overview.text.index("Warning") < overview.text.index("Look at this")
    for page in (dev, train):
        for _, link in page.links:
            if link.startswith("#") and link != "#main":
                assert link[1:] in page.ids, link
    for link in (link for _, link in overview.links if "#" in link and not link.startswith("#")):
        name, _, part = link.partition("#")
        assert part in {"train": train, "dev": dev}[name.removeprefix("page/splits/")].ids, link
    assert "Of dev, train holds 1 file, 1 embedding to the bit" in dev.text
    assert "no-embedding" in dev.text
    assert "gone.wav" in dev.text


CONSTANT = np.full(40, 12.0)
ROWS = np.random.default_rng(3).standard_normal((40, 6))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"train": (ROWS[:1], CONSTANT[:1])}, ["1 recording in 1 split", "train holds a single recording"]),
        ({"train": (ROWS, CONSTANT), "dev": (ROWS[::-1] + 1, CONSTANT)}, ["have the same rate, 12.0: there is nothing to learn"]),
        ({"train": (np.ones((40, 6)), np.arange(40) + 5.0)}, ["all embeddings of train are the same"]),
        ({"all": (ROWS, np.arange(40) + 5.0)}, ["no baseline: no split is called train or training"]),
        ({"train": (ROWS, np.arange(40) + 5.0)}, ["no baseline: no split is called dev"]),
        ({"train": (ROWS, np.arange(40) + 5.0), "dev": (ROWS[:, :4], np.arange(40) + 5.0)}, ["train has 6 dimensions and dev 4"]),
        ({"train": (ROWS, np.append(np.arange(39) + 5.0, 1e7))}, ["Not drawn of train: 0 slower, 1 faster"]),
    ],
    ids=["one sample", "constant rates", "constant embeddings", "no roles", "no dev", "two dimensions", "an outlier"],
)
def test_odd_splits_give_pages_that_make_sense(
    tmp_path: Path, arrays: dict[str, tuple[np.ndarray, np.ndarray]], says: list[str]
) -> None:
    with looking(snapshot_of(tmp_path / "odd", arrays)) as look:
        overview = look("/")
        for name in arrays:
            page = look(f"/page/splits/{name}")
            assert not re.search(r"\b(nan|inf|None)\b", page.text), page.text
    for sentence in says:
        assert sentence in overview.text, overview.text
    assert not re.search(r"\b(nan|inf|None)\b", overview.text), overview.text


def test_of_many_splits_not_every_pair_is_shown(tmp_path: Path) -> None:
    """Seven splits with the same embeddings: 21 pairs."""
    names = ["train", *(f"part-{at}" for at in range(6))]
    with looking(snapshot_of(tmp_path / "many", {name: (ROWS, np.arange(40) + 5.0) for name in names})) as look:
        overview, part = look("/"), look("/page/splits/part-3")
    notices = [attributes for tag, attributes in overview.tags if tag == "div" and attributes.get("class") == "notice bad"]
    assert (len(notices), f"{21 - 12} more than these" in overview.text) == (21, True)
    assert overview.text.count("part-5 train") == 1
    assert "part-5 part-4" not in overview.text
    assert part.text.count("is spoken") + part.text.count("all rates of") == 1
    assert "all 7" in overview.text  # of the navigation


def test_hostile_names_are_text(tmp_path: Path) -> None:
    paths = [f"{HOSTILE}{index:03d}" for index in range(40)]
    arrays = {HOSTILE: (ROWS, np.arange(40) + 5.0), "b": (np.repeat(ROWS[:20], 2, axis=0), np.arange(40) + 5.0)}
    with looking(snapshot_of(tmp_path / "hostile", arrays, {HOSTILE: paths, "b": paths})) as look:
        overview = look("/")
        address = next(link for _, link in overview.links if link.startswith("page/splits/") and link != "page/splits/b")
        pages = [overview, look(f"/{address.partition('#')[0]}"), look("/page/splits/b")]
    for page in pages:
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        assert all("src" in each or each["type"] == "application/json" for each in scripts)
        assert "</script><script>alert(1)</script>\"'&\\u202egnp.\\x00" in page.text
        assert "\u202e" not in page.text
        for text in page.data:
            json.loads(text)
    names = [trace["name"] for trace in json.loads(overview.data[0])["data"]]
    assert not any(character in name for name in names for character in "<>")  # plotly would take them for mark-up


def test_a_page_is_there_before_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snapshot_of(tmp_path / "made", {"train": (ROWS, np.arange(40) + 5.0)})
    monkeypatch.setattr(Jobs, "ask", lambda self, snapshot: 0.42)
    with serving(create_app(snapshot, ServeSettings())) as url:
        for path in ("/", "/page/splits/train"):
            reply = httpx.get(url + path, headers=HTML)
            page = LookedAt(reply.text)
            assert (reply.status_code, page.faults) == (200, [])
            assert "The figures are being computed, 42 %" in page.text
            assert '<noscript><meta http-equiv="refresh"' in reply.text
            assert ("progress", "0.42") in [(tag, attributes.get("value")) for tag, attributes in page.tags]
            (waits,) = [attributes["data-poll"] for _, attributes in page.tags if "data-poll" in attributes]
            assert httpx.get(f"{url}/{waits}").status_code == 202
            assert page.data  # the rates are drawn at once


def test_figures_that_failed_leave_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snapshot_of(tmp_path / "made", {"train": (ROWS, np.arange(40) + 5.0)})

    def fail(*_: object) -> float:
        raise StatisticsFailed("the statistics cannot be computed; mend <that>")

    monkeypatch.setattr(Jobs, "ask", fail)
    with serving(create_app(snapshot, ServeSettings())) as url:
        for path in ("/", "/page/splits/train"):
            reply = httpx.get(url + path, headers=HTML)
            page = LookedAt(reply.text)
            assert (reply.status_code, page.faults) == (200, [])
            assert "the statistics cannot be computed; mend <that>" in page.text
            assert "nothing odd was found" not in page.text


def test_a_page_of_an_older_version_leads_to_nothing_of_the_current_one_by_mistake(tmp_path: Path) -> None:
    rates = np.arange(40) + 5.0
    old, new = (snapshot_of(tmp_path / name, {"train": (ROWS + at, rates)}) for at, name in enumerate(["old", "new"]))
    new = open_snapshot(new.path.rename(tmp_path / "newer"))
    settings, fingerprint = ServeSettings(), old.splits["train"].fingerprint
    app = create_app(old, settings)
    with serving(app) as url, httpx.Client(base_url=url, headers=HTML) as http:
        versions = app.state.service.versions
        versions.open(Version.of(new, settings))
        versions.make_current(new.path.name)
        poll(lambda: http.get("/v1/splits/train/statistics", params={"fingerprint": fingerprint}).status_code != 202)
        reply = http.get("/page/splits/train", params={"fingerprint": fingerprint})
        page = LookedAt(reply.text)
        assert (reply.status_code, page.faults) == (200, [])
        assert f"this is not the current version of the split, but {fingerprint}" in page.text
        for address in page.addresses(str(reply.url)):
            if "/v1/" in address:
                assert httpx.URL(address).params["fingerprint"] == fingerprint, address
        (points,) = [figure for figure in map(json.loads, page.data) if figure.get("kind") == "projection"]
        assert points["href"].endswith(f"?fingerprint={fingerprint}")
        assert not points["sample"]  # indices are of this version
        assert "not the current version" not in LookedAt(http.get("/page/splits/train").text).text


def test_bins_are_those_of_numpy_at_round_numbers() -> None:
    rng = np.random.default_rng(0)
    rates = {"a": rng.normal(14, 3, 3000), "b": rng.normal(20, 2, 200), "c": np.array([3.0])}
    found = overlay(rates)
    steps = np.diff(found.edges)
    assert np.allclose(steps, steps[0])
    assert any(np.isclose(steps[0], factor * 10.0**power) for factor in (1, 2, 5) for power in (-1, 0, 1))
    for name, values in rates.items():
        assert found.counts[name] == tuple(np.histogram(values, found.edges)[0])
        assert sum(found.counts[name]) + found.below[name] + found.above[name] == len(values)
    assert overlay({"a": np.full(9, 12.5)}).counts == {"a": (9,)}
    far = overlay({"a": np.append(rates["a"], [1e9, -1e9])})
    assert (far.below["a"], far.above["a"]) == (1, 1)
    assert 8 <= len(far.counts["a"]) <= 61
