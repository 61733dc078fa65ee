"""What pip shows of the project: its README and addresses, which lead to where the release lies.

HOME_URL names that place when a release is built, `https://host/owner/cpstream/blob/v1.0.0`. Relative links of the README then lead
there, and the project has addresses; without it they become plain text, since on a page of a package index they would lead nowhere.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

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


def linked(text: str, home: str) -> str:
    """The text with its relative links leading to `home`, or, where that is empty, with what they say alone."""
    if home:
        raw = home.replace("/blob/", "/raw/")  # of a picture, the file itself and not the page that shows it
        return LINK.sub(lambda link: f"{link[1]}[{link[2]}]({raw if link[1] else home}/{link[3]})", text)
    return LINK.sub(lambda link: "" if link[1] else link[2], text)
