"""What two versions of a split differ in: counts and examples, or the whole list as a table."""

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import Response

from cpstream_client.contract import wire
from cpstream_client.contract.versions import SplitDifference
from cpstream_client.contract.wire import ErrorCode

from ...batches.paths import paths_at
from ...snapshot.difference import Difference
from ...snapshot.store import Split
from ...text import harmless
from ..csv_replies import TableReply
from ..description import CACHED, CURRENT, OF_JSON, named, problem_replies
from ..files import attachment
from ..json_replies import ReadableJson
from ..negotiation import caching, etag_of, not_modified, preferred, target_of
from ..parameters import DifferenceParameters
from ..state import CurrentService, Service
from .common import COMMON, SplitName, v1_router

MAX_EXAMPLES = 5
_ROWS = 2048
_COLUMNS = ("change", "file_path", "what", "old_index", "new_index", "old_cps", "new_cps")
_NDJSON = "application/x-ndjson"
_OFFERS = (wire.JSON, wire.CSV, _NDJSON)

router = v1_router()


@router.get(
    "/splits/{split:name}/diff",
    tags=["splits"],
    summary="What changed between two versions",
    responses={
        200: {
            "model": SplitDifference,
            "content": {wire.CSV: {}, _NDJSON: {}},
            **named(*CACHED, *OF_JSON, "Content-Disposition"),
        },
        304: CURRENT | named(*CACHED),
        **problem_replies(*COMMON, ErrorCode.NOT_ACCEPTABLE, ErrorCode.TOO_MANY_STREAMS, ErrorCode.OVERLOADED),
    },
)
async def diff(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[DifferenceParameters, Query()]
) -> Response:
    """Recordings that were added, removed or changed (embedding, rate or label, to the bit) between two versions that are held.

    Counts and the first examples; with `Accept: text/csv` or `application/x-ndjson` the whole list. Both versions are read whole
    when they are first compared.
    """
    return await difference_reply(request, service, split, parameters, preferred(request, _OFFERS))


async def difference_reply(
    request: Request, service: Service, split: str, parameters: DifferenceParameters, media_type: str
) -> Response:
    """In the form that is wanted. Raises as Versions.split, and Overloaded."""
    old, new = service.split(split, parameters.from_), service.split(split, parameters.to)
    etag = etag_of(old.fingerprint, media_type, {"path": target_of(request.scope), "to": new.fingerprint})
    reply = not_modified(request, etag)
    if reply is not None:
        return reply
    found = await to_thread.run_sync(service.differences.of, old, new)
    headers = {"ETag": etag, **caching(request)}
    if media_type == wire.JSON:
        return ReadableJson(difference_of(old, new, found), headers=headers)
    is_csv = media_type == wire.CSV
    headers["Content-Disposition"] = attachment(f"{split}-diff.{'csv' if is_csv else 'ndjson'}")
    written = _csv if is_csv else _ndjson
    pieces = _pieces(partial(written, old, new, found), found)
    return TableReply(service.batch_server, pieces, headers, request.scope["state"]["client"], media_type)


def difference_of(old: Split, new: Split, found: Difference) -> SplitDifference:
    """Counts, and the first of each kind."""
    added = paths_at(new.file_paths, found.added[:MAX_EXAMPLES]).to_pylist()
    removed = paths_at(old.file_paths, found.removed[:MAX_EXAMPLES]).to_pylist()
    return SplitDifference.model_validate(
        {
            "split": new.name,
            "from": old.fingerprint,
            "to": new.fingerprint,
            "num_same": found.num_same,
            "num_added": len(found.added),
            "num_removed": len(found.removed),
            "num_changed": len(found.changed),
            "num_embeddings_changed": int(found.by_embedding.sum()),
            "num_rates_changed": int(found.by_rate.sum()),
            "num_labels_changed": int(found.by_label.sum()),
            "added": tuple(added),
            "removed": tuple(removed),
            "changed": tuple(
                {"file_path": path, "what": tuple(what.split("+")), "old_cps": old_cps, "new_cps": new_cps}
                for _, path, what, _, _, old_cps, new_cps in _changed(old, new, found, 0, MAX_EXAMPLES)
            ),
        }
    )


_Row = tuple[str, str, str, int | None, int | None, float | None, float | None]


def _rows(old: Split, new: Split, found: Difference, change: str, low: int) -> Iterator[_Row]:
    """_ROWS of one change at most, in the order of their indices."""
    high = low + _ROWS
    if change == "changed":
        yield from _changed(old, new, found, low, high)
        return
    split, indices = (new, found.added[low:high]) if change == "added" else (old, found.removed[low:high])
    for index, path, cps in zip(
        indices.tolist(), paths_at(split.file_paths, indices).to_pylist(), split.cps[indices].tolist(), strict=True
    ):
        at = (None, index, None, cps) if change == "added" else (index, None, cps, None)
        yield change, path, "", *at


def _changed(old: Split, new: Split, found: Difference, low: int, high: int) -> Iterator[_Row]:
    pairs = found.changed[low:high]
    names = ("embedding", found.by_embedding), ("rate", found.by_rate), ("label", found.by_label)
    for k, (i, j) in enumerate(pairs.tolist(), low):
        what = "+".join(name for name, mask in names if mask[k])
        yield "changed", new.file_paths[j].as_py(), what, i, j, float(old.cps[i]), float(new.cps[j])


def _pieces(written: "partial[bytes]", found: Difference) -> Iterator["partial[bytes]"]:
    """What makes each piece of the table, in a thread."""
    yield partial(written, "", 0)
    for change, count in (("added", len(found.added)), ("removed", len(found.removed)), ("changed", len(found.changed))):
        for low in range(0, count, _ROWS):
            yield partial(written, change, low)


def _csv(old: Split, new: Split, found: Difference, change: str, low: int) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    if not change:
        writer.writerow(_COLUMNS)
    else:
        for _, path, *rest in _rows(old, new, found, change, low):
            writer.writerow([change, harmless(path), *("" if cell is None else cell for cell in rest)])
    return text.getvalue().encode()


def _ndjson(old: Split, new: Split, found: Difference, change: str, low: int) -> bytes:
    if not change:
        return b""
    rows = (dict(zip(_COLUMNS, row, strict=True)) for row in _rows(old, new, found, change, low))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
