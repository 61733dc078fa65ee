"""Where tokens are set: the form in place of a page, and what a browser then keeps, as a person meets it."""

from collections.abc import Iterator

import httpx
import pytest
from conftest import poll, serving

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test-browser")
from looking import barriers, drawn, looking, shoot
from playwright.sync_api import Browser, expect

from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

pytestmark = pytest.mark.browser

TOKEN = "s3cr3t-0f-0urs"
REFUSED = "401|403"  # what the console says of a reply that is one


@pytest.fixture(scope="module")
def url(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    file.write_text(f'[people]\ntoken = "{TOKEN}"\n')
    with serving(create_app(snapshot, ServeSettings(tokens_file=file))) as url:
        figures, headers = f"{url}/v1/splits/train/statistics", {"Authorization": f"Bearer {TOKEN}"}
        poll(lambda: httpx.get(figures, headers=headers).status_code == 200)  # or a page loads itself again when they are there
        yield url


def test_a_token_is_asked_for_once_and_given_up_by_a_button(chromium: Browser, url: str) -> None:
    with looking(chromium, url, expects=REFUSED) as page:
        asked = f"{url}/page/splits/train/rows?q=0001&sort=cps"
        page.goto(asked)
        field = page.get_by_label("Token")
        expect(field).to_be_focused()
        assert barriers(page) == []
        shoot(page, "login-light")
        field.fill("mistyped")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("This token is wrong")
        assert barriers(page) == []
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_url(asked)
        expect(page.get_by_text("0001.wav").first).to_be_visible()
        assert barriers(page) == []
        shoot(page, "rows-logged-in")
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
        assert TOKEN not in str(cookie)
        assert page.evaluate("document.cookie") == ""
        page.goto("page/splits/train")  # whose scripts ask by cookie, too
        drawn(page)
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()
        assert page.context.cookies() == []
        page.goto(asked)
        expect(page.get_by_label("Token")).to_be_visible()


def test_a_link_on_another_site_leads_to_the_page_and_its_form_does_not_log_in(chromium: Browser, url: str) -> None:
    """localhost is another site than 127.0.0.1."""
    elsewhere = url.replace("127.0.0.1", "localhost")
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}/page/splits/dev")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Log out")).to_be_visible()
        page.route(f"{elsewhere}/", lambda route: route.fulfill(body=_ELSEWHERE.format(url=url), content_type="text/html"))
        page.goto(f"{elsewhere}/")
        page.get_by_role("link").click()
        expect(page.get_by_role("button", name="Log out")).to_be_visible()
        for name in ("Log you in", "Log you out"):
            page.goto(f"{elsewhere}/")
            page.get_by_role("button", name=name).click()
            expect(page.get_by_text("of another site").first).to_be_visible()
        assert [cookie["name"] for cookie in context.cookies()] == [f"cpstream_{url.rpartition(':')[2]}"]
        page.goto(f"{url}/page/splits/dev")
        expect(page.get_by_role("button", name="Log out")).to_be_visible()


_ELSEWHERE = """<!doctype html><a href="{url}/page/splits/dev">The data</a>
<form method="post" action="{url}/login"><input name="token" value="x"><button>Log you in</button></form>
<form method="post" action="{url}/logout"><button>Log you out</button></form>"""
