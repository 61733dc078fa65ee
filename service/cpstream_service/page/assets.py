"""Static files of the pages, ours and plotly's script, compressed once. Their addresses change with their content."""

import gzip
import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from blake3 import blake3

_FOLDER = Path(__file__).parent / "static"
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PLOTLY = "plotly.min.js"
_STYLE = re.compile(rb'getElementById\("([0-9a-f]{64})"\)')
_LEVEL = 6
"""Of gzip: 9 takes twice the time for a hundredth less of plotly's script."""


@dataclass(frozen=True, eq=False)
class Asset:
    """A file that is sent. etag: of the content, without quotes."""

    content: bytes
    gzipped: bytes
    media_type: str
    etag: str


def folder() -> str:
    """Where our own files lie, relative to the service's address."""
    return f"page/static/{_digest()}"


def plotly() -> str:
    """Where plotly's script lies; "" where it is not installed."""
    try:
        return f"page/static/plotly-{metadata.version('plotly')}/{_PLOTLY}"
    except metadata.PackageNotFoundError:
        return ""


def find(version: str, name: str) -> tuple[Asset, bool] | None:
    """The file of this name, and whether it is of this version, so that it may be kept for ever; None where there is none.

    Reads, and compresses, when first asked: not for the event loop.
    """
    if name == _PLOTLY:
        script = _script()
        return None if script is None else (script, f"page/static/{version}/{name}" == plotly())
    asset = _own().get(name)
    return None if asset is None else (asset, version == _digest())


@cache
def _digest() -> str:
    """Of all our files together, since scripts import each other by name."""
    of_all = blake3()
    for name, path in sorted((path.name, path) for path in _FOLDER.iterdir()):
        of_all.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return of_all.hexdigest()[:16]


@cache
def _own() -> dict[str, Asset]:
    found = {}
    for path in _FOLDER.iterdir():
        content = path.read_bytes()
        found[path.name] = _asset(content, gzip.compress(content, _LEVEL, mtime=0), path.suffix)
    return found


@cache
def plotly_styles() -> str:
    """Ids of the style elements that plotly's script adds, those of maps, unless there are such: the policy forbids them."""
    found = _plotly()
    return "" if found is None else " ".join(sorted({name.decode() for name in _STYLE.findall(found[0])}))


@cache
def _script() -> Asset | None:
    found = _plotly()
    if found is None:
        return None
    content, gzipped = found
    return _asset(content, gzipped or gzip.compress(content, _LEVEL, mtime=0), Path(_PLOTLY).suffix)


def _plotly() -> tuple[bytes, bytes] | None:
    """Plotly's script, and the same compressed where it is kept so, as in the image.

    Found without importing its package, which would take a second.
    """
    try:
        path = Path(str(metadata.distribution("plotly").locate_file(f"plotly/package_data/{_PLOTLY}")))
    except metadata.PackageNotFoundError:
        return None
    compressed = path.with_name(f"{path.name}.gz")
    if compressed.exists():
        gzipped = compressed.read_bytes()
        return gzip.decompress(gzipped), gzipped
    return path.read_bytes(), b""


def _asset(content: bytes, gzipped: bytes, suffix: str) -> Asset:
    return Asset(content, gzipped, _MEDIA_TYPES[suffix], blake3(content).hexdigest()[:32])
