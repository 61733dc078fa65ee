"""The dashboard and the alerts name what there is: every metric and label of them comes from a real service."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import httpx
import pytest
import yaml
from conftest import Server, poll
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "cpstream.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
OF_PROMETHEUS = {"up", "ALERTS"}
OF_EVERY_SERIES = {"job", "instance", "le"}
WITHOUT_PROMTOOL = pytest.mark.skipif(not which("promtool"), reason="promtool is not here (Debian: apt-get install prometheus)")


def expressions() -> Iterator[tuple[str, str]]:
    """What asks, and its PromQL."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from (
        (f"variable {each['name']}", each["query"]["query"]) for each in dashboard["templating"]["list"] if each["type"] == "query"
    )
    yield from ((rule["alert"], rule["expr"]) for rule in alerts())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def test_every_metric_and_label_of_dashboard_and_alerts_is_there(run_server: Callable[..., Server]) -> None:
    url = run_server().url
    for path in ("dev/batches?limit=1", "nowhere"):  # so that each metric with labels has a series
        httpx.get(f"{url}/v1/splits/{path}")
    poll(lambda: 'status="404"' in httpx.get(f"{url}/metrics").text and 'status="200"' in httpx.get(f"{url}/metrics").text)
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    labels["cpstream_load_seconds"] = set()  # of a service that has loaded its data itself: tests/service/test_metrics.py
    for name, expression in expressions():
        without_strings = re.sub(r'"[^"]*"', "", expression)
        metrics = set(re.findall(r"\b(?:cpstream|process|up)(?:_\w+)?\b(?!\s*\()", without_strings)) - OF_PROMETHEUS
        assert metrics <= labels.keys(), name
        named = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=(?!=))", without_strings))
        for group in re.findall(r"by \(([\w, ]+)\)", without_strings):
            named |= set(group.split(", "))
        assert named - OF_EVERY_SERIES <= set().union(*(labels[metric] for metric in metrics)), (name, named)


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 15
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_each_alert_says_what_to_do_and_is_documented() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}
        row = next(
            (line for line in text.splitlines() if line.startswith(f"| `{rule['alert']}` | {rule['labels']['severity']} |")), ""
        )
        assert row, rule["alert"]


@WITHOUT_PROMTOOL
@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", str(ALERTS)], ["test", "rules", str(Path(__file__).with_name("alerts.test.yml"))]],
    ids=["check", "test"],
)
def test_the_rules_by_promtool(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@WITHOUT_PROMTOOL
def test_every_expression_of_the_dashboard_by_promtool(tmp_path: Path) -> None:
    """As rules, for promtool parses nothing else; with values for what Grafana fills in."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    filled = [
        re.sub(r"\$(\w+)", lambda found: {"__rate_interval": "5m", "job": ".+", "instance": ".+"}[found[1]], each) for each in asked
    ]
    rules = [{"record": f"dashboard:{number}", "expr": expression} for number, expression in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(asked)} rules found" in done.stdout


def test_each_alert_is_tried() -> None:
    tried = yaml.safe_load(Path(__file__).with_name("alerts.test.yml").read_text())["tests"]
    fires = {each["alertname"] for test in tried for each in test["alert_rule_test"] if each["exp_alerts"]}
    rests = {each["alertname"] for test in tried for each in test["alert_rule_test"] if not each["exp_alerts"]}
    assert fires == rests == {rule["alert"] for rule in alerts()}
