"""What /openapi.json says of a live service, tried by schemathesis: thousands of requests, all of its checks."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from command import Service, serve
from conftest import Server

TOKEN = "s3cret"
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


def tried(service: Service, folder: Path, examples: int, *options: str) -> str:
    """The report of a run; fails where a check does. examples: of each operation and phase."""
    command = [str(Path(sys.executable).with_name("st")), "run", f"{service.url}/openapi.json", "--checks", "all"]
    # Ours is stricter: it tells refusals of what is malformed from those of what is not held.
    command += ["--exclude-checks", "positive_data_acceptance", "--max-examples", str(examples), "--seed", "1", "--no-shrink"]
    command += [
        "--request-timeout",
        "60",
        "--exclude-path-regex",
        "/measure$",
    ]  # each takes half a second; its parameters are those of batches
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def test_replies_are_those_described(tmp_path: Path) -> None:
    with serve(tmp_path, "--state-dir", str(tmp_path / "state")) as service:
        report = tried(service, tmp_path, 50, "--continue-on-failure", "--phases", "examples,coverage,fuzzing")
        # Positive data alone: as a negative one, it takes `batch_size=7` for an array of one, and wants it refused.
        tried(service, tmp_path, 10, "--phases", "stateful", "--mode", "positive")
    assert int(re.findall(r"(\d+) generated", report)[-1]) >= 2000, report


def test_a_token_is_wanted_where_it_is_said_to_be(tmp_path: Path) -> None:
    with serve(tmp_path, "--state-dir", str(tmp_path / "state"), "--token", TOKEN) as service:
        tried(service, tmp_path, 10, "--header", f"Authorization: Bearer {TOKEN}", "--phases", "examples,coverage,fuzzing")


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_token_is_described_where_there_is_one(run_server: Callable[..., Server], token: str | None) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    description = httpx.get(f"{run_server(token=token).url}/openapi.json", headers=headers).json()
    for path, operations in description["paths"].items():
        for operation in operations.values():
            wanted = token is not None and path.startswith(("/v1", "/metrics"))
            assert ("security" in operation, "401" in operation["responses"]) == (wanted, wanted), path
    assert ("securitySchemes" in description["components"]) == (token is not None)


def test_columns_and_fingerprint_have_patterns(run_server: Callable[..., Server]) -> None:
    server = run_server()
    info = httpx.get(f"{server.url}/v1/splits/dev").json()
    description = httpx.get(f"{server.url}/openapi.json").json()
    parameters = {each["name"]: each["schema"] for each in description["paths"]["/v1/splits/{split}/batches"]["get"]["parameters"]}
    columns, fingerprint = parameters["columns"]["pattern"], parameters["fingerprint"]["anyOf"][0]["pattern"]
    assert re.search(fingerprint, info["fingerprint"])
    assert not re.search(fingerprint, info["fingerprint"] + "0")
    for given, is_valid in {
        "cps": True,
        "index, cps": True,
        " cps ,file_path": True,
        "cps,": False,
        "cpss": False,
        "pitch": False,
    }.items():
        assert bool(re.search(columns, given)) == is_valid, given
        status = httpx.get(f"{server.url}/v1/splits/dev/batches", params={"columns": given, "limit": 1}).status_code
        assert status == (200 if is_valid else 422), given
    num_operations = sum(map(len, description["paths"].values()))
    assert len(httpx.get(f"{server.url}/openapi.json").content) < 4_700 * num_operations  # what they share is said once
