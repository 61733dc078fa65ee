"""The stack of Docker Swarm, by what it says. `python -m soak.swarm` runs it on two engines."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from soak.swarm import PROXY as PROXY_IMAGE

from cpstream_service.cli.app import unknown_variables

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "swarm"
STACK = yaml.safe_load((FOLDER / "stack.yml").read_text())
REPLICA, PROXY = STACK["services"]["replica"], STACK["services"]["proxy"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
CONFIGURATION = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()


def test_image_and_configuration_are_those_of_one_machine() -> None:
    assert PROXY["image"] == COMPOSE["proxy"]["image"] == PROXY_IMAGE
    assert REPLICA["image"] == COMPOSE["replica"]["image"]
    assert (FOLDER / STACK["configs"]["haproxy"]["file"]).resolve() == ROOT / "deploy" / "haproxy" / "haproxy.cfg"


def test_haproxy_finds_the_replicas_and_chooses_among_them() -> None:
    """By the addresses of the tasks, kept for longer than Swarm names them; by no virtual address, nor by the routing mesh."""
    assert PROXY["environment"]["REPLICAS"] == "tasks.replica"
    assert re.search(r'server-template replica \d+ "\$\{REPLICAS\}:8000"', CONFIGURATION)
    for hold in ("obsolete", "nx", "timeout", "refused", "other"):
        assert f"hold {hold} 1h" in CONFIGURATION
    assert [service["deploy"]["endpoint_mode"] for service in (REPLICA, PROXY)] == ["dnsrr", "dnsrr"]
    assert [port["mode"] for port in PROXY["ports"]] == ["host"]
    assert PROXY["deploy"]["mode"] == "global"
    assert "ports" not in REPLICA
    replicas = REPLICA["deploy"]["replicas"]
    places = int(re.findall(r"server-template replica (\d+)", CONFIGURATION)[0])
    assert places > 8 * replicas, "addresses of replaced replicas hold places for an hour"


def test_clients_are_told_apart() -> None:
    (subnet,) = STACK["networks"]["replicas"]["ipam"]["config"]
    assert REPLICA["environment"]["CPSTREAM_TRUSTED_PROXIES"] == subnet["subnet"]
    assert STACK["networks"]["replicas"]["internal"]
    assert REPLICA["networks"] == ["replicas"]


def test_an_update_starts_a_replica_before_it_stops_one() -> None:
    assert REPLICA["deploy"]["update_config"] == {
        "order": "start-first",
        "parallelism": 1,
        "delay": "5s",
        "failure_action": "rollback",
    }
    drain = re.search(r"CPSTREAM_DRAIN_TIMEOUT_S=(\d+)", (ROOT / "Dockerfile").read_text())
    assert drain
    assert int(drain[1]) + 2 < int(REPLICA["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("service", STACK["services"])
def test_containers_have_no_more_rights_than_they_need(service: str) -> None:
    container: dict[str, Any] = STACK["services"][service]
    assert container["read_only"]
    assert container["cap_drop"] == ["ALL"]
    assert set(container["deploy"]["resources"]["limits"]) == {"memory", "pids"}


def test_every_variable_is_a_setting() -> None:
    tokens = yaml.safe_load((FOLDER / "tokens.yml").read_text())["services"]["replica"]
    assert unknown_variables(REPLICA["environment"] | tokens["environment"]) == {}
    (secret,) = tokens["secrets"]
    assert tokens["environment"]["CPSTREAM_TOKENS_FILE"] == f"/run/secrets/{secret['target']}"


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
@pytest.mark.parametrize("files", [["stack.yml"], ["stack.yml", "tokens.yml"]])
def test_docker_takes_the_stack(files: list[str]) -> None:
    """Read strictly, by the command line alone: no engine is asked."""
    command = ["docker", "stack", "config", *(f"--compose-file={FOLDER / file}" for file in files)]
    if "--compose-file" not in subprocess.run([*command[:3], "--help"], capture_output=True, text=True, timeout=60).stdout:
        pytest.skip("this docker has no `stack config`")
    environment = {"PATH": os.environ["PATH"]}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "set DATA to the folder of the data" in refused.stderr
    environment |= {"DATA": "/srv/embeddings", "PORT": "9000"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    (port,) = read["proxy"]["ports"]
    assert (port["published"], port["target"]) == (9000, 8000)
    assert read["replica"]["volumes"][0]["source"] == "/srv/embeddings"
