"""The rooms of both packages and what they import, read from the code without running it.

    python tools/rooms.py            print each room with its floor and the rooms that it imports
    python tools/rooms.py --write    draw both pictures of docs/architecture.md anew

A room is a folder of a package, or a file beside the folders. tests/guarantees/test_layers.py holds the ladder.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
CLIENT, SERVICE = "cpstream_client", "cpstream_service"

# From the ground up: a room imports only from rooms that stand before it.
LADDER = (
    "cpstream_client.contract",
    "cpstream_client.buffers",
    "cpstream_client.files",
    "cpstream_client.cgroups",
    "cpstream_client.cpus",
    "cpstream_client.locks",
    "cpstream_client.errors",
    "cpstream_client.transport",
    "cpstream_client.stream",
    "cpstream_client.progress",
    "cpstream_client.frames",
    "cpstream_client.tables",
    "cpstream_client.published",
    "cpstream_client.client",
    "cpstream_client.diagnosis",
    "cpstream_client",
    "cpstream_client.epochs",
    "cpstream_client.torch",
    "cpstream_service",
    "cpstream_service.text",
    "cpstream_service.arrow",
    "cpstream_service.errors",
    "cpstream_service.orphans",
    "cpstream_service.progress",
    "cpstream_service.setting_errors",
    "cpstream_service.tokens",
    "cpstream_service.tls",
    "cpstream_service.settings",
    "cpstream_service.sources",
    "cpstream_service.align",
    "cpstream_service.dataset",
    "cpstream_service.snapshot",
    "cpstream_service.logs",
    "cpstream_service.versions",
    "cpstream_service.batches",
    "cpstream_service.statistics",
    "cpstream_service.page",
    "cpstream_service.api",
    "cpstream_service.proxy_protocol",
    "cpstream_service.stalls",
    "cpstream_service.upgrades",
    "cpstream_service.crowd",
    "cpstream_service.accepting",
    "cpstream_service.connections",
    "cpstream_service.hangup",
    "cpstream_service.credentials",
    "cpstream_service.supervisor",
    "cpstream_service.app",
    "cpstream_service.serve",
    "cpstream_service.cli",
    "cpstream_service.__main__",
)

# What samples pass on their way from a source to a training loop: the file, what it makes of them, and where it takes them from.
WAY = (
    ("cpstream_service.sources.read", "rows of embeddings", ()),
    ("cpstream_service.sources.cps_table", "rows of rates", ()),
    ("cpstream_service.align.align", "each embedding with its rate, or a reason why not", ("sources.read", "sources.cps_table")),
    ("cpstream_service.snapshot.store", "arrays on disk, mapped by every worker", ("align.align",)),
    ("cpstream_client.contract.plan", "which samples, in which order", ()),
    ("cpstream_service.batches.gather", "record batches of an Arrow stream", ("snapshot.store", "contract.plan")),
    ("cpstream_service.api.routes.batches", "an HTTP reply", ("batches.gather",)),
    ("cpstream_client.transport.connection", "bytes, asked for again after any fault", ("api.routes.batches",)),
    ("cpstream_client.stream.messages", "messages, their checksums verified", ("transport.connection",)),
    ("cpstream_client.stream.reader", "batches, numpy or Arrow, without a copy", ("stream.messages",)),
    ("cpstream_client.epochs.epochs", "an epoch, fetched ahead or from a cache", ("stream.reader",)),
    ("cpstream_client.torch.streaming", "tensors", ("epochs.epochs",)),
)


@dataclass(frozen=True)
class Import:
    """One module imports another, of the packages or not. at_import: when it is itself imported, not when a function runs."""

    importer: str
    imported: str
    at_import: bool


@cache
def modules() -> dict[str, Path]:
    """The file of each module of both packages, by the module's full name."""
    found = {}
    for package, folder in ((CLIENT, ROOT / "client"), (SERVICE, ROOT / "service")):
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> set[Import]:
    """All imports of all modules; those for the type checker alone, too, since a reader follows them all the same."""
    files = modules()
    return {found for module, path in files.items() for found in _imports_of(module, path, files)}


