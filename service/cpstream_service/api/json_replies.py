"""Samples in JSON: for people, audits and small replies."""

import json
from collections.abc import Sequence

import numpy as np
from starlette.responses import JSONResponse

from cpstream_client.contract.bodies import Body, Sample
from cpstream_client.contract.plan import Indices
from cpstream_client.contract.wire import Column, Dtype

from ..errors import InvalidParameter, PayloadTooLarge
from ..snapshot.store import Split


def samples_of(split: Split, indices: Indices, columns: Sequence[Column], dtype: Dtype = "float32") -> tuple[Sample, ...]:
    """The samples at `indices` (B,) int64, in that order, with these columns. Raises InvalidParameter where float16 overflows."""
    values: dict[str, list[object]] = {}
    if "index" in columns:
        values["index"] = indices.tolist()
    if "file_path" in columns:
        values["file_path"] = split.file_paths.take(indices).to_pylist()
    if "cps" in columns:
        values["cps"] = split.cps[indices].tolist()
    if "embedding" in columns:
        with np.errstate(over="ignore"):
            embeddings = split.embeddings[indices].astype(dtype)  # (B, D)
        if not np.isfinite(embeddings).all():
            raise InvalidParameter("dtype float16 cannot hold these embeddings: some exceed 65504; ask for float32")
        values["embedding"] = embeddings.tolist()
    return tuple(Sample.model_validate(dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True))


def check_json_rows(num_rows: int, max_rows: int, remedy: str) -> None:
    """Raises PayloadTooLarge when a JSON reply would hold more samples than allowed."""
    if num_rows > max_rows:
        raise PayloadTooLarge(f"the reply would hold {num_rows} samples, and JSON at most {max_rows} (max_json_rows); {remedy}")


class ReadableJson(JSONResponse):
    """For metadata: a handful of members."""

    def render(self, content: Body) -> bytes:
        return (json.dumps(content.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


class CompactJson(JSONResponse):
    """For samples: an indent would put each number of an embedding on a line of its own."""

    def render(self, content: Body) -> bytes:
        return content.model_dump_json().encode() + b"\n"
