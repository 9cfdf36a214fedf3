"""What the chart refuses by itself, as no schema can: each with the remedy, before anything is sent."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest
from support.chart import container, objects, one, pod, values_of, workload

from exporter.config import settings as config

STATE = "config: {state_file: /data/exporter/state}\n"
VOLUME = "extraVolumes: [{name: data, persistentVolumeClaim: {claimName: data}}]\n"
CERTIFICATE = "web: {certificateSecret: exporter-certificate}"


def mount(path: str, extra: str = "") -> str:
    return f'{VOLUME}extraVolumeMounts: [{{name: data, mountPath: "{path}"{extra}}}]\n'


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("existingConfigMap: a\nexistingConfigSecret: b", "leave the other empty"),
        (STATE, "leave it out and set stateFile.enabled"),
        (STATE + "stateFile: {enabled: true}", "config.state_file is /data/exporter/state"),
        (STATE + "shards: 2", "or mount a volume with extraVolumes and extraVolumeMounts"),
        (STATE + mount("/data/export"), "config.state_file"),
        (STATE + mount("/data/exporter/state"), "config.state_file"),
        (STATE + mount("/data", ", readOnly: true"), "config.state_file"),
        ("config: {state_file: /var/lib/ecr-replication-exporter/../state}\nshards: 2", "config.state_file"),
        ("web: {tls: true}", "name a Secret that does in web.existingSecret"),
        ("web: {tls: true, config: {http_server_config: {headers: {X-Frame-Options: deny}}}}", "web.tls is"),
        (CERTIFICATE, "name its files in web.config.tls_server_config"),
        (
            'podDisruptionBudget: {enabled: true, maxUnavailable: ""}',
            "neither minAvailable nor maxUnavailable",
        ),
        ("podDisruptionBudget: {enabled: true, maxUnavailable: null}", "give one of them a number"),
        ("shards: 2\nextraEnv: [{name: POD_NAME, value: a-0}]", "extraEnv: POD_NAME is set twice"),
        ("aws: {region: us-east-1}\nextraEnv: [{name: AWS_REGION, value: a}]", "AWS_REGION is set twice"),
        ("extraEnv: [{name: A, value: a}, {name: A, value: b}]", "extraEnv: A is set twice"),
        ("extraVolumes: [{name: config, emptyDir: {}}]", "extraVolumes: config is set twice"),
        (mount("/etc/ecr-replication-exporter/config/"), "ecr-replication-exporter/config is set twice"),
        ("shards: 2\nstateFile: {mountPath: /etc/ecr-replication-exporter/config}", "config is set twice"),
        ("extraContainers: [{name: exporter, image: a}]", "extraContainers: exporter is set twice"),
        ("initContainers: [{name: exporter, image: a}]", "extraContainers: exporter is set twice"),
        (
            "podMonitor: {basicAuth: {username: {name: a, key: b}}, authorization: {type: Bearer}}",
            "podMonitor has basicAuth and authorization",
        ),
        (
            "prometheusRule: {enabled: true, additionalGroups: [{name: ecr-replication, rules: []}]}",
            "ecr-replication is the name of another group",
        ),
    ],
)
def test_what_would_fail_later_is_refused_with_the_remedy(values: str, said: str) -> None:
    with pytest.raises(helm_python.HelmRenderError) as refused:
        objects(values_of(values))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("values", "path"),
    [
        (STATE + mount("/data"), "/data/exporter/state"),
        (STATE + mount("/data/exporter/"), "/data/exporter/state"),
        (STATE + mount("/{{ `data` }}"), "/data/exporter/state"),
        (STATE + "stateFile: {enabled: true, mountPath: /data}", "/data/exporter/state"),
        ("stateFile: {enabled: true, mountPath: /data/}", "/data//state"),
    ],
)
def test_a_state_file_of_ones_own_stays_where_a_volume_is(values: str, path: str) -> None:
    text = one(objects(values_of(values)), "ConfigMap")["data"]["config.yaml"]
    assert config.parse(text).state_file == path


@pytest.mark.parametrize("values", [STATE + "existingConfigMap: mine", STATE + "existingConfigSecret: mine"])
def test_a_configuration_that_is_not_used_is_not_judged(values: str) -> None:
    assert not any(each["kind"] == "ConfigMap" for each in objects(values_of(values)))


@pytest.mark.parametrize("web", [{"tls": True}, {"certificateSecret": "c"}])
def test_a_web_configuration_by_a_flag_counts(web: dict[str, Any]) -> None:
    flag = "--web.config.file=/web/config.yaml"
    assert flag in container(objects({"web": web, "extraArgs": [flag]}))["args"]


@pytest.mark.parametrize(
    ("key", "values", "made"),
    [
        ("strategy", {"strategy": {"type": "Recreate"}}, {"type": "Recreate"}),
        ("updateStrategy", {"shards": 2, "updateStrategy": {"type": "OnDelete"}}, {"type": "OnDelete"}),
        (
            "updateStrategy",
            {"shards": 2, "updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}}},
            {"type": "OnDelete"},
        ),
        (
            "strategy",
            {"strategy": {"rollingUpdate": {"maxSurge": 2}}},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}},
        ),
    ],
)
def test_an_update_has_the_fields_of_its_type(key: str, values: dict[str, Any], made: dict[str, Any]) -> None:
    """Kubernetes refuses `rollingUpdate`, which has defaults here, beside another type."""
    assert workload(objects(values))["spec"][key] == made


HTTP = {"httpGet": {"httpHeaders": [{"name": "Authorization", "value": "Basic YTpi"}]}}


@pytest.mark.parametrize(
    "handler",
    [{"grpc": {"port": 1}}, {"exec": {"command": ["true"]}}, {"tcpSocket": {"port": "http"}}],
    ids=lambda handler: next(iter(handler)),
)
@pytest.mark.parametrize("before", [{}, HTTP], ids=["alone", "over an httpGet"])
def test_a_probe_has_one_handler(handler: dict[str, Any], before: dict[str, Any]) -> None:
    keys = ("startupProbe", "livenessProbe", "readinessProbe")
    probes = {key: {"enabled": True, **before, **handler} for key in keys}
    made = container(objects(probes))
    for key in keys:
        found = {name: each for name, each in made[key].items() if isinstance(each, dict)}
        assert found == handler


@pytest.mark.parametrize("never", ["0", "0s", "0m", "0h", "0ms", "0d", "0w", "0y", "0h0m"])
def test_any_nought_means_no_reload_and_a_restart(never: str) -> None:
    found = objects({"autoReloadInterval": never})
    assert not any(each.startswith("--config.auto-reload") for each in container(found)["args"])
    assert "checksum/config" in pod(found)["metadata"]["annotations"]


@pytest.mark.parametrize("often", ["1s", "10m", "1h30m", "1d"])
def test_what_is_not_nought_is_handed_on(often: str) -> None:
    found = objects({"autoReloadInterval": often})
    assert f"--config.auto-reload-interval={often}" in container(found)["args"]
    assert "annotations" not in pod(found)["metadata"]
