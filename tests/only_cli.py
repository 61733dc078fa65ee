"""Runs `cpstream` as where only `pip install 'cpstream[cli]'` was run: every package that this does not bring is hidden.

python tests/only_cli.py info http://localhost:8000
"""

import importlib.metadata as metadata
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_by(requirements: Iterable[str]) -> set[str]:
    """The packages that pip installs for these requirements, with all that they need in turn."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonical(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        found.add(name)
        for wanted in ("", *requirement.extras):
            waiting += [(Requirement(text), wanted) for text in metadata.requires(name) or ()]
    return found


class Hidden:
    """An importer that comes first, and finds nothing of the packages that are not kept."""

    def __init__(self, kept: set[str]) -> None:
        owners = metadata.packages_distributions()
        self.names = {name for name, packages in owners.items() if not kept & set(map(canonical, packages))}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    kept = brought_by([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cli"]])
    del sys.modules["packaging"]
    sys.meta_path.insert(0, Hidden({*kept, "cpstream"}))  # type: ignore[arg-type]
    from cpstream_service.__main__ import main

    main()
