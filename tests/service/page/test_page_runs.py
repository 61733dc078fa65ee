"""Runs that were published, side by side and one by one; how to publish one, and what a service lacks that keeps none."""

import json
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
from conftest import Server, poll, serving
from looked_at import look

from cpstream_client import Client
from cpstream_client.contract.predictions import RunReport
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot


@pytest.fixture(scope="module")
def http(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    app = create_app(snapshot, ServeSettings(state_dir=tmp_path_factory.mktemp("state")))
    with serving(app) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def reports(http: httpx.Client, snapshot: Snapshot) -> dict[str, RunReport]:
    """Two runs of dev, one of which predicts half of the samples and has rows that match none."""
    dev, noise = snapshot.splits["dev"], np.random.default_rng(0)
    good, bad = dev.cps + noise.normal(0.2, 1, 300), dev.cps + noise.normal(-2, 5, 300)
    with Client(str(http.base_url).rstrip("/")) as client:
        return {
            "good": client.publish("dev", "good", {"index": np.arange(300), "predicted": good}),
            "half.bad": client.publish(
                "dev", "half.bad", {"index": np.arange(150, 310), "predicted": np.r_[bad[150:], np.zeros(10)]}
            ),
        }


def test_a_split_without_runs_says_how_to_publish_one(http: httpx.Client) -> None:
    page = look(http, "/page/splits/test/runs")
    assert "No predictions have been published yet" in page.text
    url = str(http.base_url).rstrip("/")
    assert f'Client("{url}")' in page.text
    assert 'client.publish("test", "my-run", frame)' in page.text
    assert f"curl -X PUT '{url}/v1/splits/test/predictions/my-run'" in page.text


def test_the_code_on_the_page_publishes(http: httpx.Client, snapshot: Snapshot) -> None:
    page = look(http, "/page/splits/test/runs")
    code = page.text[page.text.index("from cpstream_client") : page.text.index("# of pandas")]
    lines = code.replace(" with ", "\nwith ").replace(": client", ":\n    client")
    test = snapshot.splits["test"]
    exec(lines, {"frame": {"index": np.arange(300), "predicted": test.cps}})
    assert "my-run" in look(http, "/page/splits/test/runs").text
    assert http.delete("/v1/splits/test/predictions/my-run").status_code == 204


def test_a_service_that_keeps_none_says_what_it_lacks(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        page = look(http, "/page/splits/dev/runs")
        assert "keeps no predictions" in page.text
        assert "--state-dir" in page.text
        assert "--state-dir" in look(http, "/page/splits/dev/runs/mlp", 501).text


def test_runs_side_by_side(http: httpx.Client, reports: dict[str, RunReport]) -> None:
    poll(lambda: http.get("/v1/splits/dev/statistics").status_code == 200)
    page = look(http, "/page/splits/dev/runs")
    assert [link for _, link in page.links if link.startswith("runs/")] == ["runs/good", "runs/half.bad"]
    baseline = http.get("/v1/splits/dev/statistics").json()["baseline"]
    for errors in (*(report.errors for report in reports.values()), *(baseline[name] for name in ("ridge", "mean"))):
        mae, r2 = (errors["mae"], errors["r2"]) if isinstance(errors, dict) else (errors.mae, errors.r2)
        assert f"{mae:.3f} {r2:.3f}" in page.text.replace("\N{MINUS SIGN}", "-")
    assert "150 of 300" in page.text
    overview = look(http, "/")
    assert "2 runs on dev" in overview.text
    assert "page/splits/dev/runs" in {link for _, link in overview.links}
    assert "page/splits/train/runs" not in {link for _, link in overview.links}


def test_a_run(http: httpx.Client, reports: dict[str, RunReport], snapshot: Snapshot) -> None:
    address, report = "/page/splits/dev/runs/half.bad", reports["half.bad"]
    page = look(http, address)
    assert f"{report.errors.mae:.3f}" in page.text
    assert "150 recordings of the split have no prediction" in page.text
    assert "10 rows name no recording of the split" in page.text
    links = {urljoin(address, link) for _, link in page.links}
    assert {f"/page/splits/dev/samples/{missed.index}" for missed in report.worst} <= links
    assert all(f"{decile.mae:.2f}"[:3] in page.text for decile in report.deciles)
    assert report.folders[0].folder in page.text
    scatter = json.loads(page.data[0])
    points = http.get("/v1/splits/dev/predictions/half.bad/points").json()
    np.testing.assert_allclose(scatter["data"][0]["x"], points["cps"], atol=5e-4)
    np.testing.assert_allclose(scatter["data"][0]["y"], points["predicted"], atol=5e-4)
    assert scatter["data"][0]["customdata"] == [[index] for index in points["index"]]
    assert http.get(f"/{scatter['opens']}{points['index'][0]}").status_code == 200
    guide = scatter["data"][1]
    assert guide["x"] == guide["y"] == [min(points["cps"]), max(points["cps"])]
    by_folder = [link for link in links if "/rows?q=" in link]
    found = look(http, by_folder[0]).text
    assert f"{report.folders[0].count} recordings of 300 match" in found or report.folders[0].count < 300
    assert "has no run 'nothing'" in look(http, "/page/splits/dev/runs/nothing", 404).text


def test_a_sample_shows_what_each_run_made_of_it(http: httpx.Client, reports: dict[str, RunReport]) -> None:
    for index, runs in ((10, {"good"}), (reports["half.bad"].worst[0].index, {"good", "half.bad"})):
        page = look(http, f"/page/splits/dev/samples/{index}")
        assert {"good", "half.bad"} <= {link.rpartition("/")[2] for _, link in page.links if "/runs/" in link}
        for run in runs:
            points = http.get(f"/v1/splits/dev/predictions/{run}/points").json()
            predicted = points["predicted"][points["index"].index(index)]
            assert f"{run} {predicted:,.2f}" in page.text.replace("\N{MINUS SIGN}", "-")
    assert f"{reports['half.bad'].worst[0].predicted:.2f}" in page.text.replace("\N{MINUS SIGN}", "-")
