"""Prometheus and Grafana beside the services: they are told where these are, and what they are told is well formed."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PROMETHEUS, GRAFANA = SERVICES["prometheus"], SERVICES["grafana"]
CONFIGURATION = ROOT / "deploy" / "prometheus" / "prometheus.yml"
PROMTOOL = shutil.which("promtool")


def test_prometheus_asks_each_service_in_a_network_that_it_shares() -> None:
    jobs = {job["job_name"]: job["dns_sd_configs"][0] for job in yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"]}
    served = {name for name, service in SERVICES.items() if "build" in service or name in ("cpstream-chroma", "replica")}
    assert set(jobs["cpstream"]["names"]) == served
    assert (jobs["haproxy"]["names"], jobs["haproxy"]["port"]) == (["proxy"], 8404)
    assert "bind :8404" in (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()
    for name in (*served, "proxy"):
        assert set(SERVICES[name].get("networks", ["default"])) & set(PROMETHEUS["networks"]), name


def test_they_are_reached_from_this_machine_alone() -> None:
    """They ask nobody for a password."""
    for service in (PROMETHEUS, GRAFANA):
        (port,) = service["ports"]
        assert port.startswith("127.0.0.1:")
    assert GRAFANA["environment"]["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_grafana_finds_its_dashboards_and_their_source() -> None:
    mounts = dict(volume.split(":")[:2] for volume in GRAFANA["volumes"])
    folder = ROOT / "deploy" / "grafana"
    (provider,) = yaml.safe_load((folder / "provisioning" / "dashboards" / "cpstream.yml").read_text())["providers"]
    assert mounts["./deploy/grafana"] == provider["options"]["path"]
    assert list(folder.glob("*.json"))
    (source,) = yaml.safe_load((folder / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_takes_the_configuration_and_its_rules() -> None:
    done = subprocess.run([str(PROMTOOL), "check", "config", str(CONFIGURATION)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
