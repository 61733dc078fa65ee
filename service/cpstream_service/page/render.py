"""Templates to bytes: one Jinja2 environment, made when the first page is asked for, and the filters that all pages share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..text import plain, shortened

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

NOTHING = "–"
"""Shown for a figure that cannot be had."""
_MINUS = "\N{MINUS SIGN}"
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Frame:
    """What every page shows around its content.

    root: what leads from the page to the address of the service, "" or "../" some times, as a proxy may put that under a path.
    assets: folder of the static files, relative to the root; plotly, plotly_styles: as assets.py has them.
    fingerprint: of the current data, None while there is none. here: the path, for the navigation; token: name of the one that the
    request came with, or ""; has_cookie: whether a browser's cookie showed it, which the page then offers to give up.
    """

    root: str
    assets: str
    plotly: str
    plotly_styles: str
    splits: tuple[str, ...] = ()
    fingerprint: str | None = None
    software: str = ""
    here: str = ""
    token: str = ""
    has_cookie: bool = False


def render(template: str, frame: Frame, **content: Any) -> bytes:
    """The page. content: the template's variables; one that it uses and that is not given is an error."""
    text: str = _environment().get_template(template).render(frame=frame, **content)
    return text.encode("utf-8", "backslashreplace")


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here: a service that nobody looks at needs none of it

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(FILTERS)
    return environment


# Filters


def shown(text: str, width: int = 0) -> str:
    """Text of others: what would not be seen, or would turn the text around, as escapes; in at most `width` characters."""
    escaped = plain(text)
    return shortened(escaped, width) if width else escaped


def path(text: str, width: int = 0) -> "Markup":
    """The same of a path, which may be broken behind each folder."""
    from markupsafe import Markup, escape

    return escape(shown(text, width)).replace("/", Markup("/<wbr>"))


def number(value: float | None, digits: int | None = None) -> str:
    """A number for people: 12,345 of a whole one, three figures of others, or so many digits behind the point."""
    if value is None:
        return NOTHING
    text = _digits(abs(value), digits)
    return f"{_MINUS}{text}" if value < 0 and text.strip("0.") else text


def signed(value: float | None, digits: int) -> str:
    """A difference for people, its sign always said; of none, no sign."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def _digits(size: float, digits: int | None) -> str:
    if digits is not None:
        return f"{size:,.{digits}f}"
    if isinstance(size, int) or size == 0:
        return f"{int(size):,}"
    if size < 1e-3 or size >= 1e6:
        return f"{size:.2e}"
    return f"{size:,.{max(0, 2 - _magnitude(size))}f}"


def _magnitude(size: float) -> int:
    """Digits before the point, less one: 0 of 1 to 10, -1 of 0.1 to 1, as the number is shown in three figures."""
    return int(f"{size:.2e}".partition("e")[2])


def percent(share: float | None) -> str:
    """A share for people. What is more than none, and less than all, is never shown as these."""
    if share is None:
        return NOTHING
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def size(nbytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def moment(text: str | None) -> str:
    """A time of ours, as ISO 8601 has it, for people."""
    if text is None:
        return NOTHING
    return f"{datetime.fromisoformat(text).astimezone(UTC):%-d %B %Y, %H:%M} UTC"


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="", errors="replace")


def counted(count: int, noun: str) -> str:
    """`1 recording`, `1,200 recordings`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


FILTERS: Mapping[str, Callable[..., str]] = {
    "shown": shown,
    "path": path,
    "number": number,
    "signed": signed,
    "percent": percent,
    "size": size,
    "moment": moment,
    "segment": segment,
    "counted": counted,
}
