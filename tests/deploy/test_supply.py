"""What is shipped says what it is made of, and what is known against that is said."""

import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from soak.engine import answers
from tools.audit import report
from tools.sbom import PIN, of_image, of_wheel, text_of

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements" / "service.txt").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"BUILD_COMMIT": ""}, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_bill_of_a_wheel_is_its_lock_file(wheel: Path) -> None:
    bill = json.loads(text_of(of_wheel(wheel)))  # which validates it
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("cpstream", wheel.name.split("-")[1])
    assert root["hashes"] == [{"alg": "SHA-256", "content": sha256(wheel.read_bytes()).hexdigest()}]
    found = {(part["name"], part["version"]) for part in bill["components"]}
    assert found == {(pin["name"], pin["version"]) for pin in PIN.finditer(LOCK)}
    assert len(found) == len(re.findall(r"^\S+==", LOCK, re.MULTILINE))
    hashes = [value["value"] for part in bill["components"] for value in part["properties"] if value["name"] == "cpstream:sha256"]
    assert sorted(hashes) == sorted(re.findall(r"sha256:(\w+)", LOCK))
    (dependencies,) = (node["dependsOn"] for node in bill["dependencies"] if node["ref"] == root["bom-ref"])
    assert sorted(dependencies) == sorted(part["bom-ref"] for part in bill["components"])


@pytest.mark.skipif(not answers(["docker", "image", "inspect", "cpstream-test"]), reason="no Docker Engine holds cpstream-test")
def test_the_bill_of_the_image_names_what_lies_in_it() -> None:
    bill = json.loads(text_of(of_image("cpstream-test")))
    found = {(part["name"], part["version"]) for part in bill["components"]}
    names = {name for name, _ in found}
    assert {"cpstream", "chromadb", "libc6"} <= names
    assert not {"onnxruntime", "torch"} & names
    pinned = {(pin["name"], pin["version"]) for pin in PIN.finditer(LOCK)}
    assert ("chromadb", dict(pinned)["chromadb"]) in found


def package(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0"} | more


def test_a_vulnerable_package_fails_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    known = [{"id": "PYSEC-2026-1", "fix_versions": ["1.1"]}, {"id": "PYSEC-2026-2", "fix_versions": []}]
    assert report([package("sound", vulns=[]), package("broken", vulns=known)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "pip-audit: broken 1.0: PYSEC-2026-1, fixed in 1.1",
        "pip-audit: broken 1.0: PYSEC-2026-2, fixed in no version yet",
    ]


def test_what_was_not_audited_is_not_called_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([package("sound", vulns=[]), {"name": "strange", "skip_reason": "not found"}]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pip-audit: nothing is known of 1 of 2 packages: strange",
        "pip-audit: 1 packages, none known to be vulnerable",
    ]


def test_an_audit_without_its_data_says_so() -> None:
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}
    command = [sys.executable, str(ROOT / "tools" / "audit.py")]
    done = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "pip-audit: skipped, its data cannot be reached from here\n"), done.stderr


def test_image_and_tests_install_by_hash() -> None:
    assert "install --no-deps --require-hashes -r service.txt" in (ROOT / "Dockerfile").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for lock in ("service", "dev"):
        assert f"--no-deps --require-hashes -r requirements/{lock}.txt" in makefile
