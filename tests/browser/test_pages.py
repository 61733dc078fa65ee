"""The pages as a browser shows them: with scripts and without, in the light, in the dark, on a phone, by mouse and by keyboard."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import poll, serving

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test-browser")
from looking import PHONE, barriers, drawn, looking, overflow, shoot
from playwright.sync_api import Browser, Page, expect

from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot, open_snapshot
from cpstream_service.statistics.kept import lock

pytestmark = pytest.mark.browser

PAGES = {
    "overview": "",
    "split": "page/splits/train",
    "rows": "page/splits/train/rows?q=1&sort=cps&descending=true",
    "sample": "page/splits/dev/samples/7",
    "runs": "page/splits/dev/runs",
    "run": "page/splits/dev/runs/mlp-3",
    "versions": "page/versions",
    "live": "page/live",
    "nothing": "page/splits/nothing",
}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE, "has_touch": True, "is_mobile": True},
}


@pytest.fixture(scope="module")
def url(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo with its figures computed, and two runs of predictions."""
    dev = snapshot.splits["dev"]
    with serving(create_app(snapshot, ServeSettings(state_dir=tmp_path_factory.mktemp("state")))) as url:
        for seed, name in enumerate(("mlp-3", "ridge")):
            predicted = 0.8 * dev.cps + 4 + np.random.default_rng(seed).normal(0, 1.5 + seed, len(dev.cps))
            table = "index,predicted\n" + "".join(f"{index},{value}\n" for index, value in enumerate(predicted))
            where = f"{url}/v1/splits/dev/predictions/{name}"
            httpx.put(where, content=table, headers={"Content-Type": "text/csv"}).raise_for_status()
        poll(lambda: httpx.get(f"{url}/v1/splits/train/statistics").status_code == 200)
        yield url


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_is_whole_in_every_look(chromium: Browser, url: str, look: str) -> None:
    """Nothing is an error, nothing is asked of another host, nothing is wider than the window, and axe finds no barrier."""
    with looking(chromium, url, expects="404", **LOOKS[look]) as page:
        for name, path in PAGES.items():
            page.goto(path)
            drawn(page)
            assert overflow(page) == 0, name
            shoot(page, f"{name}-{look}")
            if look != "phone":  # where colours and elements are those of the light
                assert barriers(page) == [], name


def test_without_scripts_tables_search_paging_and_links_work(chromium: Browser, url: str) -> None:
    with looking(chromium, url, java_script_enabled=False) as page:
        page.goto("")
        shoot(page, "overview-without-scripts")
        page.get_by_role("navigation", name="Main").get_by_role("link", name="train").click()
        page.get_by_role("link", name="Recordings", exact=True).first.click()
        search_sort_and_page(page)
        shoot(page, "rows-without-scripts")
        page.get_by_role("region", name=re.compile("^Recordings of")).get_by_role("link", name="/").first.click()
        page.wait_for_url("**/samples/*")
        expect(page.get_by_role("heading", level=1)).to_be_visible()


def search_sort_and_page(page: Page) -> None:
    """From the table of recordings on: to the second page of what matches, the fastest first."""
    page.get_by_label("Part of the path").fill("1")
    page.get_by_label("Rate from").fill("10")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text(re.compile(r"of 1,800 match"))).to_be_visible()
    for order in ("ascending", "descending"):
        page.get_by_role("columnheader", name="CPS").get_by_role("link").click()
        expect(page.locator(f"th[aria-sort={order}]")).to_have_count(1)
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=re.compile("Next")).click()
    page.wait_for_url(re.compile("offset="))
    asked = httpx.URL(page.url).params
    assert (asked["q"], float(asked["min_cps"]), asked["sort"], asked["descending"]) == ("1", 10, "cps", "true")
    assert int(asked["offset"]) > 0


def test_the_state_is_in_the_address(chromium: Browser, url: str) -> None:
    """Whoever is sent an address sees the same; and back leads back."""
    with looking(chromium, url) as page:
        page.goto("page/splits/train/rows")
        search_sort_and_page(page)
        address, rows = page.url, page.locator("tbody tr").all_inner_texts()
        page.go_back()
        assert "offset" not in httpx.URL(page.url).params
        assert page.locator("tbody tr").all_inner_texts() != rows
    with looking(chromium, url) as page:
        page.goto(address)
        assert page.locator("tbody tr").all_inner_texts() == rows
        expect(page.get_by_label("Part of the path")).to_have_value("1")


