"""The chart, rendered by Helm itself: valid by the published schemas, and of one piece with the image and the service."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from conftest import Server

from cpstream_service.api.observability import Metrics
from cpstream_service.cli.app import unknown_variables

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "kubernetes" / "cpstream"
HELM = shutil.which("helm", path=str(Path(sys.executable).parent)) or shutil.which("helm")
VERSIONS = ("1.27", "1.37")
"""The oldest Kubernetes that Chart.yaml allows, and the newest that there are schemas of."""
UNCHECKED = {"HTTPRoute", "ScaledObject", "ServiceMonitor"}
"""Kinds that are no part of Kubernetes, so that no published schema of it has them."""
pytestmark = pytest.mark.skipif(HELM is None, reason="helm is not installed; python tools/helm.py TARGET fetches it")

FULL: dict[str, Any] = {
    "image": {"repository": "registry.example.org/cpstream", "digest": f"sha256:{'0' * 64}", "pullSecrets": [{"name": "registry"}]},
    "environment": {"CPSTREAM_SOURCE_TYPE": "parquet", "CPSTREAM_MAX_REPLY_BYTES": "2147483648", "CPSTREAM_STRICT": True},
    "source": {"volume": {"persistentVolumeClaim": {"claimName": "embeddings", "readOnly": True}}},
    "snapshot": {"create": True, "storageClass": "nfs"},
    "tokens": {"existingSecret": "tokens"},
    "tls": {"existingSecret": "certificate", "clientCa": True},
    "trustedProxies": "10.0.0.0/8",
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["data.example.org"]},
    "autoscaling": {"enabled": True},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"team": "speech"}}}],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "chroma"}}}]}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "tokenSecret": {"name": "scrape", "key": "token"}},
    "podLabels": {"team": "data"},
    "podAnnotations": {"note": "x"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}
KEDA = FULL | {"autoscaling": {"enabled": True, "by": "keda"}, "snapshot": {"existingClaim": "shared"}}
CASES: dict[str, dict[str, Any]] = {"default": {}, "full": FULL, "keda": KEDA}


def helm(values: dict[str, Any], folder: Path) -> "subprocess.CompletedProcess[str]":
    (folder / "values.json").write_text(json.dumps(values))
    command = [str(HELM), "template", "speech", str(CHART), "--namespace", "data", "--values", str(folder / "values.json")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"HOME": str(folder)})


def rendered(values: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The resources, by kind."""
    done = helm(values, folder)
    assert done.returncode == 0, done.stderr
    found = [resource for resource in yaml.safe_load_all(done.stdout) if resource]
    assert len({resource["kind"] for resource in found}) == len(found)
    return {resource["kind"]: resource for resource in found}


@pytest.fixture(params=CASES)
def resources(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, dict[str, Any]]:
    return rendered(CASES[request.param], tmp_path)