def _imports_of(module: str, path: Path, files: dict[str, Path]) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    later = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_for_the_type_checker(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" if f"{source}.{alias.name}" in files else source for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(module, name, at_import=node not in later)


def _is_for_the_type_checker(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in (CLIENT, SERVICE)


def room(module: str) -> str:
    """The first folder or file below the package."""
    return ".".join(module.split(".")[:2])


def rooms() -> dict[str, set[str]]:
    """The other rooms that each room imports."""
    found: dict[str, set[str]] = {room(module): set() for module in modules()}
    for step in imports():
        if is_ours(step.imported) and room(step.importer) != room(step.imported):
            found[room(step.importer)].add(room(step.imported))
    return found


def loaded_at_import(module: str) -> set[str]:
    """Every module, of the packages or not, that importing this one imports: by itself, its packages, or what these import."""
    found, waiting = set(), [module]
    steps = [step for step in imports() if step.at_import]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [step.imported for step in steps if step.importer == name]
        if is_ours(name) and "." in name:
            waiting.append(name.rpartition(".")[0])
    return found


def rooms_picture() -> str:
    """The rooms as Mermaid. An arrow leads to what is imported; left out are those that other arrows imply."""
    imported = rooms()
    lines = ["flowchart BT"]
    for package, title in ((CLIENT, "client"), (SERVICE, "service")):
        lines.append(f'    subgraph {package}["{title}/{package}"]')
        lines += [
            f'        {_node(name)}["{_label(name)}"]' for name in LADDER if name.startswith(f"{package}.") and name in imported
        ]
        lines.append("    end")
    for name in LADDER:
        for other in sorted(imported.get(name, ()), key=LADDER.index):
            implied = any(other in _reachable(between, imported) for between in imported[name] - {other})
            if not implied and "." in name and "." in other:
                lines.append(f"    {_node(name)} --> {_node(other)}")
    return "\n".join(lines)


def way_picture() -> str:
    """The way of the data as Mermaid. Raises KeyError where a file has moved."""
    files = {module.partition(".")[2]: path.relative_to(ROOT) for module, path in modules().items()}
    lines = ["flowchart TB"]
    for module, made, _ in WAY:
        path = files[module.partition(".")[2]]
        lines.append(f'    {_node(module)}["{path.parts[0]}: {"/".join(path.parts[2:])}<br>{made}"]')
    nodes = {module.partition(".")[2]: _node(module) for module, _, _ in WAY}
    lines += [f"    {nodes[other]} --> {_node(module)}" for module, _, sources in WAY for other in sources]
    return "\n".join(lines)


def _reachable(name: str, imported: dict[str, set[str]]) -> set[str]:
    found, waiting = set(), [name]
    while waiting:
        new = imported[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _node(module: str) -> str:
    return module.replace("cpstream_", "").replace("__", "").replace(".", "_")


def _label(name: str) -> str:
    path = modules()[name]
    return f"{path.parent.name}/" if path.name == "__init__.py" else path.name


PICTURES = {"the way of the data": way_picture, "the rooms": rooms_picture}


def drawn(page: str) -> str:
    """The page with each picture that `<!-- drawn: NAME -->` announces as the code has it now."""
    return re.sub(
        r"<!-- drawn: ([\w ]+) -->\n```mermaid\n.*?```",
        lambda found: f"<!-- drawn: {found[1]} -->\n```mermaid\n{PICTURES[found[1]]()}\n```",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    if "--write" in sys.argv[1:]:
        PAGE.write_text(drawn(PAGE.read_text()))
        return
    imported = rooms()
    for floor, name in enumerate(LADDER):
        print(f"{floor:2} {name:26} -> {', '.join(sorted(imported.get(name, ()), key=LADDER.index))}")


if __name__ == "__main__":
    main()
