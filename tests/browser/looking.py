"""A page in Chromium, watched: what it asks of another host, what its policy forbids, and all that its console calls an error.

    with looking(chromium, url, color_scheme="dark") as page:
        page.goto(url)

Nothing may have been seen by the end. Pictures go to build/screenshots, which is no part of the repository.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
_TIMEOUT_MS = 20_000  # on a machine that is busy with other tests
expect.set_options(timeout=_TIMEOUT_MS)
_VIOLATIONS = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) =>
        window.violations.push(`${event.effectiveDirective} forbids ${event.blockedURI}`));
"""


@contextmanager
def looking(browser: Browser, url: str, *, expects: str = "$^", **context: Any) -> Iterator[Page]:
    """A page of a browser that nobody used yet. expects: a pattern of what its console may say; context: further options."""
    wrong: list[str] = []
    with browser.new_context(**{"base_url": f"{url}/", "viewport": WIDE, "reduced_motion": "reduce", **context}) as made:
        made.set_default_timeout(_TIMEOUT_MS)
        made.add_init_script(_VIOLATIONS)
        page = made.new_page()

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not re.search(expects, message.text):
                wrong.append(f"the console says {message.text} ({message.location})")

        def on_request(request: Request) -> None:
            if not request.url.startswith((f"{url}/", "data:", "blob:")):
                wrong.append(f"{request.url} is asked for")

        def on_dialog(dialog: Any) -> None:
            wrong.append(f"a dialog says {dialog.message}")
            dialog.dismiss()

        made.on("console", on_console)
        made.on("request", on_request)
        made.on("dialog", on_dialog)
        made.on("weberror", lambda error: wrong.append(f"a script failed: {error.error}"))
        yield page
        if context.get("java_script_enabled", True):
            wrong += page.evaluate("window.violations")
    assert wrong == []


def drawn(page: Page) -> None:
    """Wait until all charts of the page are there: each is drawn when it comes near to the window."""
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        expect(plot.locator(".main-svg").first).to_be_visible()
    page.evaluate("scrollTo(0, 0)")


def shoot(page: Page, name: str) -> None:
    """A picture of the whole page."""
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True, caret="initial")  # to hide it takes a forbidden style


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def barriers(page: Page) -> list[str]:
    """What axe finds serious, or worse."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['help']} ({node['html'][:200]}; {node['failureSummary']})"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
