"""The chart's values: mistakes are refused, and whatever is not refused renders to what belongs together."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from support.chart import (
    CHART,
    Object,
    breaches,
    container,
    loaded,
    nothings,
    objects,
    one,
    pod,
    problems,
    render,
    selects,
    values_of,
    workload,
)
from support.configs import CONFIGS, configurations
from support.schemas import NO_VALUES, SETTINGS, WEB, documents

from exporter.config import settings as config
from exporter.config.settings import Settings, to_yaml
from exporter.config.yaml_source import ConfigError

#: Maps of free names with numbers in them, and objects of any kind.
FREE = ("extraManifests", "resources.requests", "resources.limits", "verticalPodAutoscaler.m")
#: Judges as Helm does, which compiles the schema for each question.
SCHEMA = Draft7Validator(json.loads((CHART / "values.schema.json").read_text()))


def takes(values: dict[str, Any]) -> bool:
    """Whether the schema lets the values pass, on Helm's engine."""
    try:
        loaded().validate_schema(loaded().merge_values(values))
    except helm_python.HelmValuesError:
        return False
    return True


def everything() -> dict[str, Any]:
    return values_of((CHART / "ci" / "everything-values.yaml").read_text())


def at(node: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        node = node[step]
    return node


def maps(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all maps."""
    if isinstance(node, dict):
        yield path
    if isinstance(node, dict | list):
        for key, each in node.items() if isinstance(node, dict) else enumerate(node):
            yield from maps(each, (*path, key))


@pytest.mark.parametrize("source", ["values.yaml", "ci/everything-values.yaml"])
def test_a_typo_is_refused_at_every_level(source: str) -> None:
    given = values_of((CHART / source).read_text())
    assert SCHEMA.is_valid(given)
    for path in maps(given):
        mistaken = copy.deepcopy(given)
        at(mistaken, path)["tpyo"] = 1
        dotted = ".".join(map(str, path))
        assert SCHEMA.is_valid(mistaken) == dotted.startswith(FREE), dotted


@pytest.mark.parametrize(
    "values",
    [
        {"shards": 0},
        {"shards": "3"},
        {"autoReloadInterval": 30},
        {"autoReloadInterval": "30"},
        {"log": {"level": "verbose"}},
        {"image": {"digest": "0123"}},
        {"commonLabels": {"a b": "c"}},
        {"commonLabels": {"a": "x" * 64}},
        {"podLabels": {"a": True}},
        {"podLabels": {"true": "x"}},
        {"prometheusRule": {"alertLabels": {"severity": "page"}}},
        {"prometheusRule": {"alertLabels": {"a-b": "x"}}},
        {"prometheusRule": {"alertLabels": {"10": "x"}}},
        {"prometheusRule": {"alertLabels": {"__name__": "x"}}},
        {"global": {"imageRegistry": 1}},
        {"fullnameOverride": "Upper"},
        {"autoReloadInterval": "999ms"},
        {"web": {"telemetryPath": "metrics"}},
        {"web": {"telemetryPath": "/"}},
        {"web": {"telemetryPath": "/config"}},
        {"web": {"telemetryPath": "/-/healthy"}},
        {"networkPolicy": {"awsCidrs": ["10.0.0.0/33"]}},
        {"networkPolicy": {"awsCidrs": ["10.0.0.256/8"]}},
        {"networkPolicy": {"awsCidrs": ["10.0.0.0"]}},
        {"networkPolicy": {"awsCidrs": ["fd00::/129"]}},
        {"web": {"config": {"basic_auth_users": {"a": "password"}}}},
        {"livenessProbe": {"httpGet": {"pth": "/"}}},
        {"extraEnv": [{"value": "a"}]},
        {"config": {"targets": [{"repository": "team/app", "tag": 1.1}]}},
        {"serviceMonitor": {"relabelings": [{"action": "dorp"}]}},
        {"stateFile": {"accessModes": ["ReadWriteSometimes"]}},
        {"stateFile": {"size": "10GB"}},
        {"stateFile": {"mountPath": "//"}},
        {"stateFile": {"mountPath": "/a:b"}},
        {"resources": {"limits": {"memory": "512mb"}}},
        {"verticalPodAutoscaler": {"minAllowed": {"cpu": "lots"}}},
        {"image": {"repository": "team/exporter:1.0"}},
        {"image": {"repository": "team/exporter@sha256:" + "0" * 64}},
        {"image": {"repository": "Team/Exporter"}},
        {"image": {"repository": "{{ .Release.Name }}"}},
        {"image": {"registry": "https://registry.example"}},
        {"image": {"registry": "registry.example/"}},
        {"image": {"tag": "a b"}},
        {"global": {"imageRegistry": "oci://registry.example"}},
        {"configKey": ".."},
        {"web": {"configKey": "."}},
        {"web": {"telemetryPath": "//metrics"}},
        {"web": {"telemetryPath": "/metrics?a=b"}},
        {"web": {"telemetryPath": "/{{ .Release.Name }}"}},
        {"aws": {"region": "us-east-1a"}},
        {"serviceAccount": {"name": "Mine"}},
        {"podAnnotations": {"a b": "c"}},
        {"podAnnotations": {"a/b/c": "d"}},
        {"nodeSelector": {"a b": "c"}},
        {"service": {"clusterIP": "none"}},
        {"podDisruptionBudget": {"minAvailable": "150%"}},
        {"prometheusRule": {"alerts": {"ECRReplicationSlow": {"window": "0s"}}}},
        {"prometheusRule": {"alerts": {"ECRReplicationSlow": {"quantile": 95}}}},
        {"prometheusRule": {"alerts": {"ECRReplicationExporterThrottled": {"ratio": 5}}}},
        {"prometheusRule": {"additionalGroups": [{"rules": [{"alert": "A", "expr": "up"}]}]}},
        {"prometheusRule": {"additionalGroups": [{"name": "a", "rules": [{"expr": "up"}]}]}},
        {
            "prometheusRule": {
                "additionalGroups": [{"name": "a", "rules": [{"alert": "A", "record": "a:b", "expr": "up"}]}]
            }
        },
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any]) -> None:
    assert not takes(values)


@pytest.mark.parametrize(
    "values",
    [
        {"autoReloadInterval": "0m"},
        {"autoReloadInterval": "1h30m"},
        {"prometheusRule": {"alertLabels": {"_team": "1.10", "on_call": "true"}}},
        {"global": {"anything": {"of": "others"}}},
        {"web": {"telemetryPath": "/configuration"}},
        {"web": {"telemetryPath": "/-"}},
        {"image": {"registry": "registry.example:5000/mirror", "repository": "team/exporter", "tag": "v1_2"}},
        {"image": {"repository": "[fd00::1]:5000/team/exporter"}},
        {"global": {"imageRegistry": ""}},
        {"configKey": ".config"},
        {"aws": {"region": "us-isob-east-1"}},
        {"serviceAccount": {"name": "team.exporter"}},
        {"podAnnotations": {"Example.COM/Some_Key": ""}},
        {"resources": {"limits": {"memory": "1.5Gi", "cpu": 0.5}}},
        {"stateFile": {"size": "1e9", "mountPath": "/state/"}},
        {"service": {"clusterIP": "fd00::1"}},
        {"podDisruptionBudget": {"minAvailable": "100%"}},
        {"serviceMonitor": {"relabelings": [{"action": "LabelDrop", "regex": "pod"}]}},
        {
            "prometheusRule": {
                "additionalGroups": [{"name": "a", "partial_response_strategy": "warn", "rules": []}]
            }
        },
        {"networkPolicy": {"awsCidrs": ["0.0.0.0/0", "10.0.0.0/9", "192.0.2.255/32", "::/0", "fd00::1/128"]}},
    ],
)
def test_what_comes_close_to_a_mistake_is_taken(values: dict[str, Any]) -> None:
    assert takes(values)


TERM = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}
RULE = {"alert": "Mine", "expr": "up", "labels": {"team": "x"}, "annotations": {"summary": "x"}}
#: Maps whose keys are free, beyond those of the shape with everything on.
FREE_KEYS = {
    "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [TERM]}},
    "topologySpreadConstraints": [{"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", **TERM}],
    "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"app": "x"}}}]},
    "web": {"config": {"basic_auth_users": {"a": "$2y$10$" + "a" * 53}}},
    "prometheusRule": {"additionalGroups": [{"name": "mine", "labels": {"team": "x"}, "rules": [RULE]}]},
}


@pytest.mark.parametrize("word", ["y", "Yes", "on", "TRUE", "n", "No", "off", "false"])
def test_a_key_that_yaml_takes_for_a_boolean_is_refused(word: str) -> None:
    """Helm reads `on: x` as the key "true"."""
    assert not takes({"commonLabels": values_of(f"{word}: x")})


@pytest.mark.parametrize("boolean", ["true", "false"])
@pytest.mark.parametrize("values", [everything(), FREE_KEYS], ids=["everything", "free keys"])
def test_a_boolean_is_the_key_of_no_map(boolean: str, values: dict[str, Any]) -> None:
    assert SCHEMA.is_valid(values)
    for path in maps(values):
        mistaken = copy.deepcopy(values)
        found = at(mistaken, path)
        if path[:1] == ("extraManifests",) or not found:
            continue
        found[boolean] = next(iter(found.values()))  # of the kind that the map holds
        assert not SCHEMA.is_valid(mistaken), path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_helm_judges_configurations_as_the_schema_does(path: Path) -> None:
    name = path.name.partition(".")[0]
    # Helm adds the default targets to a configuration that has none, and takes null for "not given".
    if name in NO_VALUES | {"empty", "empty_lists"}:
        return
    plain = yaml.safe_load(path.read_text()) or {}
    if name.startswith("web_"):
        assert takes({"web": {"config": plain}}) == WEB.is_valid(plain)
    else:
        plain = json.loads(json.dumps(plain, default=str))
        assert takes({"config": plain}) == SETTINGS.is_valid(plain)


@settings(max_examples=75)
@given(documents)
def test_helm_judges_whatever_comes_as_the_schema_does(letter: dict[str, Any]) -> None:
    assert takes({"config": letter}) == SETTINGS.is_valid(letter)


@settings(max_examples=20)
@given(configurations)
def test_a_configuration_arrives_as_it_was_given(configuration: Settings) -> None:
    """Helm holds it as JSON and writes YAML of its own; texts, numbers and their size survive that."""
    text = to_yaml(configuration)
    anywhere = {"extraVolumeMounts": [{"name": "any", "mountPath": "/"}]}  # for a state file
    (rendered,) = one(objects({"config": yaml.safe_load(text)} | anywhere), "ConfigMap")["data"].values()
    assert config.parse(rendered) == configuration


# -- any combination -------------------------------------------------------------------------------

switch = st.booleans()
#: Labels that the chart selects by, whatever anybody sets them to.
RESERVED = ("name", "instance", "component")
labels = st.dictionaries(
    st.sampled_from(["team", "example.com/team", *(f"app.kubernetes.io/{key}" for key in RESERVED)]),
    st.sampled_from(["a", "B.c", "x" * 63, "", "metrics"]),
    max_size=2,
)
#: YAML takes some for something else.
names = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z") | st.sampled_from(
    ["y", "no", "null", "true"]
)
WEBS = [
    {},
    {"config": {"tls_server_config": {"cert_file": "a", "key_file": "b"}}, "certificateSecret": "c"},
    {"existingSecret": "web", "tls": True},
    {"config": {"basic_auth_users": {"a": "$2y$10$" + "a" * 53}}},
]
combinations = st.fixed_dictionaries(
    {},
    optional={
        "shards": st.integers(1, 20),
        "stateFile": st.fixed_dictionaries({"enabled": switch, "persistent": switch}),
        "autoReloadInterval": st.sampled_from(["0", "30s", "1h"]),
        "existingConfigMap": st.sampled_from(["", "mine"]),
        "existingConfigSecret": st.sampled_from(["", "mine"]),
        "web": st.sampled_from(WEBS),
        "nameOverride": names,
        "fullnameOverride": names,
        "namespaceOverride": names,
        "commonLabels": labels,
        "podLabels": labels,
        "serviceAccount": st.fixed_dictionaries({"create": switch}, optional={"name": names}),
        "aws": st.just({"region": "eu-west-1"}),
        "log": st.just({"level": "debug"}),
        "extraEnv": st.just([{"name": "A", "value": "b"}]),
        "service": st.sampled_from(
            [
                {"labels": {"app.kubernetes.io/component": "mine"}},
                {"type": "NodePort", "nodePort": 30000},
                {"clusterIP": "None"},
                {"port": 80},
            ]
        ),
        "startupProbe": st.fixed_dictionaries({"enabled": switch}),
        "livenessProbe": st.fixed_dictionaries({"enabled": switch}),
        "readinessProbe": st.fixed_dictionaries({"enabled": switch}),
        "serviceMonitor": st.fixed_dictionaries({"enabled": switch}, optional={"labels": labels}),
        "podMonitor": st.fixed_dictionaries({"enabled": switch}),
        "networkPolicy": st.fixed_dictionaries(
            {"enabled": switch}, optional={"from": st.just([{"podSelector": {}}])}
        ),
        "podDisruptionBudget": st.fixed_dictionaries(
            {"enabled": switch}, optional={"minAvailable": st.sampled_from([0, 1, "50%", ""])}
        ),
        "verticalPodAutoscaler": st.fixed_dictionaries({"enabled": switch}),
        "helmTest": st.fixed_dictionaries({"enabled": switch}),
        "prometheusRule": st.fixed_dictionaries(
            {"enabled": switch},
            optional={
                "labels": labels,
                "interval": st.sampled_from(["", "1m"]),
                "alerts": st.just({"ECRReplicationStuck": {"enabled": False}}),
            },
        ),
        "dashboard": st.fixed_dictionaries({"enabled": switch}, optional={"labels": labels}),
    },
).filter(lambda values: not (values.get("existingConfigMap") and values.get("existingConfigSecret")))
#: As Helm allows them: dots inside, a digit first, up to 53 characters.
releases = st.from_regex(r"\A[a-z0-9]([-a-z0-9.]{0,51}[a-z0-9])?\Z").filter(
    lambda name: not any(pair in name for pair in ("..", ".-", "-."))
)


EVERY_SELECTOR = {
    key: {"enabled": True}
    for key in "serviceMonitor podMonitor networkPolicy podDisruptionBudget verticalPodAutoscaler".split()
}


@settings(max_examples=50)
@given(combinations, releases)
@example({"shards": 2, "fullnameOverride": "x" * 63}, "demo")
@example({"shards": 2, "fullnameOverride": "x" * 51 + "--y"}, "demo")
@example({"web": WEBS[1]}, "1." + "r" * 51)
@example(EVERY_SELECTOR | {"shards": 2}, "demo")
@example(
    EVERY_SELECTOR
    | {"stateFile": {"enabled": True}, "commonLabels": {"app.kubernetes.io/component": "metrics"}},
    "demo",
)
@example(EVERY_SELECTOR | {"service": {"labels": {"app.kubernetes.io/component": "mine"}}}, "demo")
def test_any_combination_is_valid_and_belongs_together(values: dict[str, Any], release: str) -> None:
    found = objects(values, name=release)
    assert [problem for each in found for problem in problems(each)] == []
    assert [f"{each['kind']}{path}" for each in found for path in nothings(each)] == []
    assert breaches(pod(found)["spec"]) == []
    for each in found:
        name, own = each["metadata"]["name"], each["metadata"]["labels"]
        assert 0 < len(name) <= 63
        assert not name.endswith("-")
        assert each["kind"] != "Service" or (name[0].isalpha() and "." not in name)
        assert all(len(value) <= 63 for value in own.values())
        assert own["app.kubernetes.io/instance"] == release
    # The label controller-revision-hash of a StatefulSet's pods is its name and eleven characters.
    assert len(workload(found)["metadata"]["name"]) <= 52
    identities = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(identities) == len(set(identities))
    each_finds_what_it_needs(found)


def each_finds_what_it_needs(found: list[Object]) -> None:
    """Selectors select the pods, monitors the services, an autoscaler and a StatefulSet what they name."""
    by_kind: dict[str, list[Object]] = {}
    for each in found:
        by_kind.setdefault(each["kind"], []).append(each)
    ours = pod(found)["metadata"]["labels"]
    selectors = [workload(found)["spec"]["selector"]["matchLabels"]]
    selectors += [each["spec"]["selector"] for each in by_kind["Service"]]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in by_kind.get("PodDisruptionBudget", [])]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in by_kind.get("NetworkPolicy", [])]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in by_kind.get("PodMonitor", [])]
    assert all(selects(selector, ours) for selector in selectors)
    for test in by_kind.get("Pod", []):  # gets no scrapes, and no disruption budget counts it
        assert not any(selects(selector, test["metadata"]["labels"]) for selector in selectors)
    for monitor in by_kind.get("ServiceMonitor", []):
        selector = monitor["spec"]["selector"]["matchLabels"]
        scraped = [each for each in by_kind["Service"] if selects(selector, each["metadata"]["labels"])]
        assert len(scraped) == 1
        assert scraped[0]["spec"]["ports"][0]["name"] == monitor["spec"]["endpoints"][0]["port"]
        assert scraped[0]["metadata"]["namespace"] in monitor["spec"]["namespaceSelector"]["matchNames"]
    for autoscaler in by_kind.get("VerticalPodAutoscaler", []):
        target = autoscaler["spec"]["targetRef"]
        assert (target["kind"], target["name"]) == (
            workload(found)["kind"],
            workload(found)["metadata"]["name"],
        )
    if workload(found)["kind"] == "StatefulSet":
        headless = [each for each in by_kind["Service"] if each["metadata"]["name"].endswith("-headless")]
        assert [each["metadata"]["name"] for each in headless] == [workload(found)["spec"]["serviceName"]]
    whole_pod_fits(found, by_kind)


def whole_pod_fits(found: list[Object], by_kind: dict[str, list[Object]]) -> None:
    """Mounts have volumes, volumes have sources, flags name files that are mounted, ports have names."""
    spec = pod(found)["spec"]
    claims = [each["metadata"]["name"] for each in workload(found)["spec"].get("volumeClaimTemplates", [])]
    volumes = [each["name"] for each in spec["volumes"]] + claims
    mounts = {each["mountPath"]: each["name"] for each in container(found)["volumeMounts"]}
    assert sorted(mounts.values()) == sorted(volumes)
    for argument in container(found)["args"]:
        if ".file=" in argument:
            assert argument.partition("=")[2].rpartition("/")[0] in mounts
    accounts = [each["metadata"]["name"] for each in by_kind.get("ServiceAccount", [])]
    assert not accounts or spec["serviceAccountName"] == accounts[0]
    secrets = {each["metadata"]["name"] for each in by_kind.get("Secret", [])} | {"mine", "web", "c"}
    maps = {each["metadata"]["name"] for each in by_kind.get("ConfigMap", [])} | {"mine"}
    for volume in spec["volumes"]:
        assert volume.get("secret", {"secretName": "c"})["secretName"] in secrets
        assert volume.get("configMap", {"name": "mine"})["name"] in maps


LISTS = [[{"repository": "team/a"}], [{"repository": "team/b"}], [{"repository": "team/a", "latest": 3}]]


@settings(max_examples=20)
@given(combinations, st.sampled_from(LISTS), st.sampled_from(LISTS))
def test_a_change_of_the_configuration_restarts_only_where_nobody_reloads(
    values: dict[str, Any], before: Any, after: Any
) -> None:
    pods = [pod(objects(values | {"config": {"targets": targets}})) for targets in (before, after)]
    reloads = values.get("autoReloadInterval", "30s") != "0"
    elsewhere = values.get("existingConfigMap") or values.get("existingConfigSecret")
    assert (pods[0] == pods[1]) == bool(before == after or reloads or elsewhere)
    checksums = [each["metadata"].get("annotations", {}).get("checksum/config") for each in pods]
    assert (checksums[0] is None) == bool(reloads or elsewhere)
    assert (checksums[0] == checksums[1]) == (pods[0] == pods[1])


def test_nothing_but_the_configuration_changes_the_checksum() -> None:
    def checksum(**values: Any) -> str:
        annotations = pod(objects({"autoReloadInterval": "0", **values}))["metadata"]["annotations"]
        return str(annotations["checksum/config"])

    assert checksum() == checksum(log={"level": "debug"}, commonLabels={"a": "b"}, shards=1, web=WEBS[1])
    assert checksum() != checksum(config={"max_images": 5})


def test_the_values_of_the_readme_are_taken() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    for text in examples:
        assert problems(workload(objects(values_of(text)))) == []


def test_the_shortest_values_of_the_readme_scrape_and_alert() -> None:
    """Both are found by a Prometheus that selects by the label `release`, as kube-prometheus-stack's does."""
    found = re.search(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    assert found
    made = objects(values_of(found[1]))
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert one(made, kind)["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_image_of_the_readme_is_the_one_that_is_pulled() -> None:
    text = (CHART / "README.md").read_text()
    built = re.search(r"^docker build -t (\S+) \.$", text, re.MULTILINE)
    pushed = re.search(r"^docker push (\S+)$", text, re.MULTILINE)
    assert built
    assert pushed
    image = dict(re.findall(r"--set image\.(\w+)=(\S+)", text))
    assert container(objects({"image": image}))["image"] == built[1] == pushed[1]


def keys(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys below a map, maps included."""
    for key, each in node.items():
        yield (*path, key)
        if isinstance(each, dict):
            yield from keys(each, (*path, key))


DEFAULTS = values_of((CHART / "values.yaml").read_text())
#: What has no default that the chart could fall back to, and the words of the refusal.
NEEDED = {
    ("config",): "config is empty",
    ("config", "targets"): "missing property 'targets'",
    ("image",): "image.repository is empty",
    ("image", "repository"): "image.repository is empty",
    ("podSecurityContext", "seccompProfile", "type"): "missing property 'type'",
} | {
    ("prometheusRule", "alerts", alert, word): f"{alert}.{word} is null"
    for alert, knobs in DEFAULTS["prometheusRule"]["alerts"].items()
    for word in sorted(knobs.keys() - {"enabled", "severity", "for", "keepFiringFor"})
}
REMOVABLE = sorted(set(keys(DEFAULTS)) - NEEDED.keys())


def without(values: dict[str, Any], *paths: tuple[str, ...]) -> dict[str, Any]:
    """Values in which these keys are null. A key below one that is null is left out."""
    changed = copy.deepcopy(values)
    for path in sorted(paths, key=len, reverse=True):
        parent = changed
        for step in path[:-1]:
            parent = parent.setdefault(step, {})
        parent[path[-1]] = None
    return changed


def renders_well(values: dict[str, Any]) -> None:
    found = objects(values)
    assert [problem for each in found for problem in problems(each)] == []
    assert [f"{each['kind']}{path}" for each in found for path in nothings(each)] == []
    flags = container(found)["args"]
    assert [flag for flag in flags if flag.endswith(("=", ":", "/"))] == []
    text = json.dumps(found)
    assert [word for word in ("<nil>", "%!", "<no value>") if word in text] == []


SHAPES = pytest.mark.parametrize("shape", [{}, everything()], ids=["defaults", "everything"])


def test_what_null_falls_back_to_is_the_default() -> None:
    """The templates repeat the defaults that the exporter needs."""
    kept = {
        "existingConfigMap": "mine",
        "image": {"repository": "exporter"},
        "extraManifests": ["{{ toJson .Values }}"],
    }
    removed = [path for path in keys(DEFAULTS) if path[0] not in kept or path == ("image", "pullPolicy")]
    (filled,) = yaml.safe_load_all(render(without(kept, *removed))["extra-manifests.yaml"])
    paths = [
        path for path in keys(filled) if path in removed and not isinstance(at(filled, path), dict | None)
    ]
    assert {path: at(filled, path) for path in paths} == {path: at(DEFAULTS, path) for path in paths}
    assert {("service", "port"), ("image", "pullPolicy"), ("stateFile", "mountPath")} <= set(paths)


def test_what_a_parent_chart_sets_may_be_null() -> None:
    for nothing in ({"enabled": None, "global": None}, {"global": {"imageRegistry": None}}):
        renders_well(nothing)


@SHAPES
def test_null_removes_any_section(shape: dict[str, Any]) -> None:
    for section in DEFAULTS.keys() - {"config", "image"}:
        renders_well(without(shape, (section,)))


@SHAPES
@settings(max_examples=20)
@given(paths=st.sets(st.sampled_from(REMOVABLE), min_size=1, max_size=40))
def test_null_removes_any_default(shape: dict[str, Any], paths: set[tuple[str, ...]]) -> None:
    budget = {("podDisruptionBudget", key) for key in ("minAvailable", "maxUnavailable")}
    if budget <= paths:  # one of them is needed: test_chart_checks.py
        paths -= {("podDisruptionBudget", "maxUnavailable")}
    try:
        renders_well(without(shape, *paths))
    except helm_python.HelmError as error:
        # What is left may contradict itself, as web.tls without TLS. Helm begins only such a sentence of the
        # chart so, never an error inside a template.
        assert "execution error at" in str(error)  # noqa: PT017 - rendering well is fine too


@pytest.mark.parametrize(("path", "message"), NEEDED.items(), ids=[".".join(path) for path in NEEDED])
def test_null_for_what_is_needed_is_refused_by_name(path: tuple[str, ...], message: str) -> None:
    """By the schema, or by a sentence of the chart: never by an error inside a template."""
    values = without({"prometheusRule": {"enabled": True}, "image": {"repository": "a"}}, path)
    with pytest.raises(helm_python.HelmError, match=re.escape(message)):
        loaded().render(values)


def test_the_exporter_refuses_what_only_it_can_tell() -> None:
    """The schema's blind spots do not get past --config.check, nor past a reload."""
    lost = {"targets": [{"repository": "team/app", "registries": ["nowhere"]}]}
    (text,) = one(objects({"config": lost}), "ConfigMap")["data"].values()
    with pytest.raises(ConfigError, match="is not the name of a registry"):
        config.parse(text)