def pod_of(resources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = resources["Deployment"]["spec"]["template"]["spec"]
    return pod


def containers_of(resources: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from (*pod_of(resources)["initContainers"], *pod_of(resources)["containers"])


def variables_of(container: dict[str, Any]) -> dict[str, str]:
    found = {variable["name"]: variable["value"] for variable in container["env"]}
    assert len(found) == len(container["env"])
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_resources_are_valid(resources: dict[str, dict[str, Any]], version: str) -> None:
    """Strictly: a field that no schema names is an error."""
    for kind, resource in resources.items():
        if kind not in UNCHECKED:
            kubernetes_validate.validate(resource, version, strict=True)


def test_every_kind_is_rendered_and_those_beyond_the_schemas_are_known(tmp_path: Path) -> None:
    kinds = {kind for values in CASES.values() for kind in rendered(values, tmp_path)}
    assert len(kinds) == len(list((CHART / "templates").glob("*.yaml"))) + 1  # two are of one file
    for kind in kinds:
        sample = next(found[kind] for values in CASES.values() if kind in (found := rendered(values, tmp_path)))
        try:
            kubernetes_validate.validate(sample, VERSIONS[-1], strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            assert kind in UNCHECKED


def test_helm_lint(tmp_path: Path) -> None:
    done = subprocess.run([str(HELM), "lint", "--strict", str(CHART)], capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_the_packages() -> None:
    (release,) = re.findall(r'^RELEASE = "(.+)"$', (ROOT / "hatch_build.py").read_text(), re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == release


def test_selectors_find_the_pods_and_nothing_else(resources: dict[str, dict[str, Any]]) -> None:
    labels = resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selector = {"app.kubernetes.io/name": "cpstream", "app.kubernetes.io/instance": "speech"}
    assert selector.items() <= labels.items()
    assert resources["Service"]["spec"]["selector"] == selector
    found = [resources["Deployment"]["spec"]["selector"], resources["PodDisruptionBudget"]["spec"]["selector"]]
    found += [resources["NetworkPolicy"]["spec"]["podSelector"], pod_of(resources)["topologySpreadConstraints"][0]["labelSelector"]]
    assert found == [{"matchLabels": selector}] * 4
    if "ServiceMonitor" in resources:
        monitor = resources["ServiceMonitor"]
        assert monitor["spec"]["selector"] == {"matchLabels": selector}
        assert selector.items() <= resources["Service"]["metadata"]["labels"].items()
        assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_ports_lead_to_where_the_image_listens(resources: dict[str, dict[str, Any]]) -> None:
    (container,) = pod_of(resources)["containers"]
    (port,) = container["ports"]
    listens = re.search(r"CPSTREAM_PORT=(\d+)", (ROOT / "Dockerfile").read_text())
    assert listens
    assert port["containerPort"] == int(listens[1])
    (service_port,) = resources["Service"]["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]
    assert resources["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"port": port["name"], "protocol": "TCP"}]
    if "HTTPRoute" in resources:
        (rule,) = resources["HTTPRoute"]["spec"]["rules"]
        assert rule["backendRefs"] == [{"name": resources["Service"]["metadata"]["name"], "port": service_port["port"]}]
        assert rule["timeouts"] == {"request": "0s"}
    if "ServiceMonitor" in resources:
        (endpoint,) = resources["ServiceMonitor"]["spec"]["endpoints"]
        assert (endpoint["port"], endpoint["path"], endpoint["scheme"]) == (service_port["name"], "/metrics", "https")


def test_variables_are_settings_given_once(resources: dict[str, dict[str, Any]]) -> None:
    """And no CPSTREAM_PORT=tcp://... of a service that is named cpstream."""
    assert pod_of(resources)["enableServiceLinks"] is False
    for container in containers_of(resources):
        assert unknown_variables(variables_of(container)) == {}


def test_values_reach_the_service(tmp_path: Path) -> None:
    resources = rendered(FULL, tmp_path)
    for container in containers_of(resources):
        found = variables_of(container)
        assert found["CPSTREAM_MAX_REPLY_BYTES"] == "2147483648"
        assert found["CPSTREAM_STRICT"] == "true"
        assert found["CPSTREAM_TRUSTED_PROXIES"] == "10.0.0.0/8"
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/data"]["readOnly"]
        assert found["CPSTREAM_TOKENS_FILE"] == "/run/secrets/cpstream/tokens.toml"
        assert mounts["/run/secrets/cpstream"]["readOnly"]
        assert container["image"] == f"registry.example.org/cpstream@sha256:{'0' * 64}"
        files = {name: found[f"CPSTREAM_TLS_{name}_FILE"] for name in ("CERT", "KEY", "CLIENT_CA")}
        assert files == {name: f"/run/secrets/tls/{key}" for name, key in zip(files, ("tls.crt", "tls.key", "ca.crt"), strict=True)}
        assert mounts["/run/secrets/tls"]["readOnly"]
    volumes = {volume["name"]: volume for volume in pod_of(resources)["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == "certificate"
    assert volumes["tokens"]["secret"]["secretName"] == "tokens"
    assert volumes["snapshots"]["persistentVolumeClaim"]["claimName"] == resources["PersistentVolumeClaim"]["metadata"]["name"]
    keda = pod_of(rendered(KEDA, tmp_path))
    assert {"name": "snapshots", "persistentVolumeClaim": {"claimName": "shared"}} in keda["volumes"]


def test_the_values_of_the_documentation_are_taken(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    shown = re.search(r"`values\.yaml`;.*?\n\n((?:    [^\n]*\n)+)", page, re.DOTALL)
    assert shown
    values = yaml.safe_load(shown[1])
    assert {"image", "source", "snapshot", "tokens"} <= set(values)
    pod = pod_of(rendered(values, tmp_path))
    assert {"name": "source", **values["source"]["volume"]} in pod["volumes"]


def test_probes_ask_what_the_service_answers(resources: dict[str, dict[str, Any]], server: Server) -> None:
    (container,) = pod_of(resources)["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    encrypted = "CPSTREAM_TLS_CERT_FILE" in variables_of(container)
    assert {probe["scheme"] for probe in probes.values()} == {"HTTPS" if encrypted else "HTTP"}
    paths = {name: probe["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    for path in paths.values():
        assert httpx.get(server.url + path).status_code == 200
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_streams_drain_before_the_pod_is_killed(resources: dict[str, dict[str, Any]]) -> None:
    (container,) = pod_of(resources)["containers"]
    *_, pause_s = container["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = float(variables_of(container)["CPSTREAM_DRAIN_TIMEOUT_S"])
    assert pod_of(resources)["terminationGracePeriodSeconds"] > float(pause_s) + drain_s + 2
    assert resources["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_pods_have_no_more_rights_than_they_need(resources: dict[str, dict[str, Any]]) -> None:
    pod = pod_of(resources)
    assert pod["automountServiceAccountToken"] is False
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers_of(resources):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_the_snapshot_is_written_before_the_service_starts(resources: dict[str, dict[str, Any]]) -> None:
    (first,), (container,) = pod_of(resources)["initContainers"], pod_of(resources)["containers"]
    assert first["command"] == ["cpstream", "prepare"]
    for same in ("image", "env", "volumeMounts"):
        assert first[same] == container[same]


def test_it_scales_by_a_metric_that_there_is(tmp_path: Path) -> None:
    names = [f"{metric.name}" for metric in Metrics().registry.collect()]
    full, keda = rendered(FULL, tmp_path), rendered(KEDA, tmp_path)
    (metric,) = full["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (trigger,) = keda["ScaledObject"]["spec"]["triggers"]
    query = re.match(r"sum\((\w+)\{", trigger["metadata"]["query"])
    assert query
    assert metric["pods"]["metric"]["name"] == query[1]
    assert query[1] in names
    for resources in (full, keda):
        assert "replicas" not in resources["Deployment"]["spec"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"replica": 3}, "replica"),
        ({"environment": {"CPSTREAM_MAX_STREAMS": 64}}, "string"),
        ({"environment": {"CPSTREAM_TOKEN": "secret"}}, "CPSTREAM_TOKEN"),
        ({"environment": {"PORT": "1"}}, "PORT"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty"),
        ({"autoscaling": {"enabled": True, "by": "cpu"}}, "autoscaling"),
    ],
)
def test_values_that_would_do_nothing_or_harm_are_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    done = helm(values, tmp_path)
    assert done.returncode != 0
    assert says in done.stderr
