"""The chart's shapes: what each renders to, whether a cluster takes it, whether the exporter runs on it."""

from __future__ import annotations

import copy
import json
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from support.certificates import Authority
from support.chart import (
    CHART,
    RELEASES,
    SHAPES,
    Object,
    breaches,
    container,
    nothings,
    objects,
    one,
    pod,
    problems,
    render,
    values_of,
    workload,
)
from support.command import Command, ask, running

import exporter
from exporter.config import settings as config

ROOT = CHART.parent.parent


def shape(name: str) -> dict[str, Any]:
    return values_of((CHART / "ci" / f"{name}-values.yaml").read_text())


@pytest.fixture(params=SHAPES, ids=lambda path: path.stem.removesuffix("-values"))
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return values_of(request.param.read_text())


# -- the chart as a whole --------------------------------------------------------------------------


def test_what_is_generated_is_up_to_date() -> None:
    """If not: make helm."""
    done = subprocess.run(
        [sys.executable, "helm/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_chart_and_the_exporter_are_of_one_version() -> None:
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata["appVersion"] == exporter.__version__
    assert metadata["kubeVersion"] == f">={RELEASES[0]}-0"


def test_lint(values: dict[str, Any]) -> None:
    for given in (None, values):
        report = helm_python.lint(CHART, given, strict=True, kube_version=f"v{RELEASES[0]}")
        assert report["errors"] == []
        assert [each for each in report["messages"] if "icon is recommended" not in each["error"]] == []


def test_package(tmp_path: Path) -> None:
    archive = helm_python.package(CHART, destination=tmp_path)
    with helm_python.Chart.load(archive) as packed:
        assert packed.version == yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
        files = {each["name"] for each in packed.files}
        assert "README.md" in files
        assert not any(name.startswith("ci/") for name in files)
        image = {"image": {"repository": "exporter"}}
        plain = helm_python.Chart.load(CHART).render(image, name="demo")
        assert packed.render(image, name="demo").keys() == plain.keys()


def test_no_file_of_the_chart_is_too_long_to_read() -> None:
    scripts = (ROOT / "helm").glob("*.py")
    for path in [*CHART.rglob("*.tpl"), *CHART.rglob("*.yaml"), *scripts]:
        if path.name == "values.yaml":
            continue  # Helm wants all values in one file; it is looked up, not read
        assert path.read_text().count("\n") <= 500, path


# -- the shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem.removesuffix("-values"))
def test_golden(path: Path, golden: Callable[[str, str], str]) -> None:
    texts = render(values_of(path.read_text()))
    # Blank lines are where a template had nothing to say.
    shown = {name: re.sub(r"(?m)^ *\n", "", text).strip() for name, text in sorted(texts.items())}
    shown.pop("dashboard.yaml", None)  # a file of the chart, as it is: test_chart_alerts.py compares them
    text = "".join(f"# -- {name}\n{text}\n" for name, text in shown.items() if text)
    assert golden(f"chart/{path.stem.removesuffix('-values')}.yaml", text) == text


def test_a_cluster_takes_every_object(values: dict[str, Any]) -> None:
    found = objects(values)
    assert [problem for each in found for problem in problems(each)] == []
    assert [f"{each['kind']}{path}" for each in found for path in nothings(each)] == []


def test_the_types_are_told_apart() -> None:
    """The judge is not blind: what it has to find, it finds."""
    found = objects(shape("minimal"))
    for kind, path, key in (
        ("Deployment", ("spec",), "replicaz"),
        ("Service", ("spec",), "selectors"),
        ("ServiceMonitor", ("spec",), "endpoint"),
    ):
        broken = copy.deepcopy(one(found, kind))
        at = broken
        for step in path:
            at = at[step]
        at[key] = 1
        assert problems(broken), kind


def test_pods_are_restricted(values: dict[str, Any]) -> None:
    given = {key: each for key, each in values.items() if key not in ("extraContainers", "initContainers")}
    found = objects(given)
    assert breaches(pod(found)["spec"]) == []
    assert breaches(one(found, "Pod")["spec"]) == []
    for spec in (pod(found)["spec"], one(found, "Pod")["spec"]):
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in spec["containers"])


def test_the_breaches_are_seen() -> None:
    assert breaches(
        {"hostNetwork": True, "containers": [{"name": "a"}], "volumes": [{"hostPath": {}, "name": "b"}]}
    )


def test_everything_is_shown_at_its_fullest() -> None:
    """The shape with everything on leaves no value at its default, so that the types judge each of them."""
    given, defaults = shape("everything"), values_of((CHART / "values.yaml").read_text())
    # Shards exclude the Deployment; a Secret of one's own excludes what the chart would make.
    others = {"existingConfigMap", "existingConfigSecret", "strategy", "securityContext", "helmTest"}
    assert defaults.keys() - given.keys() == others


# -- the exporter on what was rendered -------------------------------------------------------------


def named(thing: Object, part: str) -> bool:
    """Grafana's ConfigMap is none of the exporter's."""
    name = thing["metadata"]["name"]
    return part in name and not name.endswith("-dashboard")


def files(found: list[Object], folder: Path) -> None:
    """The ConfigMap and the Secret of the release, laid out as they would be mounted."""
    for kind, at, key in (("ConfigMap", "config", "data"), ("Secret", "web", "stringData")):
        (folder / at).mkdir()
        for each in found:
            if each["kind"] == kind and named(each, "ecr"):
                for name, text in each[key].items():
                    (folder / at / name).write_text(text)


def test_the_exporter_takes_the_configuration(values: dict[str, Any]) -> None:
    found = objects(values)
    (text,) = one([each for each in found if named(each, "ecr")], "ConfigMap")["data"].values()
    plain = yaml.safe_load(yaml.safe_dump(values["config"]))
    if workload(found)["kind"] == "StatefulSet":
        mount = values.get("stateFile", {}).get("mountPath", "/var/lib/ecr-replication-exporter")
        plain["state_file"] = f"{mount}/state"
    assert config.parse(text) == config.parse(json.dumps(plain))


@contextmanager
def started(found: list[Object], folder: Path) -> Iterator[Command]:
    """The exporter by the pod's command line, with folders of this machine for mounts, in the demo's AWS."""
    files(found, folder)
    for path in folder.rglob("*.yaml"):
        text = path.read_text().replace("/var/lib/ecr-replication-exporter", str(folder))
        path.write_text(text.replace("/etc/ecr-replication-exporter", str(folder)))
    arguments = [
        argument.replace("/etc/ecr-replication-exporter", str(folder))
        for argument in container(found)["args"]
        if not argument.startswith("--web.listen-address")
    ]
    pod_name = f"{workload(found)['metadata']['name']}-1"
    with running(folder, *arguments, "--demo", POD_NAME=pod_name) as command:
        yield command


@pytest.mark.parametrize("name", ["minimal", "sharded", "multi-account"])
def test_the_command_line_starts_the_exporter(name: str, tmp_path: Path) -> None:
    found = objects(shape(name))
    with started(found, tmp_path) as command:
        probe = container(found)["livenessProbe"]["httpGet"]
        assert ask(f"{command.url}{probe['path']}").status == 200
        assert "ecr_replication_exporter_build_info" in command.page()
        assert command.stop()[0] == 0


def helm_test(found: list[Object], port: str, *, locked: str) -> int:
    """The exit code of the pod of `helm test`, with this machine in place of the Service."""
    test = one(found, "Pod")["spec"]["containers"][0]
    assert test["command"] == ["python3", "-c"]
    script, host, service_port, scheme, is_locked = test["args"]
    assert (host, service_port) == ("demo-ecr-replication-exporter.monitoring", "10042")
    assert is_locked == locked
    arguments = [sys.executable, "-c", script, "127.0.0.1", port, scheme, locked]
    return subprocess.run(arguments, capture_output=True, timeout=30, check=False).returncode


def test_the_helm_test_finds_the_exporter(tmp_path: Path) -> None:
    found = objects({})
    with started(found, tmp_path) as command:
        port = command.url.rpartition(":")[2]
        assert helm_test(found, port, locked="") == 0
    assert helm_test(found, port, locked="") != 0


def test_tls_and_a_password(tmp_path: Path) -> None:
    found = objects(shape("tls"))
    (tmp_path / "tls").mkdir()
    for path, name in zip(Authority().issue(tmp_path, "server"), ("tls.crt", "tls.key"), strict=True):
        path.rename(tmp_path / "tls" / name)
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with started(found, tmp_path) as command:
        port = command.url.rpartition(":")[2]
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"https://127.0.0.1:{port}/-/healthy", context=unverified, timeout=10)
        refused.value.close()
        assert "tcpSocket" in container(found)["livenessProbe"]
        assert helm_test(found, port, locked="true") == 0
    assert helm_test(found, port, locked="true") != 0


