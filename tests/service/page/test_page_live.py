"""What the service is doing now: the panel's figures are the service's own counters, of all its workers."""

from collections.abc import Callable

import httpx
import pytest
from conftest import Server
from looked_at import look

from cpstream_service.api import live


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_FRESH_S", 0)


def now(url: str) -> dict[str, float]:
    found: dict[str, float] = httpx.get(f"{url}/page/live.json").json()
    return found


def test_a_known_stream_gives_these_numbers(run_server: Callable[..., Server]) -> None:
    url = run_server().url
    before = now(url)
    nbytes = len(httpx.get(f"{url}/v1/splits/dev/batches?batch_size=10&limit=3").content)
    httpx.get(f"{url}/v1/splits/nowhere")
    httpx.get(f"{url}/v1/splits/nothing")
    httpx.get(f"{url}/v1/splits/dev/batches?batch_size=0")
    after = now(url)
    assert after["samples"] - before["samples"] == 30
    assert after["bytes"] - before["bytes"] > nbytes
    assert after["open_streams"] == 0
    assert after["refusals"] == {"unknown-split": 2, "invalid-parameter": 1}
    assert after["at_s"] > before["at_s"]


def test_the_page_says_the_same_without_javascript(run_server: Callable[..., Server]) -> None:
    server = run_server()
    httpx.get(f"{server.url}/v1/splits/dev/batches?batch_size=10&limit=3").raise_for_status()
    httpx.get(f"{server.url}/v1/splits/nowhere")
    with httpx.Client(base_url=server.url) as http:
        page = look(http, "/page/live")
    assert "30 samples" in page.text
    assert "Refused so far 1" in page.text
    refused = [attrs["data-refusal"] for tag, attrs in page.tags if "data-refusal" in attrs and "hidden" not in attrs]
    assert refused == ["unknown-split"]
    assert "Of this service; other replicas show their own" in page.text
    (panel,) = [attrs["data-live"] for tag, attrs in page.tags if "data-live" in attrs]
    assert panel == "../page/live.json"


def test_a_worker_that_counts_for_itself_says_so(run_server: Callable[..., Server]) -> None:
    """As where the disk had no room; here because nobody has set up what several workers count together."""
    with httpx.Client(base_url=run_server(workers=2).url) as http:
        assert "Of one of the 2 worker processes of this service alone" in look(http, "/page/live").text
