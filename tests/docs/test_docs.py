"""The documentation holds: its commands run, their outputs are as pasted, and nothing that there is is left out of it.

A fenced block under `<!-- test: service -->` is run against a service of the demo data, with its address in place of
localhost:8000; one under `<!-- test: local -->` without one. A block under `<!-- output -->` is the expected output of the block
before it, `...` standing for anything. Both run in an empty folder that has only `examples` in it.
"""

import doctest
import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from conftest import Server

from cpstream_client.contract import wire
from cpstream_service.api.metrics import Metrics
from cpstream_service.app import create_app
from cpstream_service.cli.app import variables
from cpstream_service.settings import DataSettings, ServeSettings
from cpstream_service.snapshot.store import Snapshot
from cpstream_service.sources.rows import Reason

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
API, OPERATIONS = (ROOT / "docs" / name for name in ("api.md", "operations.md"))

_BLOCK = re.compile(r"<!-- test: (\w+) -->\n+```(bash|python)\n(.*?)```\n(?:\s*<!-- output -->\n+```\w*\n(.*?)```)?", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    page: Path
    line: int
    kind: str
    language: str
    code: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text()
    return [Snippet(page, text.count("\n", 0, found.start()) + 1, *found.groups()) for found in _BLOCK.finditer(text)]


SNIPPETS = [snippet for page in PAGES if page.name != "migration.md" for snippet in snippets(page)]  # it has a test of its own


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_snippets_run_and_print_what_is_pasted(snippet: Snippet, server: Server, tmp_path: Path) -> None:
    assert snippet.kind in ("service", "local"), f"{snippet}: unknown kind of test {snippet.kind!r}"
    printed = run(snippet, server.url, tmp_path)
    if snippet.output is not None:
        matches = doctest.OutputChecker().check_output(snippet.output, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert matches, f"{snippet} printed\n{printed}"


def run(snippet: Snippet, url: str, folder: Path) -> str:
    code = snippet.code.replace("localhost:8000", url.removeprefix("http://"))
    (folder / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", code] if snippet.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    (folder / "home").mkdir()
    environment = os.environ | {
        "PATH": path,
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "COLUMNS": "120",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{snippet} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_are_snippets_to_run() -> None:
    assert {snippet.page.name for snippet in SNIPPETS} >= {"README.md", "api.md"}


def test_every_endpoint_and_parameter_is_documented(snapshot: Snapshot) -> None:
    text = API.read_text()
    for path, operations in create_app(snapshot, ServeSettings()).openapi()["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in text, path
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    assert f"`{parameter['name']}`" in text, f"{path}: {parameter['name']}"


def test_every_error_code_is_documented_with_its_status() -> None:
    for code in wire.ErrorCode:
        assert f"| `{code.code}` | {code.status} |" in API.read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    text = OPERATIONS.read_text()
    for spec in (*fields(DataSettings), *fields(ServeSettings)):
        option, variable = f"--{spec.name.replace('_', '-')}", f"CPSTREAM_{spec.name.upper()}"
        row = next((line for line in text.splitlines() if line.startswith(f"| `{option}`")), "")
        assert f"`{variable}`" in row, option
        if isinstance(spec.default, str | int | float) and not isinstance(spec.default, bool):
            assert f"`{spec.default}`" in row, f"{option}: default {spec.default}"


def test_settings_that_are_documented_exist() -> None:
    for page in (*PAGES, ROOT / "Dockerfile", ROOT / "docker-compose.yml"):
        assert set(re.findall(r"CPSTREAM_[A-Z_]+[A-Z]", page.read_text())) <= variables(), page


def test_every_metric_and_reason_is_documented() -> None:
    text = OPERATIONS.read_text()
    for metric in Metrics().registry.collect():
        if metric.name.startswith("cpstream_"):
            suffix = "_total" if metric.type == "counter" else ""
            assert f"`{metric.name}{suffix}`" in text, metric.name
    for reason in Reason:
        assert f"`{reason.code}`" in text, reason


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}, target
