"""The code that pages offer is what reads this very service, as it stands."""

import html
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import Server
from looked_at import look

from cpstream_service.api import client_wheel
from cpstream_service.page.views.client import literal

BROWSER = {"Accept": "text/html"}


def offered(url: str, address: str, name: str, **headers: str) -> str:
    """The text behind a button that copies."""
    page = httpx.get(f"{url}{address}", headers=BROWSER | headers).text
    found = re.search(rf'<pre id="{name}"[^>]*><code>(.*?)</code>', page, re.DOTALL)
    assert found
    return html.unescape(found[1])


@pytest.mark.parametrize(("address", "split"), [("/", "train"), ("/page/splits/dev", "dev")])
def test_it_runs_as_it_stands(server: Server, address: str, split: str) -> None:
    program = offered(server.url, address, "client-python")
    assert f'StreamingEmbeddingsDataset("{server.url}", "{split}",' in program
    assert "(256, 154) float32" in program
    shapes: list[tuple[int, ...]] = []
    exec(program.replace("...", "shapes.append((*embeddings.shape, *cps.shape))"), {"shapes": shapes})
    assert sum(shape[0] for shape in shapes) == 3 * len(server.snapshot.splits[split].cps)
    assert {shape[1] for shape in shapes} == {154}


def test_pip_takes_the_wheel_of_the_service(
    run_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = tmp_path / "cpstream-0.1.0+g1a2b3c-py3-none-any.whl"
    wheel.write_bytes(b"as the image has it")
    monkeypatch.setattr(client_wheel, "FOLDER", tmp_path)
    client_wheel.find_wheel.cache_clear()
    try:
        url = run_server().url
        told = httpx.get(f"{url}/client").json()
        line = f"pip install 'cpstream[torch] @ {url}/client/{wheel.name}#sha256={told['sha256']}'"
        assert offered(url, "/", "client-pip") == line
        wheel.unlink()
        client_wheel.find_wheel.cache_clear()
        assert offered(url, "/", "client-pip") == "pip install 'cpstream[torch]'"
    finally:
        client_wheel.find_wheel.cache_clear()


def test_the_address_is_that_of_whoever_looks(server: Server) -> None:
    """As far as it is one: what else a Host header may hold is not for code that people run."""
    assert '"http://data.lab:8000"' in offered(server.url, "/", "client-python", Host="data.lab:8000")
    assert '"http://[::1]:8000"' in offered(server.url, "/", "client-python", Host="[::1]:8000")
    assert '"http://localhost:8000"' in offered(server.url, "/", "client-python", Host="x'; rm -rf ~; '")
    with httpx.Client(base_url=server.url) as http:
        page = look(http, "/")
    copied = {str(attrs["data-copy"]) for tag, attrs in page.tags if tag == "button"}
    assert copied == {"client-pip", "client-python"} == {name for name in page.ids if name.startswith("client-")}


def test_who_has_tokens_is_told_where_to_put_one(run_server: Callable[..., Server]) -> None:
    url = run_server(token="secret").url
    page = httpx.get(f"{url}/", headers=BROWSER | {"Authorization": "Bearer secret"}).text
    assert "CPSTREAM_TOKEN" in page
    assert "secret" not in page


@pytest.mark.parametrize("name", ["train", 'a"b', "it's", "<b>", "\u202e", "a\\b", "line\nend"])
def test_a_split_of_any_name_is_named_right(name: str) -> None:
    assert eval(literal(name)) == name
    assert literal(name).isprintable()
