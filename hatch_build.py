"""What pip shows of the project: its version, and its README and addresses, which lead to where the release lies.

The version names the commit, `0.1.0+g1a2b3c4d5e6f`, and `.dirty` where files differ from it: whoever says which one runs has said
what runs. BUILD_COMMIT names it where there is no git, as in the image. Empty, it is for none: a release has none, nor has what
is installed to be edited, whose commit moves on.

HOME_URL names that place when a release is built, `https://host/owner/cpstream/blob/v1.0.0`. Relative links of the README then lead
there, and the project has addresses; without it they become plain text, since on a page of a package index they would lead nowhere.
"""

import os
import re
import subprocess
from contextlib import suppress
from email import message_from_string
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELEASE = "0.1.0"
ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
PAGES = {"Documentation": "README.md", "Changelog": "CHANGELOG.md", "Contributing": "CONTRIBUTING.md"}


class CustomMetadataHook(MetadataHookInterface):
    """Sets `readme` and, where HOME_URL is given, `urls`."""

    def update(self, metadata: dict[str, object]) -> None:
        home = os.environ.get("HOME_URL", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": linked(text, home)}
        if home:
            metadata["urls"] = {name: f"{home}/{page}" for name, page in PAGES.items()}


def version() -> str:
    """RELEASE, with the commit where one is known. In a source distribution: what it says of itself."""
    about = ROOT / "PKG-INFO"
    if about.exists():
        return str(message_from_string(about.read_text(encoding="utf-8"))["Version"])
    commit = os.environ.get("BUILD_COMMIT")
    if commit is None and (ROOT / ".git").exists():
        git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=.dirty"]
        with suppress(OSError):  # no git here; and it refuses a checkout of somebody else's
            commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 - no input
    return f"{RELEASE}+g{commit}" if commit else RELEASE


def linked(text: str, home: str) -> str:
    """The text with its relative links leading to `home`, or, where that is empty, with what they say alone."""
    if home:
        raw = home.replace("/blob/", "/raw/")  # of a picture, the file itself and not the page that shows it
        return LINK.sub(lambda link: f"{link[1]}[{link[2]}]({raw if link[1] else home}/{link[3]})", text)
    return LINK.sub(lambda link: "" if link[1] else link[2], text)
