"""Predictions that came back: joined to their samples, judged as scikit-learn would, kept by name for every replica."""

import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from conftest import Server, serving

from cpstream_client import Client, InvalidRequestError, NotFoundError
from cpstream_client.contract import wire
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot, Split
from cpstream_service.statistics.predictions import store


@pytest.fixture
def served(run_server: Callable[..., Server], tmp_path: Path) -> Server:
    return run_server(state_dir=tmp_path / "state")


@pytest.fixture
def http(served: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{served.url}/v1/splits/dev") as client:
        yield client


@pytest.fixture
def dev(served: Server) -> Split:
    return served.snapshot.splits["dev"]


def frame(split: Split, seed: int = 0) -> pd.DataFrame:
    noise = np.random.default_rng(seed).normal(0.5, 2, len(split.cps))
    return pd.DataFrame(
        {
            "index": np.arange(len(split.cps)),
            "file_path": split.file_paths.to_pylist(),
            "predicted": split.cps.astype(np.float64) + noise,
        }
    )


def csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


def arrow_stream(table: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    with pa.ipc.new_stream(sink, arrow.schema) as writer:
        writer.write_table(arrow)
    return sink.getvalue()


def parquet(table: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    table.to_parquet(sink)
    return sink.getvalue()


def arrow_file(table: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    feather.write_feather(table, sink)  # compressed, as pandas' to_feather does it
    return sink.getvalue()


FORMS = {wire.CSV: csv, wire.PARQUET: parquet, wire.ARROW_STREAM: arrow_stream, wire.ARROW_FILE: arrow_file}


def put(http: httpx.Client, table: pd.DataFrame | bytes, name: str = "mlp", media_type: str = wire.CSV) -> httpx.Response:
    body = table if isinstance(table, bytes) else FORMS[media_type](table)
    return http.put(f"/predictions/{name}", content=body, headers={"Content-Type": media_type}, timeout=60)


def published(http: httpx.Client, *given: Any, **named: Any) -> dict[str, Any]:
    reply = put(http, *given, **named)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


@pytest.mark.parametrize(
    ("media_type", "key"), [*((form, "file_path") for form in FORMS), (wire.CSV, "index"), (wire.PARQUET, "index")]
)
def test_the_figures_are_those_of_the_rows(http: httpx.Client, dev: Split, media_type: str, key: str) -> None:
    table = frame(dev).sample(frac=1, random_state=1)  # in whatever order
    report = published(http, table[[key, "predicted"]], media_type=media_type)
    truth = dev.cps.astype(np.float64)
    missed = frame(dev)["predicted"].to_numpy() - truth
    assert (report["num_samples"], report["num_predicted"]) == (300, 300)
    assert report["errors"]["mae"] == pytest.approx(np.abs(missed).mean())
    assert report["errors"]["r2"] == pytest.approx(1 - (missed**2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert report["bias"] == pytest.approx(missed.mean())
    assert [report[kind]["count"] for kind in ("missing", "unknown", "conflicting", "not_finite")] == [0, 0, 0, 0]
    worst = int(np.abs(missed).argmax())
    assert report["worst"][0] == {
        "index": worst,
        "file_path": dev.file_paths[worst].as_py(),
        "cps": float(dev.cps[worst]),
        "predicted": pytest.approx(truth[worst] + missed[worst]),
    }
    assert http.get("/predictions/mlp").json() == report


def test_deciles_and_folders(http: httpx.Client, dev: Split) -> None:
    report = published(http, frame(dev))
    assert [decile["count"] for decile in report["deciles"]] == [30] * 10
    table = frame(dev).assign(missed=lambda rows: rows["predicted"] - dev.cps.astype(np.float64))
    of_each = table.assign(off=table["missed"].abs()).groupby(table["file_path"].map(os.path.dirname))
    expected = of_each.agg(mae=("off", "mean"), bias=("missed", "mean"), count=("off", "count")).sort_values("mae", ascending=False)
    assert report["num_folders"] == len(expected)
    assert [folder["folder"] for folder in report["folders"]] == list(expected.index)
    for folder in report["folders"]:
        row = expected.loc[folder["folder"]]
        assert (folder["count"], folder["mae"], folder["bias"]) == (
            row["count"],
            pytest.approx(row["mae"]),
            pytest.approx(row["bias"]),
        )


def test_what_does_not_match_is_counted_and_said(http: httpx.Client, dev: Split) -> None:
    table = frame(dev)[["file_path", "predicted"]]
    paths = table["file_path"]
    table.loc[5, "predicted"] = np.nan
    table = pd.concat(
        [
            table[table.index != 7],
            pd.DataFrame({"file_path": ["audio/nowhere.wav", "<script>alert(1)</script>"], "predicted": [1.0, 2.0]}),
            pd.DataFrame({"file_path": [paths[9]], "predicted": [99.0]}),  # another one for the same sample
            table[table.index == 11],  # the same one again
        ]
    )
    report = published(http, table)
    assert report["num_predicted"] == 300 - 3
    assert report["missing"] == {"count": 2, "examples": [paths[5], paths[7]]}
    assert report["unknown"] == {"count": 2, "examples": ["audio/nowhere.wav", "<script>alert(1)</script>"]}
    assert report["conflicting"] == {"count": 1, "examples": [paths[9]]}
    assert report["not_finite"] == {"count": 1, "examples": [paths[5]]}
    points = http.get("/predictions/mlp/points").json()
    assert len(points["index"]) == 297
    assert points["cps"] == [float(dev.cps[at]) for at in points["index"]]


def test_runs_side_by_side_and_deleted(http: httpx.Client, dev: Split) -> None:
    assert http.get("/predictions").json()["runs"] == []
    for seed, name in enumerate(["a", "B.2_x-", "c"]):
        table = frame(dev, seed)
        table["predicted"] += seed * 5
        published(http, table, name)
    runs = http.get("/predictions").json()["runs"]
    assert [run["name"] for run in runs] == ["a", "B.2_x-", "c"]
    assert runs[0]["errors"]["mae"] < runs[1]["errors"]["mae"] < runs[2]["errors"]["mae"]
    published(http, frame(dev, 7), "c")  # in its place
    assert len(http.get("/predictions").json()["runs"]) == 3
    assert http.delete("/predictions/a").status_code == 204
    assert (
        http.delete("/predictions/a").status_code
        == http.get("/predictions/a").status_code
        == http.get("/predictions/a/points").status_code
        == 404
    )
    assert {run["name"] for run in http.get("/predictions").json()["runs"]} == {"B.2_x-", "c"}


def test_another_replica_and_a_restart_have_them(served: Server, http: httpx.Client, dev: Split, tmp_path: Path) -> None:
    report = published(http, frame(dev))
    with serving(create_app(served.snapshot, ServeSettings(state_dir=tmp_path / "state"))) as url:
        assert httpx.get(f"{url}/v1/splits/dev/predictions/mlp").json() == report
        assert httpx.get(f"{url}/v1/splits/train/predictions/mlp").status_code == 404  # of another split


@pytest.mark.parametrize(
    ("body", "media_type", "said"),
    [
        (b"a,b\n1,2\n", wire.CSV, "the table has the columns 'a', 'b'; it needs a column 'predicted'"),
        (b"index,predicted\n", wire.CSV, "it has no rows"),
        (
            b"index,predicted\n1000,3\n",
            wire.CSV,
            "none of its 1 rows predicts a finite number for a sample of this split: '1000'",
        ),
        (b"index,predicted\n1,nan\n", wire.CSV, "none of its 1 rows"),
        (b"index,predicted\n1,fast\n", wire.CSV, "'predicted' is of string"),
        (b"index,predicted\n1.5,2\n", wire.CSV, "'index' is of double"),
        (b"index,index,predicted\n1,1,2\n", wire.CSV, "several columns 'index'"),
        (b"", wire.CSV, "the body is no text/csv"),
        (b"PAR1 or so", wire.PARQUET, "the body is no application/vnd.apache.parquet"),
        (b"\xff\xff\xff\xff\x10\x00\x00\x00", wire.ARROW_STREAM, "the body is no application/vnd.apache.arrow.stream"),
        (b"{}", wire.JSON, "Content-Type is application/json; it must be one of text/csv"),
    ],
)
def test_what_is_no_table_is_refused_in_a_line(http: httpx.Client, body: bytes, media_type: str, said: str) -> None:
    reply = put(http, body, media_type=media_type)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-parameter")
    assert said in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]
    assert http.get("/predictions").json()["runs"] == []


@pytest.mark.parametrize("name", ["a b", "ä", "x" * 65, "%2e%2e%2fx", "a%00"])
def test_names_that_are_none(http: httpx.Client, dev: Split, name: str) -> None:
    reply = put(http, frame(dev), name)
    assert (reply.status_code, reply.json()["code"]) in ((422, "invalid-parameter"), (404, "not-found"))


def test_dots_are_names_and_lead_nowhere(http: httpx.Client, dev: Split, tmp_path: Path) -> None:
    for name in ("...", ".hidden", "a.arrow"):
        published(http, frame(dev), name)
        assert http.get(f"/predictions/{name}").status_code == 200
    assert {path.name for path in tmp_path.joinpath("state").iterdir()} == {"predictions"}


def test_few_bytes_that_say_they_are_many(http: httpx.Client) -> None:
    """A path of 4,000 characters in each of 200,000 rows, which a dictionary holds once."""
    table = pa.table({"file_path": pa.array(["x" * 4000] * 200_000), "predicted": [1.0] * 200_000})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    assert len(sink.getvalue()) < 100_000
    refused = put(http, sink.getvalue(), media_type=wire.PARQUET)
    assert refused.status_code == 422
    assert "far more memory than bytes" in refused.json()["detail"]


def test_there_is_an_end_to_them(http: httpx.Client, dev: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_RUNS", 2)
    for name in ("a", "b", "a"):
        published(http, frame(dev), name)
    refused = put(http, frame(dev), "c")
    assert (refused.status_code, refused.json()["code"]) == (507, "state-full")
    assert "delete one of them first" in refused.json()["detail"]


def test_their_bytes_are_bounded(run_server: Callable[..., Server], tmp_path: Path) -> None:
    server = run_server(state_dir=tmp_path / "state", max_predictions_bytes=30_000)
    table = frame(server.snapshot.splits["dev"])
    with httpx.Client(base_url=f"{server.url}/v1/splits/dev") as http:
        published(http, table, "a")
        refused = next(reply for at in range(10) if (reply := put(http, table, f"b{at}")).status_code != 200)
        assert (refused.status_code, refused.json()["code"]) == (507, "state-full")
        assert "--max-predictions-bytes" in refused.json()["detail"]
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.arrow")) <= 30_000
        assert list(tmp_path.rglob(".writing-*")) == []
        published(http, table, "a")  # in its own place


def test_without_a_folder_they_are_refused(server: Server) -> None:
    for reply in (httpx.get(f"{server.url}/v1/splits/dev/predictions"), httpx.delete(f"{server.url}/v1/splits/dev/predictions/a")):
        assert (reply.status_code, reply.json()["code"]) == (501, "not-configured")
        assert "--state-dir" in reply.json()["detail"]


def test_a_full_disk_is_a_503_that_leaves_nothing(snapshot: Snapshot, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - 8192))
        with (
            serving(create_app(snapshot, ServeSettings(state_dir=disk))) as url,
            httpx.Client(base_url=f"{url}/v1/splits/dev") as http,
        ):
            refused = put(http, frame(snapshot.splits["dev"]))
            assert (refused.status_code, refused.json()["code"]) == (503, "storage-failed")
            filler.unlink()
            published(http, frame(snapshot.splits["dev"]))
            assert list(disk.rglob(".writing-*")) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_damaged_file_is_no_run(http: httpx.Client, dev: Split, tmp_path: Path) -> None:
    published(http, frame(dev))
    (path,) = tmp_path.rglob("mlp.arrow")
    path.write_bytes(path.read_bytes()[:100])
    assert http.get("/predictions").json()["runs"] == []
    assert http.get("/predictions/mlp").status_code == 404


class TestClient:
    def test_a_frame(self, served: Server, dev: Split) -> None:
        with Client(served.url) as client:
            report = client.publish("dev", "mlp", frame(dev).drop(columns="index").assign(cps=1.0), info=client.split("dev"))
            assert report.num_predicted == 300
            assert client.run("dev", "mlp") == report
            assert [run.name for run in client.runs("dev").runs] == ["mlp"]

    def test_arrays(self, served: Server, dev: Split) -> None:
        with Client(served.url) as client:
            report = client.publish("dev", "mean", {"index": np.arange(300), "predicted": np.full(300, dev.cps.mean())})
            assert report.errors.r2 == pytest.approx(0, abs=1e-6)

    def test_refusals(self, served: Server, server: Server) -> None:
        with Client(served.url) as client:
            with pytest.raises(ValueError, match="it needs 'predicted', and 'file_path' or 'index'"):
                client.publish("dev", "a", {"index": [1], "prediction": [2.0]})
            with pytest.raises(InvalidRequestError, match="none of its 1 rows"):
                client.publish("dev", "a", {"index": [1000], "predicted": [2.0]})
            with pytest.raises(NotFoundError, match="no run 'a'"):
                client.run("dev", "a")
        with Client(server.url) as client, pytest.raises(InvalidRequestError, match="--state-dir"):
            client.publish("dev", "a", {"index": [1], "predicted": [2.0]})
