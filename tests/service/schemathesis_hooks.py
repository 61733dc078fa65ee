"""Further checks of schemathesis, of what the description says and of what it cannot say."""

import re
from typing import Any

import schemathesis

from cpstream_client.contract.wire import ARROW_FILE, ARROW_STREAM, CSV, OCTET_STREAM, PARQUET, PROBLEM_JSON

OF_EVERY_REPLY = {"date", "server", "content-type", "content-length", "connection", "transfer-encoding"}
OF_ONE_REPRESENTATION = {"content-digest", "content-location", "cache-control", "content-disposition"}
"""Headers of a JSON body, of an Arrow stream or of a table, where there are several."""
RAW = {OCTET_STREAM, CSV, PARQUET, ARROW_STREAM, ARROW_FILE}
OF_THE_DATA = {
    "unknown-split",
    "dataset-changed",
    "index-out-of-range",
    "range-not-satisfiable",
    "payload-too-large",
    "not-found",
    "unauthorized",
    "forbidden",
    "not-acceptable",
}
"""Refusals of what is well formed, since this service does not hold that much, or another thing."""
RELATIONS = re.compile(
    r"(rank|worker|start|step|length) is -?\d+; it must be "  # from 0 to what another parameter, or the split's size, leaves
    r"|is \d+\.0; it must be a whole number"  # JSON Schema takes 1.0 for an integer
    r"|float16 cannot hold"
    r"|min_cps is .*, above max_cps"
    r"|embedding is true, and CSV"
    r"|give either index or file_path"
)
"""Of parameters to each other and to the split, which no description of one parameter can say."""


@schemathesis.check
def refused_for_what_is_held(_: Any, response: Any, case: Any) -> None:
    """In place of positive_data_acceptance, which would have to accept any 422: what is valid is refused for what is held.

    Raw bodies are left out: "format: binary" can say neither that they are of 8 bytes a number, nor what a table holds.
    """
    mode = getattr(getattr(case.meta, "generation", None), "mode", None)
    if mode is None or not mode.is_positive or response.status_code < 400 or case.media_type in RAW:
        return
    problem = response.json()
    if problem["code"] not in OF_THE_DATA and not RELATIONS.search(problem["detail"]):
        raise AssertionError(f"valid data was refused: {response.status_code} {problem['code']}: {problem['detail']}")


@schemathesis.check
def headers_are_those_described(_: Any, response: Any, case: Any) -> None:
    described = case.operation.schema.raw_schema
    operation = described["paths"][case.operation.path].get(case.method.lower())
    reply = (operation or {}).get("responses", {}).get(str(response.status_code))
    if reply is None:  # another method: status_code_conformance and unsupported_method look at that
        return
    if "$ref" in reply:
        reply = described["components"]["responses"][reply["$ref"].rpartition("/")[2]]
    wanted = {name.lower() for name in reply["headers"]}
    sent = {name.lower() for name in response.headers} - OF_EVERY_REPLY
    missing = wanted - sent - (OF_ONE_REPRESENTATION if len(reply.get("content", ())) > 1 else set())
    if sent - wanted or missing:
        raise AssertionError(f"sent and not described: {sent - wanted}; described and not sent: {missing}")


@schemathesis.check
def every_refusal_is_a_problem(_: Any, response: Any, case: Any) -> None:
    if response.status_code >= 400 and case.method != "HEAD":
        (media_type, *_) = response.headers["content-type"]
        assert media_type == PROBLEM_JSON, media_type
        assert response.json()["status"] == response.status_code
