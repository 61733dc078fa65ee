"""What a token may have: streams, bytes a second, turns; counted by a clock of the test and in bytes, never in seconds."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import grown, poll, serving, stalled_stream
from hypothesis import given
from hypothesis import strategies as st
from test_clients import client_at
from test_problems import problem_of

from cpstream_client import Client
from cpstream_service.api.allowance import SAVED_S, Allowance
from cpstream_service.app import create_app
from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot
from cpstream_service.tokens import read_tokens

TOKENS = """
[free]
token = "fr33"

[few]
token = "f3w"
max_streams = 2

[slow]
token = "sl0w"
max_bytes_per_s = 1_000_000
"""
BATCHES = "/v1/splits/train/batches"


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


@pytest.fixture(scope="module")
def url(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(TOKENS)
    app = create_app(grown(snapshot, "train", 30_000), ServeSettings(tokens_file=path, max_streams_per_client=3))
    with serving(app) as url:
        yield url


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 10_000_000)), min_size=1, max_size=50), st.integers(1_000_000, 10**8))
def test_no_more_than_is_allowed_goes_out(chunks: list[tuple[float, int]], rate: int) -> None:
    """In any stretch of time that begins with a chunk: what the rate gives, what was saved, and the chunk itself."""
    allowance, now_s, sent = Allowance(), 0.0, list[tuple[float, int]]()
    for pause_s, nbytes in chunks:
        now_s += pause_s
        sent.append((now_s + allowance.delay_s(nbytes, rate, now_s), nbytes))
    for first, (begin_s, _) in enumerate(sent):
        total = 0
        for at_s, nbytes in sent[first:]:
            assert total <= rate * (at_s - begin_s + SAVED_S) * 1.000001 + 1
            total += nbytes


def test_a_trainer_of_a_limited_token_reads_all_of_it(url: str, snapshot: Snapshot) -> None:
    rows, dim = 6_000, snapshot.splits["train"].embeddings.shape[1]
    assert rows * dim * 4 > 3_500_000  # more than is saved, twice where the machine stands still, and is ahead
    with httpx.Client(base_url=url, headers=bearer("sl0w")) as http, Client(url, token="sl0w") as trainer:
        take = f"{BATCHES}?batch_size=256&columns=index,embedding&limit={rows // 256}"
        with http.stream("GET", take) as stream:
            pieces = stream.iter_raw()
            body = next(pieces)
            refused = httpx.get(f"{url}/v1/splits/train", headers=bearer("sl0w"))
            while refused.status_code != 429:
                body += next(pieces)
                refused = httpx.get(f"{url}/v1/splits/train", headers=bearer("sl0w"))
            assert problem_of(refused)["code"] == "too-many-bytes"
            assert "token slow is being sent as much as it may (1000000 bytes a second); ask again in" in refused.json()["detail"]
            assert int(refused.headers["retry-after"]) >= 1
            assert httpx.get(f"{url}/v1/splits/train", headers=bearer("fr33")).status_code == 200
            assert httpx.get(f"{url}/livez", headers=bearer("sl0w")).status_code == 200
            body += b"".join(pieces)
        assert len(body) == int(stream.headers["content-length"])
        got = [batch.index for batch in trainer.batches("dev", batch_size=64)]  # waits for as long as it is told to
        assert np.array_equal(np.concatenate(got), np.arange(300))


def test_a_token_is_one_client_wherever_it_comes_from(url: str) -> None:
    with client_at(url, "127.0.0.2") as other:

        def status(value: str) -> int:
            return other.get(f"{BATCHES}?limit=1", headers=bearer(value)).status_code

        few, free = (f"Authorization: Bearer {value}\r\n" for value in ("f3w", "fr33"))
        with stalled_stream(url, BATCHES, headers=few), stalled_stream(url, BATCHES, "127.0.0.3", headers=few):
            poll(lambda: status("f3w") == 429)
            refused = other.get(f"{BATCHES}?limit=1", headers=bearer("f3w")).json()["detail"]
            assert (
                refused
                == "2 streams of token few are open, as many as it may have (max_streams); close some, or ask again in a second"
            )
            assert status("fr33") == 200
            with stalled_stream(url, BATCHES, headers=free), stalled_stream(url, BATCHES, headers=free):
                assert status("fr33") == 200
                with stalled_stream(url, BATCHES, "127.0.0.4", headers=free):
                    poll(lambda: status("fr33") == 429)
        poll(lambda: status("f3w") == 200)


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("max_streams = 0", "[a] in line 1 has a max_streams that is no whole number, 1 or more"),
        ("max_streams = true", "has a max_streams that is no whole number"),
        ("max_bytes_per_s = 1e9", "has a max_bytes_per_s that is no whole number, 1000000 or more"),
        ("max_bytes_per_s = 999_999", "has a max_bytes_per_s that is no whole number, 1000000 or more"),
        ('max_bytes_per_s = "100M"', "has a max_bytes_per_s that is no whole number"),
    ],
)
def test_a_wrong_limit_is_refused(tmp_path: Path, limit: str, says: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[a]\ntoken = "s3cr3t"\n{limit}\n')
    with pytest.raises(SettingsError) as caught:
        ServeSettings(tokens_file=path)
    assert says in str(caught.value)


def test_limits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS)
    assert {token.name: (token.max_streams, token.max_bytes_per_s) for token in read_tokens(path)} == {
        "free": (None, None),
        "few": (2, None),
        "slow": (None, 1_000_000),
    }
