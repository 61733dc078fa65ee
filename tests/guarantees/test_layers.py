"""The rooms form a ladder: no arrow runs back up, no two files import each other, and what is heavy is loaded late.

Read from the code by tools/rooms.py; docs/architecture.md shows the picture.
"""

from graphlib import TopologicalSorter

import pytest
from tools.rooms import LADDER, PAGE, PICTURES, drawn, imports, is_ours, loaded_at_import, modules, room, rooms

WEB = {"fastapi", "starlette", "uvicorn", "httptools"}
WEB_ROOMS = {f"cpstream_service.{name}" for name in ("api", "upgrades", "connections", "supervisor", "app", "serve")}
TORCH_ROOMS = {"cpstream_client.torch", "cpstream_service.dataset"}


def importers(names: set[str]) -> set[str]:
    """The modules that import one of these packages, be it within a function."""
    return {step.importer for step in imports() if step.imported.partition(".")[0] in names}


def test_every_room_stands_on_the_ladder() -> None:
    """A new room is put into LADDER of tools/rooms.py, above all that it imports."""
    assert set(rooms()) - set(LADDER) == set()
    assert set(LADDER) - set(rooms()) == set()
    assert len(LADDER) == len(set(LADDER))


def test_no_arrow_runs_back_up() -> None:
    back = [
        f"{step.importer} imports {step.imported}"
        for step in imports()
        if is_ours(step.imported) and LADDER.index(room(step.imported)) > LADDER.index(room(step.importer))
    ]
    assert sorted(back) == []


def test_no_two_files_import_each_other() -> None:
    """Raises CycleError, which names the circle."""
    order = TopologicalSorter({module: set() for module in modules()})
    for step in imports():
        if is_ours(step.imported) and step.importer != step.imported:
            order.add(step.importer, step.imported)
    order.prepare()


def test_only_rooms_above_the_hot_path_know_a_web_framework() -> None:
    assert {room(module) for module in importers(WEB)} <= WEB_ROOMS


def test_the_client_needs_nothing_of_the_service() -> None:
    assert not {module for module in importers({"cpstream_service"}) if module.startswith("cpstream_client")}


def test_only_the_datasets_know_torch() -> None:
    assert {room(module) for module in importers({"torch", "torchdata"})} == TORCH_ROOMS


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("torch", TORCH_ROOMS), ("chromadb", {"cpstream_service.sources"}), ("pandas", set())],
)
def test_what_is_heavy_is_loaded_late(package: str, allowed: set[str]) -> None:
    """Only the datasets load torch when they are imported, and only the reader of Chroma, itself imported late, chromadb."""
    load_it = {module for module in modules() if {name.partition(".")[0] for name in loaded_at_import(module)} & {package}}
    assert {room(module) for module in load_it} <= allowed, load_it
    assert not load_it & {"cpstream_service.sources.read", "cpstream_service.sources"}


@pytest.mark.parametrize("name", PICTURES)
def test_the_page_shows_the_pictures(name: str) -> None:
    assert f"<!-- drawn: {name} -->\n```mermaid\n" in PAGE.read_text()


def test_the_pictures_are_what_the_code_is() -> None:
    assert PAGE.read_text() == drawn(PAGE.read_text()), "draw them anew: python tools/rooms.py --write"
