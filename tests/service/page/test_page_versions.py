"""Which versions are held, what two of them differ in, and why the last reload failed."""

import re
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx
import pytest
from conftest import Server, serving
from data import cps_of, make_rows, make_settings, write_cps, write_dataset, write_npy
from looked_at import look

from cpstream_service.api.versions import Version
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot

_PINNED = r"(\b[012]|/runs|/rows)\?fingerprint"
"""Links of three recordings, and of pages of all of them."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Snapshot]:
    """The new version has a recording less in train, one more and another rate; dev is the same; test is new, old is gone."""
    folder = tmp_path_factory.mktemp("data")
    rows, dev, other = make_rows(20), make_rows(5, seed=1, folder="dev"), make_rows(5, seed=2, folder="other")
    write_dataset(folder, {"train": rows, "dev": dev, "old": other})
    before = load(make_settings(folder)).snapshot
    changed = [*rows[1:], make_rows(1, seed=3, folder="=new")[0]]
    write_npy(folder, {"train": changed, "dev": dev, "test": other})
    table = dict(cps_of(rows)) | {"=new/0000.wav": 6.0, "audio/0005.wav": 7.25}
    write_cps(folder / "train_cps.csv", list(table.items()))
    write_cps(folder / "test_cps.csv", cps_of(other))
    return before, load(make_settings(folder)).snapshot


@pytest.fixture(scope="module")
def http(both: tuple[Snapshot, Snapshot]) -> Iterator[httpx.Client]:
    app = create_app(both[0], ServeSettings())
    with serving(app) as url, httpx.Client(base_url=url) as client:
        versions = app.state.service.versions
        versions.open(Version.of(both[1], ServeSettings()))
        versions.make_current(both[1].path.name)
        yield client


def test_what_is_held_and_which_is_current(http: httpx.Client, both: tuple[Snapshot, Snapshot]) -> None:
    page = look(http, "/page/versions")
    old, new = both
    assert page.text.index(f"{new.fingerprint} current") < page.text.index(old.fingerprint)
    assert "train (20), dev (5), test (5)" in page.text
    assert [attrs["value"] for tag, attrs in page.tags if tag == "option"] == [new.fingerprint, old.fingerprint] * 2


def test_what_changed(http: httpx.Client, both: tuple[Snapshot, Snapshot]) -> None:
    old, new = both
    address = f"/page/versions?from={old.fingerprint}&to={new.fingerprint}"
    page = look(http, address)
    selected = [attrs["value"] for tag, attrs in page.tags if tag == "option" and "selected" in attrs]
    assert selected == [old.fingerprint, new.fingerprint]
    assert "Added 1 Removed 1 Changed 1 The same 18" in page.text
    assert "0 have another embedding, 1 another rate" in page.text
    for words in ("=new/0000.wav added", "audio/0000.wav removed", "audio/0005.wav rate 5.62 7.25"):
        assert words in page.text
    assert "dev The same, 5 samples to the bit." in page.text
    assert "test A new split, 5 samples." in page.text
    assert "old Gone, 5 samples." in page.text
    (link,) = [link for _, link in page.links if "diff.csv" in link]
    whole = http.get(urljoin(address, link))
    assert whole.headers["content-type"].startswith("text/csv")
    assert [line.split(",")[:2] for line in whole.text.splitlines()[1:]] == [
        ["added", "'=new/0000.wav"],
        ["removed", "audio/0000.wav"],
        ["changed", "audio/0005.wav"],
    ]
    assert "Added 1" in look(http, f"/page/versions?from={old.fingerprint}").text  # against the current one
    assert "version nothing is not held any more" in look(http, "/page/versions?from=nothing").text


def test_a_page_that_pins_a_version_stays_with_it(http: httpx.Client, both: tuple[Snapshot, Snapshot]) -> None:
    """An index is another recording in another version: the pages that an old one leads to are old, too, and all say so."""
    old = both[0].splits["train"]
    pin = f"?fingerprint={old.fingerprint}"
    seen, waiting = set(), [f"/page/splits/train/rows{pin}"]
    while waiting:
        address = waiting.pop()
        page = look(http, address)
        assert f"not the current version of the split, but {old.fingerprint}" in page.text, address
        seen.add(address)
        inner = {urljoin(address, link) for tag, link in page.links if tag == "a" and re.search(_PINNED, link)}
        waiting += inner - seen - {*waiting}
    assert len(seen) == 5
    assert str(old.file_paths[0]) in look(http, f"/page/splits/train/samples/0{pin}").text
    assert str(old.file_paths[0]) not in look(http, "/page/splits/train/samples/0").text
    assert http.get(f"/page/splits/train/rows.csv{pin}&sort=index").text.splitlines()[1].split(",")[1] == "audio/0000.wav"
    assert "was replaced" in look(http, "/page/splits/train/samples/0?fingerprint=" + 32 * "0", 409).text
    now = both[1].splits["train"].fingerprint
    assert "not the current" not in look(http, f"/page/splits/train/samples/0?fingerprint={now}").text


def test_one_version_has_nothing_to_be_compared_with(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        assert "Only one version is held" in look(http, "/page/versions").text
