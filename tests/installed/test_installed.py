"""What is installed works, seen from outside: each command as a process, an epoch, the local twin.

Run by this interpreter; or by that which INSTALLED_PYTHON names, as `make test-lowest` does with the lowest versions that
pyproject.toml allows.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEMO_DATA, poll
from packaging.requirements import Requirement
from packaging.version import Version

ELSEWHERE = os.environ.get("INSTALLED_PYTHON")
PYTHON = ELSEWHERE or sys.executable
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

pytestmark = pytest.mark.xdist_group("installed")  # one service for all

EPOCH = """
import sys
import numpy as np, torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler
from cpstream_client import Client
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset, loader
from cpstream_service.dataset import RegressionEmbeddingsDataset

if __name__ == "__main__":
    url, source = sys.argv[1:]
    twin = RegressionEmbeddingsDataset(source, "train", "npy", "{split}_cps.csv", progress=False)
    sampler = DistributedSampler(twin, num_replicas=1, rank=0, shuffle=True, seed=3)
    sampler.set_epoch(1)
    expected = [twin[batch] for batch in BatchSampler(sampler, 64, drop_last=False)]
    for options in ({}, {"num_workers": 2, "multiprocessing_context": "spawn"}):
        train = StreamingEmbeddingsDataset(url, "train", batch_size=64, shuffle=True, seed=3)
        train.set_epoch(1)
        got = list(loader(train, **options))
        assert len(got) == len(expected) == 29
        for batch, other in zip(got, expected):
            assert all(torch.equal(one, two) for one, two in zip(batch, other))
    half = StreamingEmbeddingsDataset(url, "train", batch_size=64, dtype="float16", columns=("index", "embedding", "file_path"))
    index, embeddings, file_paths = next(iter(half))
    assert embeddings.dtype == torch.float16 and file_paths == twin.filenames[:64] and index.tolist() == list(range(64))
    remote = RemoteEmbeddingsDataset(url, "train")
    assert torch.equal(remote[7][0], twin[7][0])
    client = Client(url)
    assert np.array_equal(client.take("train", [5, 1]).index, [5, 1])
    assert client.rows("dev", 0, 2)
    print("pandas" in sys.modules)
"""


def command(*arguments: str) -> list[str]:
    return [PYTHON, "-m", "cpstream_service", *arguments]


def environment(**more: str) -> dict[str, str]:
    left_out = {"PYTHONPATH"} if ELSEWHERE else set()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CPSTREAM_") and name not in left_out}
    return kept | {"COLUMNS": "120"} | more


def run(folder: Path, *arguments: str) -> str:
    """Standard output of a command that succeeds."""
    done = subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("installed")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Of `cpstream serve`, started for the first time on data that it has never seen."""
    log = folder / "log"
    options = ["--source-path", str(DEMO_DATA), "--snapshot-dir", str(folder / "snapshots"), "--host", "127.0.0.1", "--port", "0"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command("serve", *options), cwd=folder, env=environment(), stderr=stderr)
    try:
        poll(lambda: process.poll() is not None or "serving at" in log.read_text())
        found = re.search(r"serving at (http://[\w.:]+)", log.read_text())
        assert found, log.read_text()
        yield found[1]
        process.terminate()
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not ELSEWHERE, reason="INSTALLED_PYTHON names no installation of the lowest versions; make test-lowest does")
def test_the_lowest_versions_are_what_is_installed(folder: Path) -> None:
    """But for torch, whose lowest is not to be had for every Python."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [Requirement(text) for text in (*project["dependencies"], *extras["cli"], *extras["service"])]
    declared = [requirement for requirement in declared if requirement.name != "cpstream"]
    program = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    installed = run(folder, PYTHON, "-c", program, *(requirement.name for requirement in declared)).split()
    for requirement, version in zip(declared, installed, strict=True):
        (lowest,) = [Version(spec.version).release for spec in requirement.specifier if spec.operator == ">="]
        assert Version(version).release[: len(lowest)] == lowest, requirement


def test_an_epoch_is_that_of_the_twin_and_needs_no_pandas(folder: Path, url: str) -> None:
    (folder / "epoch.py").write_text(EPOCH)
    assert run(folder, PYTHON, "epoch.py", url, str(DEMO_DATA)) == "False\n"


def test_check(folder: Path) -> None:
    assert "1,800" in run(folder, *command("check", "--source-path", str(DEMO_DATA)))


def test_info_and_plan(folder: Path, url: str) -> None:
    assert "train" in run(folder, *command("info", url))
    steps = json.loads(run(folder, *command("plan", url, "train", "--step", "2", "--batch-size", "4", "--json")))
    assert steps["step"] == 2


def test_ingest_and_a_start_from_chroma(folder: Path, url: str) -> None:
    run(folder, *command("ingest", "--source-path", str(DEMO_DATA), "--chroma-path", str(folder / "chroma")))
    options = [
        "--source-type",
        "chromadb",
        "--source-path",
        str(folder / "chroma"),
        "--cps-csv",
        str(DEMO_DATA / "{split}_cps.csv"),
    ]
    assert "1,800" in run(folder, *command("check", *options))


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/metrics", "/readyz", "/v1/splits"])
def test_pages(folder: Path, url: str, path: str) -> None:
    program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).status)"
    assert run(folder, PYTHON, "-c", program, url + path) == "200\n"


def test_the_page_has_its_files(folder: Path, url: str) -> None:
    program = """
import re, sys
from urllib.request import Request, urlopen

page = urlopen(Request(sys.argv[1], headers={"Accept": "text/html"})).read().decode()
files = re.findall(r'"(page/static/[^"]+)"', page)
for file in files:
    assert len(urlopen(sys.argv[1] + file).read()) > 50, file
print(*sorted({file.rpartition("/")[2] for file in files}))
"""
    assert {"page.css", "page.js", "icon.svg", "plotly.min.js"} <= set(run(folder, PYTHON, "-c", program, f"{url}/").split())
