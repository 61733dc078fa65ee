"""Draw the README's pictures of the pages anew: the demo data, served, in a headless Chromium.

    python -m tools.screenshots     writes docs/images/page-*.webp (make screenshots)

The font is the machine's: Debian's fonts-noto-core reads best.
"""

import io
import os
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import httpx
from benchmarks.service import serving
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
WIDTH, SCALE = 1040, 2
MAX_BYTES = 300_000
_QUALITY = 82


def main() -> int:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        print("there is no Chromium (Debian, Ubuntu: apt-get install chromium fonts-noto-core)", file=sys.stderr)
        return 1
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with TemporaryDirectory() as folder, serving(ROOT / "examples" / "speech" / "data", Path(folder)) as service:
        while httpx.get(f"{service.url}/v1/splits/train/statistics").status_code == 202:
            time.sleep(0.2)
        with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=options) as browser:
            _draw(browser, f"{service.url}/", "light", "page-overview", "How fast is the speech?")
            _draw(browser, f"{service.url}/page/splits/train", "dark", "page-split", "Where the recordings lie")
    return 0


def _draw(browser: Browser, url: str, scheme: Literal["light", "dark"], name: str, last: str) -> None:
    """The page down to the end of the section of this heading."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": WIDTH, "height": 2600}, device_scale_factor=SCALE)
    page.goto(url)
    page.wait_for_load_state("networkidle")
    for plot in page.locator(".plot").all()[:2]:
        plot.locator(".main-svg").first.wait_for()
    bottom = _bottom(page, last)
    png = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom + 28}, caret="initial")
    path = IMAGES / f"{name}.webp"
    Image.open(io.BytesIO(png)).convert("RGB").save(path, quality=_QUALITY, method=6)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path.name} is larger than {MAX_BYTES:,} bytes; draw less of the page")


def _bottom(page: Page, heading: str) -> float:
    box = page.locator("section", has=page.get_by_role("heading", name=heading, exact=True)).bounding_box()
    assert box is not None, heading
    return box["y"] + box["height"]


if __name__ == "__main__":
    sys.exit(main())