# -- one thing at a time ---------------------------------------------------------------------------


def test_the_default_is_one_exporter_that_reloads_by_itself() -> None:
    found = objects({})
    kinds = sorted(each["kind"] for each in found)
    assert kinds == ["ConfigMap", "Deployment", "Pod", "Service", "ServiceAccount"]
    assert "--config.auto-reload-interval=30s" in container(found)["args"]
    assert not any(mount.get("subPath") for mount in container(found)["volumeMounts"])


def test_shards() -> None:
    found = objects({"shards": 3})
    assert workload(found)["spec"]["replicas"] == 3
    assert {"--shard=auto", "--total-shards=3"} <= set(container(found)["args"])
    (name,) = [each for each in container(found)["env"] if each["name"] == "POD_NAME"]
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    (claim,) = workload(found)["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "state"


def test_state_without_a_claim() -> None:
    found = objects({"shards": 2, "stateFile": {"persistent": False}})
    assert "volumeClaimTemplates" not in workload(found)["spec"]
    assert {"name": "state", "emptyDir": {}} in pod(found)["spec"]["volumes"]


@pytest.mark.parametrize("key", ["existingConfigMap", "existingConfigSecret"])
def test_a_configuration_from_elsewhere(key: str) -> None:
    found = objects({key: "{{ .Release.Name }}-mine", "autoReloadInterval": "0"})
    assert not any(each["kind"] == "ConfigMap" for each in found)
    (volume,) = pod(found)["spec"]["volumes"]
    assert "demo-mine" in str(volume)
    assert "annotations" not in pod(found)["metadata"]


PASSWORD = {"basic_auth_users": {"a": "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"}}
TLS = {"cert_file": "tls.crt", "key_file": "tls.key"}
MUTUAL = TLS | {"client_ca_file": "ca.crt", "client_auth_type": "RequireAndVerifyClientCert"}
HEADERS = {"httpGet": {"httpHeaders": [{"name": "Authorization", "value": "Basic YTpi"}]}}


@pytest.mark.parametrize(
    ("web", "probe", "kind", "scheme"),
    [
        pytest.param({}, {}, "httpGet", "HTTP", id="plain"),
        pytest.param({"config": {"tls_server_config": TLS}}, {}, "httpGet", "HTTPS", id="tls"),
        pytest.param(
            {"config": {"tls_server_config": MUTUAL}}, {}, "tcpSocket", "HTTPS", id="client certificate"
        ),
        pytest.param({"config": PASSWORD}, {}, "tcpSocket", "HTTP", id="password"),
        pytest.param({"config": PASSWORD}, HEADERS, "httpGet", "HTTP", id="password that is given"),
        pytest.param(
            {"existingSecret": "web", "tls": True}, {}, "httpGet", "HTTPS", id="a secret of one's own"
        ),
        pytest.param({}, {"exec": {"command": ["true"]}}, "exec", "HTTP", id="another probe"),
    ],
)
def test_probes_and_monitors_follow_the_web_configuration(
    web: dict[str, Any], probe: dict[str, Any], kind: str, scheme: str
) -> None:
    given = {"web": web, "livenessProbe": probe, "readinessProbe": probe}
    found = objects(given | {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}})
    for name, path in (("livenessProbe", "/-/healthy"), ("readinessProbe", "/-/ready")):
        made = container(found)[name]
        assert made.keys() & {"httpGet", "tcpSocket", "exec"} == {kind}
        if kind == "httpGet":
            assert (made["httpGet"]["path"], made["httpGet"]["scheme"]) == (path, scheme)
            assert made["httpGet"].get("httpHeaders") == probe.get("httpGet", {}).get("httpHeaders")
    assert one(found, "ServiceMonitor")["spec"]["endpoints"][0]["scheme"] == scheme.lower()
    assert one(found, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["scheme"] == scheme.lower()


def test_probes_ask_what_each_is_for() -> None:
    """Readiness alone depends on AWS, and only until each registry has answered or failed once."""
    made = container(objects({"startupProbe": {"enabled": True}}))
    paths = {name: probe["httpGet"]["path"] for name, probe in made.items() if name.endswith("Probe")}
    assert paths == {
        "startupProbe": "/-/healthy",
        "livenessProbe": "/-/healthy",
        "readinessProbe": "/-/ready",
    }
    seconds = {name: made[name]["periodSeconds"] * made[name]["failureThreshold"] for name in paths}
    assert seconds["startupProbe"] >= 120
    assert seconds["livenessProbe"] >= 60
    assert "initialDelaySeconds" not in made["readinessProbe"]


def test_the_notes_warn() -> None:
    def notes(**values: Any) -> str:
        return render(values, apis=())["NOTES.txt"]

    assert "WARNING" not in notes()
    assert "scraped twice" in notes(podMonitor={"enabled": True}, serviceMonitor={"enabled": True})
    assert "created no autoscaler" in notes(verticalPodAutoscaler={"enabled": True})
    role = {"role_arn": "arn:aws:iam::222233334444:role/x", "external_id": "s3cr3t"}
    assert "existingConfigSecret" in notes(config={"registries": [role]})
    assert "s3cr3t" not in notes(config={"registries": [role]})


@pytest.mark.parametrize(
    ("budget", "shards", "spec", "blocks"),
    [
        ({}, 1, {"maxUnavailable": 1}, False),
        ({"minAvailable": 0}, 1, {"minAvailable": 0}, False),
        ({"minAvailable": "0%"}, 1, {"minAvailable": "0%"}, False),
        ({"minAvailable": 1}, 1, {"minAvailable": 1}, True),
        ({"minAvailable": "1%"}, 1, {"minAvailable": "1%"}, True),
        ({"minAvailable": 1}, 2, {"minAvailable": 1}, False),
        ({"minAvailable": "50%"}, 2, {"minAvailable": "50%"}, False),
        ({"minAvailable": "51%"}, 2, {"minAvailable": "51%"}, True),
        ({"minAvailable": 3}, 3, {"minAvailable": 3}, True),
        ({"maxUnavailable": 0}, 3, {"maxUnavailable": 0}, True),
        ({"maxUnavailable": "0%"}, 1, {"maxUnavailable": "0%"}, True),
        ({"maxUnavailable": "1%"}, 1, {"maxUnavailable": "1%"}, False),
        ({"minAvailable": None, "maxUnavailable": 2}, 3, {"maxUnavailable": 2}, False),
        ({"minAvailable": 2, "maxUnavailable": ""}, 3, {"minAvailable": 2}, False),
    ],
)
def test_a_disruption_budget_that_lets_no_pod_go_is_warned_of(
    budget: dict[str, Any], shards: int, spec: dict[str, Any], blocks: bool
) -> None:
    given = {"shards": shards, "podDisruptionBudget": {"enabled": True} | budget}
    made = one(objects(given), "PodDisruptionBudget")["spec"]
    assert {key: made[key] for key in ("minAvailable", "maxUnavailable") if key in made} == spec
    assert ("nodes cannot be drained" in render(given)["NOTES.txt"]) == blocks


def test_an_autoscaler_only_where_there_are_some() -> None:
    given = {"verticalPodAutoscaler": {"enabled": True}}
    assert render(given, apis=())["verticalpodautoscaler.yaml"].strip() == ""
    assert one(objects(given), "VerticalPodAutoscaler")["spec"]["targetRef"]["kind"] == "Deployment"


def test_the_network_policy_denies_what_it_does_not_name() -> None:
    policy = one(objects({"networkPolicy": {"enabled": True}}), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    ways = {
        (port["port"], port["protocol"], peer.get("ipBlock", {}).get("cidr"))
        for rule in policy["egress"]
        for port in rule["ports"]
        for peer in rule.get("to", [{}])
    }
    assert ways == {
        (53, "UDP", None),
        (53, "TCP", None),
        (5353, "UDP", None),
        (5353, "TCP", None),
        (443, "TCP", None),
        (80, "TCP", "169.254.169.254/32"),
        (80, "TCP", "169.254.170.23/32"),
        (80, "TCP", "fd00:ec2::254/128"),
        (80, "TCP", "fd00:ec2::23/128"),
    }


def test_the_claim_is_as_the_api_server_stores_it() -> None:
    """Argo CD compares the manifest with the stored object, which has all of this."""
    (claim,) = workload(objects({"shards": 3}))["spec"]["volumeClaimTemplates"]
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert claim["spec"]["volumeMode"] == "Filesystem"


def test_the_user_names_the_image() -> None:
    with pytest.raises(helm_python.HelmRenderError, match=r"image\.repository is empty: build the image"):
        objects({"image": {"repository": ""}})


def test_a_global_registry_takes_precedence() -> None:
    given = {"image": {"registry": "ours.example", "repository": "exporter", "tag": "1"}}
    assert container(objects(given))["image"] == "ours.example/exporter:1"
    everywhere = {"global": {"imageRegistry": "mirror.example"}}
    assert container(objects(given | everywhere))["image"] == "mirror.example/exporter:1"


def test_pull_secrets_of_all_charts_come_first() -> None:
    """As names, or as Kubernetes writes them; none twice."""
    everywhere = {"imagePullSecrets": ["mirror", {"name": "both"}]}
    found = objects({"global": everywhere, "imagePullSecrets": [{"name": "both"}, {"name": "ours"}]})
    names = [{"name": "mirror"}, {"name": "both"}, {"name": "ours"}]
    assert pod(found)["spec"]["imagePullSecrets"] == one(found, "Pod")["spec"]["imagePullSecrets"] == names
    assert "imagePullSecrets" not in pod(objects({}))["spec"]


@pytest.mark.parametrize("alias", ["", "watcher", "ecrExporter_1"])
def test_the_chart_is_a_dependency_with_a_condition(alias: str, tmp_path: Path) -> None:
    """The values of a parent chart reach it with `enabled` and `global`, also under an alias."""
    name = alias or CHART.name
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts" / CHART.name)
    dependency = {"name": CHART.name, "version": "0.1.0", "condition": f"{name}.enabled"}
    dependency |= {"alias": alias} if alias else {}
    metadata = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(metadata))
    (parent / "values.yaml").write_text("{}")
    for enabled in (True, False):
        ours = {"enabled": enabled, "image": {"repository": "exporter"}, "serviceMonitor": {"enabled": True}}
        values = {name: ours, "global": {"imageRegistry": "mirror.example", "storageClass": "fast"}}
        with helm_python.Chart.load(parent) as chart:
            chart.validate_schema(values)
            texts = chart.render(values, name="demo", namespace="monitoring")
        made = "\n---\n".join(text for path, text in texts.items() if path.endswith(".yaml"))
        found = [each for each in yaml.safe_load_all(made) if each]
        assert bool(found) == enabled == ('image: "mirror.example/exporter:' in made)
        assert [problem for each in found for problem in problems(each)] == []
        assert [each for each in found if not re.fullmatch("[a-z0-9-]+", each["metadata"]["name"])] == []


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_the_exporters_labels_are_kept(kind: str) -> None:
    """A target label `region` would take the place of the destination's."""
    found = objects({"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}})
    (endpoint,) = next(
        value for key, value in one(found, kind)["spec"].items() if key.lower().endswith("endpoints")
    )
    assert endpoint["honorLabels"] is True


def test_the_example_keeps_the_exporters_labels() -> None:
    example = yaml.safe_load((ROOT / "examples" / "prometheus" / "prometheus.yml").read_text())
    compose = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text())
    inner = yaml.safe_load(compose["configs"]["prometheus"]["content"])
    for scrape in (*example["scrape_configs"], *inner["scrape_configs"]):
        assert scrape["honor_labels"] is True
