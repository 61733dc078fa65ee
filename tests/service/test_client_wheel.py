"""The client from the service: pip installs it by its URL, and who has one that does not fit is told so by its line."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Server

from cpstream_client import Client, ContractMismatch
from cpstream_client.contract import wire
from cpstream_service.api import client_wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a commit, as `make serve` and the image build it."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(
        command, cwd=ROOT, env={**os.environ, "BUILD_COMMIT": "1a2b3c4d5e6f"}, check=True, capture_output=True, timeout=120
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where the service looks for the wheel; empty."""
    monkeypatch.setattr(client_wheel, "FOLDER", tmp_path)
    client_wheel.find_wheel.cache_clear()
    yield tmp_path
    client_wheel.find_wheel.cache_clear()


@pytest.fixture
def served(run_server: Callable[..., Server], folder: Path, built: Path) -> Server:
    folder.joinpath(built.name).write_bytes(built.read_bytes())
    return run_server(token="geheim")


def test_pip_installs_it_without_a_token(served: Server, tmp_path: Path) -> None:
    told = httpx.get(f"{served.url}/client").json()
    assert told["contract"] == wire.CONTRACT
    assert told["version"].endswith("+g1a2b3c4d5e6f")
    line = f"cpstream @ {served.url}/{told['wheel']}#sha256={told['sha256']}"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path),
        line,
    ]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    program = "import cpstream_client; print(cpstream_client.__file__, cpstream_client.__version__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=60)
    assert said.stdout == f"{tmp_path}/cpstream_client/__init__.py {told['version']}\n"
    url = f"{served.url}/{told['wheel']}"
    assert httpx.get(url, headers={"If-None-Match": httpx.head(url).headers["etag"]}).status_code == 304


def test_another_name_leads_to_the_one_that_there_is(served: Server, built: Path) -> None:
    reply = httpx.get(f"{served.url}/client/cpstream-0.0.1-py3-none-any.whl")
    assert (reply.status_code, reply.json()["code"]) == (404, "not-found")
    assert built.name in reply.json()["detail"]


def test_a_service_without_one_says_so(run_server: Callable[..., Server], folder: Path) -> None:
    server = run_server()
    told = httpx.get(f"{server.url}/client").json()
    assert told == {"contract": wire.CONTRACT, "version": None, "wheel": None, "sha256": None}
    assert httpx.get(f"{server.url}/client/cpstream-0.1.0-py3-none-any.whl").status_code == 404
    assert httpx.get(f"{server.url}/livez").headers[wire.CONTRACT_HEADER] == f"contract={wire.CONTRACT}"


def test_a_client_of_another_contract_is_told_which_one_to_install(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    header = wire.contract_header(client_wheel.find_wheel().name)  # type: ignore[union-attr]
    assert httpx.get(f"{served.url}/v1/splits").headers[wire.CONTRACT_HEADER] == header  # refused, and yet said
    monkeypatch.setattr(wire, "CONTRACT", wire.CONTRACT + 1)  # this client's, from now on; the service has said its own
    with Client(served.url, token="geheim") as client, pytest.raises(ContractMismatch) as error:
        client.splits()
    text = str(error.value)
    assert text.startswith(f"{served.url} speaks contract 1 and this client contract 2: python -m pip install 'cpstream @ ")
    (url,) = re.findall(r"@ (\S+)'$", text)
    assert httpx.get(url).status_code == 200
    assert "\n" not in text


@pytest.mark.parametrize(
    ("header", "remedy"),
    [
        ("contract=2", "upgrade cpstream"),
        ('contract=2, client="cpstream-2.0-py3-none-any.whl"', "'cpstream @ http://data/client/cpstream-2.0-py3-none-any.whl'"),
        ('contract=2, client="x\' ; rm -rf / #.whl"', "upgrade cpstream"),  # nobody's shell
    ],
)
def test_what_does_not_fit(header: str, remedy: str) -> None:
    assert remedy in str(wire.misfit(header, "http://data"))


@pytest.mark.parametrize("header", ["", "contract=1", 'contract=1, client="cpstream-1.5-py3-none-any.whl"', "contract=1, more=2"])
def test_what_fits(header: str) -> None:
    """Whatever the package's version is; a service without the header is of before there was one."""
    assert wire.misfit(header, "http://data") is None