def test_a_click_on_a_point_opens_its_recording(chromium: Browser, url: str) -> None:
    for path in ("page/splits/train", "page/splits/dev/runs/mlp-3"):
        with looking(chromium, url) as page:
            page.goto(path)
            plot = page.locator(".plot.tall")
            plot.scroll_into_view_if_needed()
            expect(plot.locator(".points path").first).to_be_attached()
            x, y = plot.evaluate(_FURTHEST_LEFT)
            page.mouse.move(x, y)
            expect(plot.locator(".hoverlayer .hovertext")).to_be_visible()
            shown = plot.locator(".hoverlayer").text_content() or ""
            page.mouse.click(x, y)
            page.wait_for_url(re.compile(r"/samples/\d+$"))
            index, path = page.url.rpartition("/")[2], page.get_by_role("heading", level=1).inner_text()
            assert path in shown or f"index {index}:" in shown


_FURTHEST_LEFT = """(plot) => {
    const boxes = [...plot.querySelectorAll(".points path")].map((point) => point.getBoundingClientRect());
    const box = boxes.reduce((one, other) => (one.x < other.x ? one : other));
    return [box.x + box.width / 2, box.y + box.height / 2];
}"""  # upon which no other lies


def test_by_keyboard_alone(chromium: Browser, url: str) -> None:
    """The first key leads past the navigation; each stop is seen, and in the order of the page."""
    with looking(chromium, url) as page:
        page.goto("page/splits/train/rows")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
        page.keyboard.press("Enter")
        stops = []
        for _ in range(40):
            page.keyboard.press("Tab")
            stops.append(page.evaluate(_STOP))
            if stops[-1]["name"] == "max_cps":
                break
        assert [stop["text"] for stop in stops][:3] == ["Figures", "Recordings", "Predictions"]
        assert [stop["name"] for stop in stops if stop["name"]] == ["q", "min_cps", "max_cps"]
        assert all(stop["outline"] >= 2 for stop in stops), stops
        page.keyboard.type("20")
        page.keyboard.press("Enter")
        page.wait_for_url("**max_cps=20**")
        assert float(page.locator("tbody tr").first.locator("td").nth(1).inner_text()) <= 20


_STOP = """() => {
    const at = document.activeElement;
    const style = getComputedStyle(at);
    const outline = style.outlineStyle == "none" ? 0 : parseFloat(style.outlineWidth);
    return {text: at.textContent.trim(), name: at.name ?? "", outline};
}"""


def test_the_code_is_copied_by_key_and_said(chromium: Browser, url: str) -> None:
    with looking(chromium, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto("")
        button = page.get_by_role("button", name=re.compile("Copy ?: Python code"))
        button.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_text("Copied")).to_be_visible()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert f'"{url}"' in copied
        assert '"train"' in copied
        compile(copied, "copied", "exec")


def test_by_plain_http_under_a_name_it_is_the_same(chromium: Browser, url: str) -> None:
    """As at http://data:8000: no clipboard for scripts, and an error of the console for each header that counts over TLS alone."""
    url = url.replace("127.0.0.1", "data.lab")
    with looking(chromium, url) as page:
        page.goto("page/splits/dev")
        assert not page.evaluate("isSecureContext")
        page.get_by_role("button", name=re.compile("Copy ?: Python code")).click()
        expect(page.get_by_text("Copied")).to_be_visible()
        assert f'"{url}", "dev"' in page.evaluate("getSelection().toString()")


def test_the_live_panel_counts_what_is_sent(chromium: Browser, url: str) -> None:
    with looking(chromium, url) as page:
        page.goto("page/live")
        expect(page.get_by_text("Live", exact=True).last).to_be_visible()
        before = page.locator('[data-show="samples"]').inner_text()
        httpx.get(f"{url}/v1/splits/train/batches", params={"batch_size": 256}).raise_for_status()
        expect(page.locator('[data-show="samples"]')).not_to_have_text(before)


def test_the_documentation_comes_from_the_service(chromium: Browser, url: str) -> None:
    with looking(chromium, url) as page:
        page.goto("docs")
        page.get_by_role("button", name=re.compile("get .v1.splits$", re.I)).first.click()
        expect(page.get_by_role("button", name="Try it out")).to_be_visible()
        shoot(page, "docs-light")


def test_a_page_shows_its_figures_by_itself_when_they_are_there(chromium: Browser, snapshot: Snapshot, tmp_path: Path) -> None:
    without = shutil.copytree(snapshot.path, tmp_path / snapshot.path.name, ignore=shutil.ignore_patterns("*statistics*"))
    held = lock(without)  # as another service has it that computes them, until they have been waited for
    assert held is not None
    with serving(create_app(open_snapshot(without), ServeSettings())) as url, looking(chromium, url) as page:
        page.goto("")
        expect(page.get_by_text("2,400 recordings in 3 splits")).to_be_visible()
        expect(page.get_by_text(re.compile("figures are being computed"))).to_be_visible()
        os.close(held)
        expect(page.get_by_text("The embedding carries the speech rate")).to_be_visible()
        expect(page.get_by_role("progressbar")).to_have_count(0)
