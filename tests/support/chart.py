"""The chart on Helm's own engine, and what any cluster would say of the objects that come out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from helm_python import _native
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry, Resource

CHART = Path(__file__).parents[2] / "helm" / "ecr-replication-exporter"
SHAPES = sorted(CHART.glob("ci/*-values.yaml"))
#: The oldest that Chart.yaml allows, and the newest that is known.
RELEASES = ("1.29.0", kubernetes_validate.latest_version())
#: Published by others than Kubernetes; for these no package has the types.
UNPUBLISHED = {"VerticalPodAutoscaler", "Certificate"}

Object = dict[str, Any]


def values_of(text: str) -> dict[str, Any]:
    """Values as Helm reads them from a file."""
    return helm_python.values_from_yaml(text)


@cache
def loaded() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(
    values: Mapping[str, Any],
    *,
    name: str = "demo",
    namespace: str = "monitoring",
    apis: tuple[str, ...] = ("autoscaling.k8s.io/v1",),
) -> dict[str, str]:
    """Template -> its text, in a cluster that knows these additional APIs.

    The package's own `render` leaves the APIs out, which the library below it takes.
    """
    image = {"repository": "registry.example/exporter"} | (values.get("image") or {})
    values = {**values, "image": image}
    options = {"name": name, "namespace": namespace, "api_versions": list(apis)}
    text = _native.call_string("helm_render", loaded()._raw(), json.dumps(values), json.dumps(options))
    return {Path(path).name: text for path, text in json.loads(text).items()}


def objects(values: Mapping[str, Any], *, name: str = "demo", namespace: str = "monitoring") -> list[Object]:
    """What would be sent to Kubernetes."""
    texts = render(values, name=name, namespace=namespace)
    files = (text for file, text in texts.items() if file != "NOTES.txt")
    return [each for text in files for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def one(found: list[Object], kind: str) -> Object:
    (match,) = [each for each in found if each["kind"] == kind]
    return match


def workload(found: list[Object]) -> Object:
    (match,) = [each for each in found if each["kind"] in ("Deployment", "StatefulSet")]
    return match


def pod(found: list[Object]) -> Object:
    template: Object = workload(found)["spec"]["template"]
    return template


def container(found: list[Object]) -> Object:
    first: Object = pod(found)["spec"]["containers"][0]
    assert first["name"] == "exporter"
    return first


# -- published types -------------------------------------------------------------------------------


@cache
def _kubernetes(release: str, kind: str, api: str) -> Validator:
    """Strict: what Kubernetes does not know is an error, not ignored."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{release}-local-strict"
    short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    schema = json.loads((folder / f"{kind.lower()}-{short}.json").read_text())
    return Draft202012Validator(schema, registry=_definitions(folder))


@cache
def _definitions(folder: Path) -> Registry[Any]:
    contents = json.loads((folder / "_definitions.json").read_text())
    definitions: Resource[Any] = Resource.from_contents(contents)
    registry: Registry[Any] = definitions @ Registry()
    return registry


@cache
def _monitoring(kind: str) -> Validator:
    # Its import takes five seconds of processor time, which each process of the tests would spend.
    from cloudcoil.models.prometheus_operator import v1 as prometheus_operator  # noqa: PLC0415

    schema = getattr(prometheus_operator, kind).model_json_schema()
    return Draft202012Validator(_strict(schema))


def _strict(node: Any) -> Any:
    """An unknown key is an error wherever the keys are known; metadata is Kubernetes' own affair."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(each) for key, each in node.items()}
    return {"additionalProperties": False} | strict if "properties" in node else strict


def problems(thing: Object) -> list[str]:
    """What the published types say against an object."""
    return list(_problems(json.dumps(thing)))


@cache
def _problems(text: str) -> tuple[str, ...]:
    """Of an object as JSON. Most objects are rendered again and again, and a check takes long."""
    thing = json.loads(text)
    kind, api = thing["kind"], thing["apiVersion"]
    if kind in UNPUBLISHED:
        return ()
    validators = (
        [_monitoring(kind)]
        if api.startswith("monitoring.coreos.com/")
        else [_kubernetes(release, kind, api) for release in RELEASES]
    )
    found = [error for validator in validators for error in validator.iter_errors(thing)]
    return tuple(f"{kind}: {error.json_path}: {error.message}" for error in found)


# -- what no type says -----------------------------------------------------------------------------


def nothings(node: Any, path: str = "") -> Iterator[str]:
    """The paths of nulls: a template wrote a key and no value."""
    if node is None:
        yield path
    elif isinstance(node, dict):
        for key, each in node.items():
            yield from nothings(each, f"{path}.{key}")
    elif isinstance(node, list):
        for number, each in enumerate(node):
            yield from nothings(each, f"{path}[{number}]")


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def breaches(spec: Object) -> list[str]:
    """What of a pod's specification the Pod Security Standard "restricted" forbids."""
    whole = spec.get("securityContext", {})
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for each in [*spec.get("initContainers", []), *spec["containers"]]:
        own = each.get("securityContext", {})
        merged = whole | own
        capabilities = own.get("capabilities", {})
        rules = {
            "runAsNonRoot": merged.get("runAsNonRoot") is True,
            "runAsUser": merged.get("runAsUser") != 0,
            "seccompProfile": merged.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged"),
            "capabilities": capabilities.get("drop") == ["ALL"] and not capabilities.get("add"),
        }
        found += [f"{each['name']}: {rule}" for rule, kept in rules.items() if not kept]
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}
    allowed |= {"projected", "secret", "name"}
    return found + [
        f"volume {each['name']}" for each in spec.get("volumes", []) if not each.keys() <= allowed
    ]
