"""The table of a split's rows: searched, sorted and paged by its address alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from cpstream_client.contract.bodies import Rows

from ..pinned import Pin
from ..render import Frame, render

PAGE_ROWS = 50
_NARROWING = ("q", "min_cps", "max_cps")
QUERY = (*_NARROWING, "sort", "descending", "offset", "fingerprint")
_DEFAULTS = {"sort": "index", "descending": "false", "offset": "0"}


@dataclass(frozen=True)
class Column:
    """A column by which the table can be sorted. order: as aria-sort has it, "" where rows are sorted by another one.

    query: of the page that is sorted by it.
    """

    name: str
    title: str
    order: str
    query: str


@dataclass(frozen=True)
class Pager:
    """Which rows are shown, from 1 on, of how many; and the queries of the pages beside them, None where there is none."""

    first: int
    last: int
    of: int
    back: str | None
    on: str | None


def page(
    frame: Frame, split: str, pin: Pin, total: int, labels: tuple[str, ...], query: Mapping[str, str], found: Rows | str
) -> bytes:
    """query: as it was asked for. found: the rows, or what is wrong with the query. total: samples of the split."""
    asked = {name: query[name] for name in QUERY if query.get(name)}
    rows = None if isinstance(found, str) else found
    return render(
        "rows.html",
        frame,
        split=split,
        pin=pin,
        total=total,
        labels=labels,
        asked={name: asked.get(name, "") for name in QUERY},
        columns=columns(asked, labels),
        rows=() if rows is None else rows.rows,
        fault=None if rows is not None else found,
        pager=None if rows is None else pager(asked, rows),
        is_narrowed=any(name in asked for name in _NARROWING),
        csv=_linked({name: value for name, value in asked.items() if name != "offset"}),
    )


def columns(asked: Mapping[str, str], labels: tuple[str, ...]) -> list[Column]:
    """Those of the table. A click sorts upwards; one on what is sorted so already, downwards."""
    titles = {"index": "Index", "file_path": "Recording", "cps": "CPS"} | {label: label for label in labels}
    by, descending = asked.get("sort", "index"), is_descending(asked)
    found = []
    for name, title in titles.items():
        order = "" if name != by else "descending" if descending else "ascending"
        changed = {**asked, "sort": name, "descending": "true" if order == "ascending" else "false", "offset": "0"}
        found.append(Column(name, title, order, _linked(changed)))
    return found


def is_descending(asked: Mapping[str, str]) -> bool:
    return asked.get("descending", "false").lower() == "true"


def pager(asked: Mapping[str, str], rows: Rows) -> Pager:
    of = rows.total if rows.matching is None else rows.matching
    offset, last = rows.offset, rows.offset + len(rows.rows)
    return Pager(
        first=offset + 1 if rows.rows else 0,
        last=last,
        of=of,
        back=_linked({**asked, "offset": str(max(offset - PAGE_ROWS, 0))}) if offset else None,
        on=_linked({**asked, "offset": str(last)}) if last < of else None,
    )


def _linked(query: Mapping[str, str]) -> str:
    """`?...`, without what is as it would be anyway."""
    return "?" + urlencode({name: query[name] for name in QUERY if name in query and query[name] != _DEFAULTS.get(name)})
