"""Replies in JSON: for people, audits and small numbers of samples."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cpstream_client.contract.bodies import Sample
from cpstream_client.contract.plan import Indices
from cpstream_client.contract.wire import COLUMNS, DIGEST_HEADER, JSON, LOCATION_HEADER, Column, Dtype, content_digest

from ..batches.paths import paths_at
from ..errors import InvalidParameter, PayloadTooLarge
from ..snapshot.store import Split
from .negotiation import target_of


def samples_of(split: Split, indices: Indices, columns: Sequence[Column], dtype: Dtype = "float32") -> tuple[Sample, ...]:
    """The samples at `indices` (B,) int64, in that order, with these columns. Raises InvalidParameter where float16 overflows."""
    split.check_columns(columns)
    values: dict[str, list[object]] = {}
    if "index" in columns:
        values["index"] = indices.tolist()
    if "file_path" in columns:
        values["file_path"] = paths_at(split.file_paths, indices).to_pylist()
    if "cps" in columns:
        values["cps"] = split.cps[indices].tolist()
    further = [name for name in columns if name not in COLUMNS]
    if "embedding" in columns:
        with np.errstate(over="ignore"):
            embeddings = split.embeddings[indices].astype(dtype)  # (B, D)
        if not np.isfinite(embeddings).all():
            raise InvalidParameter("dtype float16 cannot hold these embeddings: some exceed 65504; ask for float32")
        values["embedding"] = embeddings.tolist()
    if further:
        found = zip(*(split.labels[name][indices].tolist() for name in further), strict=True)
        values["labels"] = [
            {name: value if value == value else None for name, value in zip(further, row, strict=True)} for row in found
        ]
    return tuple(Sample.model_validate(dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True))


def check_json_rows(num_rows: int, max_rows: int, remedy: str) -> None:
    """Raises PayloadTooLarge when a JSON reply would hold more samples than allowed."""
    if num_rows > max_rows:
        raise PayloadTooLarge(f"the reply would hold {num_rows} samples, and JSON at most {max_rows} (max_json_rows); {remedy}")


class ReadableJson(Response):
    """A JSON text with its digest and, where it succeeds, the request that it answers. For metadata: a member a line."""

    media_type = JSON

    def render(self, content: Any) -> bytes:
        plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
        return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD":  # which sends no body
            self.headers[DIGEST_HEADER] = content_digest(bytes(self.body))
        if self.status_code == 200:
            self.headers[LOCATION_HEADER] = target_of(scope)
        await super().__call__(scope, receive, send)


class CompactJson(ReadableJson):
    """For samples, where an indent would put each number of an embedding on a line of its own, and for what programs read."""

    def render(self, content: Any) -> bytes:
        if isinstance(content, BaseModel):
            text: str = content.model_dump_json()
        else:
            text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"
