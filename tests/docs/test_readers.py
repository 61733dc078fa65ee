"""docs/readers.md in Node, as it stands; what is in Python and for the shell there is run by test_docs.py."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Server

PAGE = Path(__file__).parents[2] / "docs" / "readers.md"


@pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm (Debian: nodejs, npm)")
def test_node_reads_batches(server: Server, tmp_path: Path) -> None:
    found = re.search(r"```javascript\n(.*?)```\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    code, output = found.groups()
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "apache-arrow"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=240).returncode:
        pytest.skip("npm cannot install apache-arrow here")
    (tmp_path / "read.mjs").write_text(code.replace("http://localhost:8000", server.url))
    done = subprocess.run(["node", "read.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, output), done.stderr
