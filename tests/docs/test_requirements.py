"""requirements/ pins all that pyproject.toml names, with hashes, and the image has the versions that the tests had."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"dev.txt": ["dev"], "service.txt": ["service"]}
LINE = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>.+?))?(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def text_of(name: str) -> str:
    return (ROOT / "requirements" / name).read_text()


def pins(name: str) -> dict[str, str]:
    """Versions for this Python, by package."""
    lines = [line for line in LINE.finditer(text_of(name)) if line["marker"] is None or Marker(line["marker"]).evaluate()]
    assert len({line["name"] for line in lines}) == len(lines)
    return {canonicalize_name(line["name"]): line["version"] for line in lines}


def named(extras: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for with these extras, and those that they include."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            found += named(sorted(requirement.extras)) if requirement.name == "cpstream" else [requirement]
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


@pytest.mark.parametrize("name", EXTRAS)
def test_each_line_is_a_pin_with_hashes(name: str) -> None:
    """And names no index."""
    assert LINE.sub("", text_of(name)) == ""


@pytest.mark.parametrize("name", EXTRAS)
def test_all_that_is_named_is_pinned_as_it_may_be(name: str) -> None:
    pinned = pins(name)
    for requirement in named(EXTRAS[name]):
        if requirement.name != "torch":
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} is not in requirements/{name}; run make lock"
            assert requirement.specifier.contains(version), f"{requirement}, but {version} in requirements/{name}; run make lock"


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_pinned_needs_nothing_else(name: str) -> None:
    """By what the installed packages of these versions say of themselves."""
    pinned, checked = pins(name), 0
    for package, version in pinned.items():
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            continue
        if installed.version != version:
            continue
        checked += 1
        for requirement in map(Requirement, installed.requires or ()):
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and requirement.name != "torch":
                assert canonicalize_name(requirement.name) in pinned, f"{package} needs {requirement}"
    assert checked > len(pinned) // 2


def test_torch_is_left_out() -> None:
    assert not {"torch", "triton"} & (pins("dev.txt").keys() | pins("service.txt").keys())


def test_the_image_gets_what_was_tested() -> None:
    assert pins("service.txt").items() <= pins("dev.txt").items()
