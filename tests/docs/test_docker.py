"""The image and the compose file: what can be held without an engine, and, where one answers, both of them for real."""

import json
import os
import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from command import serve
from conftest import Server, poll, serving
from soak.engine import compose_command, has_engine, output

from cpstream_service.app import create_app
from cpstream_service.cli.app import unknown_variables
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = DOCKERFILE.replace("\\\n", "")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = ("cpstream", "ingest", "cpstream-chroma")
IMAGE = "cpstream-test"
START_S = 120.0


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"\b(CPSTREAM_\w+)=(\S+)", INSTRUCTIONS))


def exec_form(instruction: str) -> list[str]:
    found = re.search(rf"^{instruction}\b.*?(\[.*\])$", INSTRUCTIONS, re.MULTILINE)
    assert found, f"{instruction} has no exec form"
    return json.loads(found[1])


def test_every_variable_of_image_and_compose_is_a_setting() -> None:
    names = image_environment()
    for service in OURS:
        names |= dict.fromkeys(COMPOSE["services"][service].get("environment", {}), "")
    assert len(names) > 5
    assert unknown_variables(names) == {}


def test_the_label_has_the_version_of_the_package() -> None:
    (release,) = re.findall(r'^RELEASE = "(.+)"$', (ROOT / "hatch_build.py").read_text(), re.MULTILINE)
    assert f'image.version="{release}"' in DOCKERFILE


def test_streams_drain_before_the_engine_kills() -> None:
    drain_s = float(image_environment()["CPSTREAM_DRAIN_TIMEOUT_S"])
    assert drain_s + 2 < 10  # what `docker stop` waits
    for service in ("cpstream", "cpstream-chroma"):
        assert drain_s + 2 < float(COMPOSE["services"][service]["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("service", OURS)
def test_containers_have_no_more_rights_than_they_need(service: str) -> None:
    container = COMPOSE["services"][service]
    assert container["read_only"]
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]


def test_only_its_readers_reach_chroma() -> None:
    assert "ports" not in COMPOSE["services"]["chroma"]
    assert COMPOSE["services"]["chroma"]["networks"] == ["database"]
    assert COMPOSE["networks"]["database"]["internal"]
    assert "networks" not in COMPOSE["services"]["cpstream"]


class TestHealthCheck:
    def check(self, url: str, **variables: str) -> int:
        _, *arguments = exec_form("HEALTHCHECK")
        environment = {"CPSTREAM_PORT": url.rpartition(":")[2], "http_proxy": "http://127.0.0.1:1"} | variables
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=30).returncode

    def test_ready(self, server: Server) -> None:
        poll(lambda: self.check(server.url) == 0)  # within two seconds, as an engine tries again and again

    def test_draining(self, snapshot: Snapshot) -> None:
        app = create_app(snapshot, ServeSettings())
        with serving(app) as url:
            app.state.service.drain.draining = True
            assert self.check(url) != 0

    def test_over_tls(self, tmp_path: Path) -> None:
        authority, pem = trustme.CA(), tmp_path / "server.pem"
        authority.issue_cert("data.example.org").private_key_and_cert_chain_pem.write_to_path(str(pem))
        pem.chmod(0o600)
        unverified = ssl.create_default_context()
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        with serve(tmp_path, "--tls-cert-file", str(pem), verify=unverified) as service:
            poll(lambda: self.check(service.url, CPSTREAM_TLS_CERT_FILE=str(pem)) == 0)
            assert self.check(service.url) != 0

    def test_nothing_listens(self) -> None:
        assert self.check("http://127.0.0.1:1") != 0


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.load(reply)


HAS_ENGINE, COMPOSE_COMMAND = has_engine(), compose_command()


def inspect(container: str, template: str) -> str:
    return output("docker", "inspect", "--format", template, container).strip()


def wait_until_healthy(container: str) -> None:
    poll(lambda: inspect(container, "{{.State.Health.Status}}") == "healthy", START_S)


@pytest.fixture(scope="module")
def image() -> str:
    output("docker", "build", "--tag", IMAGE, ".")
    return IMAGE


@pytest.fixture
def run(image: str) -> Iterator[Callable[..., str]]:
    containers = []

    def run(*options: str) -> str:
        containers.append(output("docker", "run", "--detach", "--publish", "127.0.0.1::8000", *options, image).strip())
        return containers[-1]

    yield run
    for container in containers:
        output("docker", "rm", "--force", "--volumes", container)


@pytest.mark.skipif(not HAS_ENGINE, reason="no Docker Engine answers")
@pytest.mark.timeout(1800)
class TestImage:
    def test_becomes_healthy_and_serves_the_demo(self, run: Callable[..., str], snapshot: Snapshot) -> None:
        container = run()
        wait_until_healthy(container)
        address = output("docker", "port", container, "8000").split()[0]
        assert get(f"http://{address}/v1/splits")["fingerprint"] == snapshot.fingerprint

    def test_ends_cleanly_on_sigterm(self, run: Callable[..., str]) -> None:
        container = run()
        wait_until_healthy(container)
        output("docker", "stop", container)
        assert inspect(container, "{{.State.ExitCode}}") == "0"

    @pytest.mark.parametrize("user", ["10001:10001", "4321:4321"])
    def test_runs_without_any_rights(self, run: Callable[..., str], user: str) -> None:
        options = ("--user", user, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--env", "CPSTREAM_WORKERS=2")
        wait_until_healthy(run(*options))

    def test_the_health_check_follows_the_port(self, run: Callable[..., str]) -> None:
        wait_until_healthy(run("--env", "CPSTREAM_PORT=9000"))

    def test_holds_neither_torch_nor_a_compiler_and_no_root(self, image: str) -> None:
        script = "import importlib.util, os, shutil; print(importlib.util.find_spec('torch'), shutil.which('cc'), os.getuid())"
        assert output("docker", "run", "--rm", image, "python", "-c", script).split() == ["None", "None", "10001"]

    def test_every_command_is_there(self, image: str) -> None:
        report = output("docker", "run", "--rm", image, "cpstream", "check", "--strict")
        assert re.search(r"train.*1,?800", report)


@pytest.mark.skipif(not (HAS_ENGINE and COMPOSE_COMMAND), reason="no Docker Engine with Compose answers")
@pytest.mark.timeout(1800)
def test_compose_serves_the_same_data_from_files_and_from_chroma(snapshot: Snapshot) -> None:
    project = f"cpstream-test-{os.getpid()}"
    ports = {"PORT": "0", "CHROMA_PROFILE_PORT": "0", "IMAGE": IMAGE}

    def compose(*arguments: str) -> str:
        return output(*COMPOSE_COMMAND, "--project-name", project, "--profile", "chroma", *arguments, **ports)

    def fingerprint(service: str) -> str:
        wait_until_healthy(compose("ps", "--quiet", service).strip())
        port = compose("port", service, "8000").strip().rpartition(":")[2]
        return get(f"http://127.0.0.1:{port}/v1/splits")["fingerprint"]

    try:
        compose("up", "--detach", "--build")
        assert fingerprint("cpstream") == fingerprint("cpstream-chroma") == snapshot.fingerprint
        compose("down")  # the volumes stay
        compose("up", "--detach")
        assert fingerprint("cpstream-chroma") == snapshot.fingerprint
        assert "train: 1,800 rows, 0 written, 1,800 were there" in compose("logs", "ingest")
    finally:
        compose("down", "--volumes")
