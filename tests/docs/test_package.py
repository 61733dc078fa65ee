"""The package as a package index shows it: no link of its README leads nowhere, and a release has addresses."""

import os
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME = "https://example.org/speech/cpstream/blob/v1"


def metadata(folder: Path, **env: str) -> Message:
    """Of a wheel, built as a release is."""
    kept = {name: value for name, value in os.environ.items() if name != "HOME_URL"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, env=kept | env, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("env", [{}, {"HOME_URL": HOME}], ids=["nowhere", "home"])
def test_links_of_the_readme_lead_somewhere_or_are_none(env: dict[str, str], tmp_path: Path) -> None:
    text = metadata(tmp_path, **env).get_payload()
    assert isinstance(text, str)
    assert "docs/guarantees.md" in text
    for target in links(text):
        assert target.startswith("https://")
        page = re.sub(r"^https://example.org/speech/cpstream/(blob|raw)/v1/", "", target).partition("#")[0]
        assert (ROOT / page).exists(), target
    assert bool(links(text)) == bool(env)


def test_a_release_has_addresses(tmp_path: Path) -> None:
    urls = dict(url.split(", ") for url in metadata(tmp_path, HOME_URL=f"{HOME}/").get_all("Project-URL", []))
    assert urls["Changelog"] == f"{HOME}/CHANGELOG.md"
    for url in urls.values():
        assert (ROOT / url.removeprefix(f"{HOME}/")).exists()
