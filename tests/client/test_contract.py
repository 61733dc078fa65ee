"""What both sides agree on: what a JSON reply must be for the client to believe it, what is never sent, and the token."""

import json
import math
from pathlib import Path

import pytest
from conftest import serving
from pydantic import ValidationError

from cpstream_client import Client, CorruptedError, CpsStats, SplitInfo
from cpstream_client.contract import wire
from cpstream_client.contract.bodies import Problem, Sample

INFO = {
    "split": "train",
    "num_samples": 3,
    "embedding_dim": 2,
    "dtype": "float32",
    "fingerprint": "f",
    "cps": {"min": 1, "max": 2, "mean": 1.5, "std": 0.5},
    "source": "npy",
    "num_embeddings": 3,
    "num_cps": 3,
    "num_dropped": 0,
    "dropped": {},
}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (INFO | {"num_samples": "300"}, "num_samples is '300': input should be a valid integer"),
        (INFO | {"num_samples": -1}, "num_samples is -1: input should be greater than or equal to 0"),
        (INFO | {"embedding_dim": 2.5}, "embedding_dim is 2.5"),
        (INFO | {"cps": {"min": 1, "max": 2, "mean": math.nan, "std": 0}}, "cps.mean is nan: input should be a finite number"),
        (INFO | {"cps": {"min": 1, "max": 2, "std": 0}}, "cps.mean is missing"),
        (INFO | {"split": None, "source": None}, "split is None: input should be a valid string, and 1 more like it"),
        (INFO | {"dropped": ["x" * 1000]}, "dropped is .{80}: input should be"),
        ([INFO], r"it is \[\{'split'"),
    ],
)
def test_a_reply_of_another_form_is_refused_by_the_name_of_its_member(body: object, says: str) -> None:
    sent, asked = json.dumps(body).encode(), 0

    async def malformed(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        nonlocal asked
        if scope["type"] == "lifespan":
            return
        asked += 1
        headers = {"Content-Type": wire.JSON, wire.DIGEST_HEADER: wire.content_digest(sent), wire.LOCATION_HEADER: scope["path"]}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})
        await send({"type": "http.response.body", "body": sent})

    said = f"/v1/splits/train: .*no SplitInfo.*{says}.*as new as the service"
    with serving(malformed) as url, Client(url) as client, pytest.raises(CorruptedError, match=said):
        client.split("train")
    assert asked == 2, "asking on cannot help"


def test_members_of_a_newer_service_are_passed_over() -> None:
    newer = INFO | {"language": "en", "cps": {**INFO["cps"], "median": 1.5}}  # type: ignore[dict-item]
    assert SplitInfo.model_validate_json(json.dumps(newer)) == SplitInfo.model_validate(INFO)


def test_a_number_that_json_has_not_is_never_sent() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValidationError, match="finite"):
            CpsStats(min=1, max=value, mean=1, std=0)
        with pytest.raises(ValidationError, match="finite"):
            Sample(embedding=(1.0, value))


def test_what_was_not_asked_for_is_left_out_and_further_members_of_a_problem_stay() -> None:
    assert Sample(index=0, cps=2.5).model_dump_json() == '{"index":0,"cps":2.5}'
    members = {"type": "t", "title": "t", "status": 409, "detail": "d", "instance": "/", "code": "c", "request_id": "r"}
    problem = Problem.model_validate({**members, "expected": "a", "actual": "b"})
    assert problem.extra == {"expected": "a", "actual": "b"}
    assert list(json.loads(problem.model_dump_json())) == [*members, "expected", "actual"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n", "is empty"),
        (b"two\nlines", "line break"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 20_000, "longer than 16384 bytes"),
        (None, "No such file"),
    ],
)
def test_a_token_file_that_holds_no_token_is_said_at_once(
    content: bytes | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.delenv("CPSTREAM_TOKEN", raising=False)
    monkeypatch.setenv("CPSTREAM_TOKEN_FILE", str(path))
    with pytest.raises(ValueError, match=f"^CPSTREAM_TOKEN_FILE is '{path}'.*{says}"):
        Client("http://data:8000")
