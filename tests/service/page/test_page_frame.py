"""What holds for every page: who gets one, what its browser may do, its files, and problems as pages."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from conftest import Server, poll
from looked_at import LookedAt

from cpstream_client.contract import wire

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}
PAGES = (
    "/",
    "/page/splits/train",
    "/page/splits/train/rows",
    "/page/splits/train/samples/3",
    "/page/splits/train/runs",
    "/page/versions",
    "/page/live",
    "/page/splits/nothing",
    "/page/nothing",
)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=BROWSER) as client:
        yield client


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER["Accept"], "text/html"),
        ("text/html", "text/html"),
        ("*/*", wire.JSON),  # curl, and most programs
        ("", wire.JSON),
        (wire.JSON, wire.JSON),
        ("text/html;q=0.5, application/json", wire.JSON),
        ("text/html, application/json", wire.JSON),
        ("image/png", wire.JSON),  # as ever
    ],
)
def test_a_browser_gets_a_page_and_programs_what_they_got(http: httpx.Client, accept: str, kind: str) -> None:
    reply = http.get("/", headers={"Accept": accept})
    assert reply.status_code == 200
    assert reply.headers["content-type"].split(";")[0] == kind
    assert reply.headers["vary"] == "Accept"
    if kind == wire.JSON:
        assert reply.json()["splits"] == "v1/splits"
        assert wire.DIGEST_HEADER in reply.headers


@pytest.mark.parametrize("path", PAGES)
def test_a_browser_may_load_nothing_from_elsewhere(http: httpx.Client, path: str) -> None:
    reply = http.get(path)
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"]) == ("'none'", "'self'")
    assert (policy["base-uri"], policy["frame-ancestors"], policy["form-action"]) == ("'none'", "'none'", "'self'")
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    page = LookedAt(reply.text)
    assert not page.faults
    assert not [link for _, link in page.links if re.match(r"[a-z]+:|//|/", link)]  # relative: a proxy may take a prefix off
    assert ("html", {"lang": "en"}) in page.tags
    for tag, attributes in page.tags:
        if tag in ("script", "link") and ("src" in attributes or "href" in attributes):
            loaded = httpx.URL(str(reply.url)).join(str(attributes.get("src") or attributes.get("href")))
            assert http.get(loaded).headers["cache-control"] == "public, max-age=31536000, immutable"


def test_a_page_is_sent_again_only_where_it_has_changed(http: httpx.Client) -> None:
    poll(lambda: http.get("/v1/splits/train/statistics").status_code == 200)  # until then it says how far they are
    first = http.get("/page/splits/train", params={"fingerprint": http.get("/v1/splits/train").json()["fingerprint"]})
    again = http.get(str(first.url), headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["cache-control"] == "private, no-cache"
    assert http.head("/").headers["content-type"].startswith("text/html")


# Problems


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/page/splits/trian", 404, "split 'trian' is not served; splits: train, dev, test"),
        ("/page/nothing/at/all", 404, "nothing is served at '/page/nothing/at/all'"),
        ("/page/splits/train?fingerprint=x", 409, "has fingerprint"),
        ("/page/splits/train?nothing=1", 422, "nothing"),
        ("/page/splits/%3Cscript%3Ealert(1)%3C%2Fscript%3E", 404, "split '<script>alert(1)</script>' is not served"),
        ("/page/splits/%E2%80%AEtxt", 404, "split '\\u202etxt'"),
    ],
)
def test_problems_are_pages_for_people_and_problems_for_programs(http: httpx.Client, path: str, status: int, says: str) -> None:
    reply = http.get(path)
    page = LookedAt(reply.text)
    assert (reply.status_code, page.faults) == (status, [])
    assert says in page.text
    assert str(reply.url.join("/")) in page.addresses(str(reply.url))  # the way back
    problem = http.get(path, headers={"Accept": "*/*"})
    assert (problem.status_code, problem.headers["content-type"]) == (status, wire.PROBLEM_JSON)
    assert problem.json()["code"] in page.text
    assert http.get("/v1/splits/trian").headers["content-type"] == wire.PROBLEM_JSON  # the API stays as it is


# Static files


def test_static_files_are_kept_for_ever_by_their_address(http: httpx.Client) -> None:
    page = http.get("/")
    (style,) = re.findall(r'href="(page/static/\w+/page\.css)"', page.text)
    packed = http.get(style, headers={"Accept-Encoding": "gzip, br"})
    plain = http.get(style, headers={"Accept-Encoding": "gzip;q=0, identity"})
    assert (packed.headers["content-encoding"], "content-encoding" in plain.headers) == ("gzip", False)
    assert packed.content == plain.content  # httpx unpacks
    assert packed.headers["etag"] != plain.headers["etag"]
    assert packed.headers["vary"] == "Accept-Encoding"
    assert http.get(style, headers={"If-None-Match": packed.headers["etag"]}).status_code == 304
    old = http.get(re.sub(r"static/\w+", "static/older", style))  # of a replica of another version, while both run
    assert (old.status_code, old.headers["cache-control"]) == (200, "no-cache")
    for path in ("/page/static/x/nothing.css", "/page/static/x/..%2Frender.py", "/page/static/x/__init__.py"):
        assert http.get(path).status_code == 404, path


def test_scripts_import_only_what_there_is(http: httpx.Client) -> None:
    waiting, seen = [http.get("/").url.join(re.findall(r'src="([^"]+page\.js)"', http.get("/").text)[0])], set()
    while waiting:
        url = waiting.pop()
        reply = http.get(url)
        assert (reply.status_code, reply.headers["content-type"]) == (200, "text/javascript; charset=utf-8"), url
        seen.add(url)
        waiting += {url.join(name) for name in re.findall(r'from "([^"]+)"', reply.text)} - seen
    assert len(seen) >= 4


def test_plotly_is_its_packages_script(http: httpx.Client) -> None:
    (address,) = re.findall(r'data-plotly="([^"]+)"', http.get("/").text)
    with http.stream("GET", f"/{address}", headers={"Accept-Encoding": "gzip"}) as reply:
        sent = b"".join(reply.iter_raw())
    script = gzip.decompress(sent)
    assert b"plotly.js v" in script[:200]
    assert len(sent) < len(script) / 3
    assert reply.headers["cache-control"].endswith("immutable")


def test_neither_plotly_nor_jinja2_is_loaded_before_a_page_is_asked_for() -> None:
    check = "import sys, cpstream_service.serve; print(*{'plotly', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    reads = "from cpstream_service.page import assets; assert assets.find('', 'plotly.min.js')"
    found = f"import sys; {reads}; print('plotly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_data_of_charts_is_json(http: httpx.Client) -> None:
    page = LookedAt(http.get("/page/splits/train").text)
    assert page.data
    for text in page.data:
        assert isinstance(json.loads(text), dict)
