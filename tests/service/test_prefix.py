"""Behind a reverse proxy that serves all this under a path of its own: API, client, pages and links work."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urljoin

import httpx
import pytest
from conftest import Server, poll
from looked_at import LookedAt

from cpstream_client import Client

PREFIX = "/lab/data"
PAGES = (
    "splits/train",
    "splits/train/rows?q=en",
    "splits/train/samples/3",
    "splits/dev/runs",
    "versions",
    "live",
    "splits/nothing",
)


@contextmanager
def stripping_proxy(upstream: str) -> Iterator[str]:
    """A reverse proxy that takes PREFIX off the path and knows nothing else. Yields the address with the prefix."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def forward(self) -> None:
            if not self.path.startswith(PREFIX + "/"):
                self.send_error(404, "nothing but the prefix is proxied")
                return
            connection = HTTPConnection(upstream.removeprefix("http://"))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection.request(self.command, self.path.removeprefix(PREFIX), body, dict(self.headers))
            reply = connection.getresponse()
            content = reply.read()
            self.send_response_only(reply.status, reply.reason)
            for name, value in reply.getheaders():
                if name.lower() != "transfer-encoding":
                    self.send_header(name, value)
            if reply.getheader("Transfer-Encoding"):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_HEAD = do_POST = forward

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads = True
        thread = Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}{PREFIX}"
        finally:
            proxy.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def proxied(server: Server) -> Iterator[str]:
    with stripping_proxy(server.url) as url:
        yield url


def test_every_link_of_the_index_leads_somewhere(proxied: str) -> None:
    index = httpx.get(f"{proxied}/")
    links = {name: link for name, link in index.json().items() if name != "service"}
    assert len(links) == 6
    for name, link in links.items():
        assert httpx.get(urljoin(str(index.url), link)).status_code == 200, name


def test_the_documentation_reads_its_description_and_calls_the_service(proxied: str) -> None:
    page = httpx.get(f"{proxied}/docs")
    assert page.headers["content-type"].startswith("text/html")
    scripts = [httpx.get(urljoin(str(page.url), path)).text for path in re.findall(r'<script src="([^"]+)"></script>', page.text)]
    found = re.search(r'url: "([^"]+)"', scripts[-1])
    assert found
    description_url = urljoin(str(page.url), found[1])
    description = json.loads(httpx.get(description_url).text)
    (called,) = description["servers"]  # a relative one is relative to the description
    assert urljoin(description_url, called["url"]).rstrip("/") == proxied
    assert httpx.get(urljoin(description_url, called["url"]).rstrip("/") + "/v1/splits").status_code == 200


def test_the_documentation_asks_no_other_host(proxied: str) -> None:
    page = httpx.get(f"{proxied}/docs")
    assert "'self'" in page.headers["content-security-policy"]
    assert re.findall(r"<script[^>]*>([^<]+)</script>", page.text) == []  # none within the page, which the policy forbids
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 5
    for path in files:
        assert not re.match(r"https?:|//", path)
        assert httpx.get(urljoin(str(page.url), path)).status_code == 200, path
    assert httpx.get(f"{proxied}/docs/nothing.js").status_code == 404


def test_the_client_streams(proxied: str, server: Server) -> None:
    with Client(proxied) as client:
        info = client.split("dev")
        assert sum(batch.num_rows for batch in client.batches("dev")) == info.num_samples == 300
        assert client.take("dev", [3, 1]).num_rows == 2


def test_pages_lead_only_to_what_there_is_below_the_prefix(proxied: str) -> None:
    kinds: dict[str, str] = {}
    for path in ("/", *(f"/page/{name}" for name in PAGES)):
        reply = httpx.get(f"{proxied}{path}", headers={"Accept": "text/html"})
        addresses = LookedAt(reply.text).addresses(str(reply.url)) - {str(reply.url)}
        assert all(address.startswith(proxied) for address in addresses), addresses
        kinds |= {re.sub(r"\d+", "0", address.removeprefix(proxied)): address for address in addresses}
    for address in kinds.values():  # one of each kind: a recording is like another
        assert httpx.get(address, headers={"Accept": "text/html"}).status_code in (200, 202), address
    live = httpx.get(f"{proxied}/page/live", headers={"Accept": "text/html"})
    (polled,) = re.findall(r'data-live="([^"]+)"', live.text)
    poll(lambda: httpx.get(urljoin(str(live.url), polled)).json()["open_streams"] == 0)  # those of other tests included
