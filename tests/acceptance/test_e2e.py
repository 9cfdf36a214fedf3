"""The installed command: demo, configuration, a real Prometheus and failures of AWS."""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import PATIENCE, Command, ask, environment, eventually, run, running, system_program
from support.embedded_aws import DropConnection, EmbeddedAWS, Fault

import exporter
from exporter.demo import ACCOUNT, REGION, Call, Refuse

EVERY_STATE = {"COMPLETE", "IN_PROGRESS", "FAILED", "MISSING"}
FAST = """
discovery_interval: 1s
pending_interval: 1s
failed_interval: 2s
settled_interval: 1m
replica_interval: 0s
requests_per_second: 100
"""
#: Destinations.
IRELAND = {"region": "eu-west-1", "registryId": ACCOUNT}
OREGON = {"region": "us-west-2", "registryId": ACCOUNT}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with running(tmp_path_factory.mktemp("demo"), "--demo", "--web.enable-lifecycle") as command:
        yield command


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS() as aws:
        aws.set_rules(ACCOUNT, REGION, [{"destinations": [IRELAND]}])
        for repository in ("team/app", "team/api"):
            aws.create_repository(ACCOUNT, REGION, repository)
            aws.push(ACCOUNT, REGION, repository, "v1")
        yield aws


@pytest.fixture
def credentials(aws: EmbeddedAWS) -> dict[str, str]:
    keys = aws.session().get_credentials()
    assert keys is not None
    return {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": aws.endpoint_url,
    }


def configured(tmp_path: Path, text: str) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return f"--config.file={file}"


# -- the demo --------------------------------------------------------------------------------------


def test_the_demo_shows_every_state_within_twenty_seconds(demo: Command) -> None:
    eventually(lambda: demo.statuses() >= EVERY_STATE, within=20)
    eventually(lambda: ask(f"{demo.url}/-/ready").status == 200)
    codes = {labels["failure_code"] for labels, _ in demo.series("ecr_image_replication_failure_info")}
    assert codes == {"DESTINATION_REGISTRY_ACCESS_DENIED"}
    eventually(lambda: demo.series("ecr_image_replication_duration_seconds_count"))
    eventually(lambda: demo.series("ecr_repository_replica_settings_differ"), within=20)
    ((lost, _),) = demo.series("ecr_repository_replica_settings_differ")
    assert (lost["repository"], lost["region"], lost["setting"]) == (
        "platform/base",
        "eu-west-1",
        "scan_on_push",
    )


def test_promtool_accepts_the_page(demo: Command) -> None:
    promtool = system_program("promtool", package="prometheus")
    eventually(lambda: demo.statuses() >= EVERY_STATE)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=demo.page(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_real_prometheus_scrapes_it(demo: Command, tmp_path: Path) -> None:
    prometheus = system_program("prometheus", package="prometheus")
    config = tmp_path / "prometheus.json"
    target = demo.url.removeprefix("http://")
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                "scrape_configs": [{"job_name": "ecr", "static_configs": [{"targets": [target]}]}],
            }
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = (tmp_path / "prometheus.log").open("w")
    process = subprocess.Popen(
        [
            prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
        ],
        stderr=log,
    )

    def query(expression: str) -> list[dict[str, str]]:
        url = f"http://{address}/api/v1/query?query={urllib.parse.quote(expression)}"
        try:
            return [row["metric"] for row in json.loads(ask(url).body)["data"]["result"]]
        except (OSError, ValueError):
            return []  # Prometheus has not started yet

    try:
        eventually(lambda: query('up{job="ecr"} == 1'))
        states = eventually(
            lambda: [
                *filter(
                    lambda rows: {row["status"] for row in rows} >= EVERY_STATE,
                    [query("ecr_image_replication_status == 1")],
                )
            ]
        )
        assert all(row["source_registry_id"] == ACCOUNT for row in states[0])
        joined = (
            'ecr_image_replication_status{status="FAILED", tag!=""} == 1'
            " and on (repository, tag, source_registry_id, source_region) ecr_image_info"
        )
        assert query(joined)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        log.close()


def test_the_pages(demo: Command) -> None:
    assert "/metrics" in ask(demo.url).body
    assert ask(f"{demo.url}/-/healthy").status == 200
    assert "discovery_interval" in ask(f"{demo.url}/config").body
    assert ask(f"{demo.url}/nowhere").status == 404
    assert ask(f"{demo.url}/-/reload", method="POST").status == 200
    assert ask(f"{demo.url}/-/reload").status == 405
    assert "# EOF" not in demo.page()


def test_the_demo_needs_no_environment_and_writes_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with running(tmp_path, "--demo", HOME=str(home), AWS_PROFILE="unknown") as command:
        eventually(lambda: command.statuses() >= EVERY_STATE)
        assert list(home.iterdir()) == []
        assert "level=error" not in command.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_with_0_within_five_seconds(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, "--demo") as command:
        code, seconds = command.stop(number)
        assert (code, seconds < 5) == (0, True)
        assert "Traceback" not in command.log()


def test_it_stops_in_time_while_aws_hangs(tmp_path: Path, credentials: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        credentials["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        file = configured(tmp_path, "targets: [{repository: team/*}]")
        with running(tmp_path, file, **credentials) as command:
            connection, _ = silent.accept()
            code, seconds = command.stop()
            connection.close()
            assert (code, seconds < 5) == (0, True)


def test_quit(tmp_path: Path) -> None:
    with running(tmp_path, "--demo", "--web.enable-lifecycle") as command:
        assert ask(f"{command.url}/-/quit", method="POST").status == 200
        assert command.process.wait(PATIENCE) == 0


# -- flags and configuration -----------------------------------------------------------------------

SIX_MISTAKES = """\
registries:
  - name: prod
    region: nowhere
  - name: prod
    external_id: s3cr3t-planted
targets:
  - repository: team/app
    tag: v1
    digest: sha256:123
  - repositry: team/api
  - repository: team/*
    pushed_within: 30 days
  - repository: team/web
    registries: [stage]
"""


@pytest.mark.parametrize("check", [["--config.check"], []], ids=["check", "start"])
def test_all_mistakes_are_named_with_their_places(tmp_path: Path, check: list[str]) -> None:
    done = run(configured(tmp_path, SIX_MISTAKES), *check)
    assert done.returncode == 2
    for place in (
        "registries[0].region",
        "registries[1].name",
        "registries[1].external_id",
        "targets[0]",
        "targets[1].repositry",
        "targets[2].pushed_within",
        "targets[3].registries[0]",
    ):
        assert place in done.stderr
    assert "Traceback" not in done.stderr
    assert "planted" not in done.stderr


def test_a_check_of_a_good_configuration_prints_one_line(tmp_path: Path) -> None:
    done = run(configured(tmp_path, "targets: [{repository: team/*}]"), "--config.check", AWS_REGION=REGION)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_the_metric_of_a_web_configuration_exists_with_the_flag_only(demo: Command, tmp_path: Path) -> None:
    name = "ecr_replication_exporter_web_config_last_reload_successful"
    assert demo.series(name) == []
    file = tmp_path / "web.yaml"
    file.write_text("")
    with running(tmp_path, "--demo", f"--web.config.file={file}") as command:
        assert command.series(name) == [({}, 1)]
        file.write_text("oops: 1\n")
        assert command.series(name) == [({}, 0)]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--no.such.flag"], 2, "--no.such.flag"),
        (["--config.file=/nowhere/config.yaml"], 2, "/nowhere/config.yaml"),
        (["--demo", "--web.config.file=/nowhere/web.yaml"], 2, "/nowhere/web.yaml"),
        (["--demo", "--web.listen-address=192.0.2.1:10042"], 1, "192.0.2.1:10042"),
    ],
)
def test_a_failed_start_logs_one_line(flags: list[str], code: int, message: str) -> None:
    done = run(*flags)
    assert done.returncode == code, done.stderr
    error = [line for line in done.stderr.splitlines() if "demo_started" not in line]
    assert len(error) == 1
    assert message in error[0]


def test_a_taken_port_is_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("--demo", f"--web.listen-address={address}")
    assert done.returncode == 1
    assert address in done.stderr
    assert "Traceback" not in done.stderr


def test_no_region_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    done = run(configured(tmp_path, "targets: [{repository: team/*}]"))
    assert done.returncode == 2
    assert "AWS_REGION" in done.stderr


def test_an_unknown_profile_is_one_line(tmp_path: Path) -> None:
    file = configured(tmp_path, "targets: [{repository: team/*}]")
    done = run(file, AWS_PROFILE="unknown", AWS_REGION=REGION)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "unknown" in done.stderr


def test_the_version() -> None:
    assert exporter.__version__ in run("--version").stdout


def test_the_installed_script_is_the_command() -> None:
    script = Path(sys.executable).with_name("ecr-replication-exporter")
    if not script.exists():
        pytest.skip("the package is not installed: make test")
    done = subprocess.run(
        [script, "--version"], capture_output=True, text=True, check=True, env=environment()
    )
    assert exporter.__version__ in done.stdout


# -- reload ----------------------------------------------------------------------------------------


def test_a_reload_accepts_a_good_file_and_refuses_a_bad_one(
    tmp_path: Path, credentials: dict[str, str]
) -> None:
    file = configured(tmp_path, f"targets: [{{repository: team/app}}]\n{FAST}")
    with running(tmp_path, file, "--web.enable-lifecycle", **credentials) as command:
        eventually(lambda: command.statuses(repository="team/app"))
        configured(tmp_path, f"targets: [{{repository: team/*}}]\n{FAST}")
        command.process.send_signal(signal.SIGHUP)
        eventually(lambda: command.statuses(repository="team/api"))
        configured(tmp_path, "targets: []")
        answer = ask(f"{command.url}/-/reload", method="POST")
        assert answer.status == 500
        assert "targets" in answer.body
        assert command.series("ecr_replication_exporter_config_last_reload_successful") == [({}, 0)]
        assert command.statuses(repository="team/api")
        configured(tmp_path, f"targets: [{{repository: team/api}}]\n{FAST}")
        assert ask(f"{command.url}/-/reload", method="POST").status == 200
        assert command.series("ecr_replication_exporter_config_last_reload_successful") == [({}, 1)]
        assert not command.statuses(repository="team/app")


def mounted(tmp_path: Path, version: str, text: str) -> Path:
    """Write a configuration as a mounted ConfigMap: Kubernetes replaces a link to a folder."""
    folder = tmp_path / version
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    (tmp_path / "fresh").symlink_to(folder)
    (tmp_path / "fresh").rename(tmp_path / "..data")
    if not (file := tmp_path / "config.yaml").is_symlink():
        file.symlink_to(Path("..data") / "config.yaml")
    return file


def test_a_changed_mounted_file_is_reloaded(tmp_path: Path, credentials: dict[str, str]) -> None:
    def successful() -> float:
        return command.series("ecr_replication_exporter_config_last_reload_successful")[0][1]

    file = mounted(tmp_path, "1", f"targets: [{{repository: team/app}}]\n{FAST}")
    flags = (f"--config.file={file}", "--config.auto-reload-interval=1s")
    with running(tmp_path, *flags, **credentials) as command:
        eventually(lambda: command.statuses(repository="team/app"))
        mounted(tmp_path, "2", f"targets: [{{repository: team/*}}]\n{FAST}")
        eventually(lambda: command.statuses(repository="team/api"))
        mounted(tmp_path, "3", "targets: []")
        eventually(lambda: successful() == 0)
        assert command.statuses(repository="team/api")
        (tmp_path / "..data").unlink()
        eventually(lambda: "cannot be read" in command.log())
        mounted(tmp_path, "4", f"targets: [{{repository: team/api}}]\n{FAST}")
        eventually(lambda: successful() == 1)
        eventually(lambda: not command.statuses(repository="team/app"))
        assert command.log().count("config_reloaded") == 2
        assert command.log().count("config_invalid") == 2, "one report for each bad file"


# -- failures of AWS -------------------------------------------------------------------------------


def only(operation: str, repository: str, fault: Fault) -> object:
    def choose(call: Call) -> Fault | None:
        hit = call.operation == operation and call.params.get("repositoryName") in (repository, None)
        return fault if hit else None

    return choose


def test_a_revoked_permission_is_reported_and_affects_no_other_target(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    targets = "targets: [{repository: team/app}, {repository: team/api}]"
    with running(tmp_path, configured(tmp_path, targets + FAST), **credentials) as command:
        eventually(lambda: command.series("ecr_target_success", target="team/app"))
        aws.fault = only("DescribeImages", "team/app", Refuse(400, "AccessDeniedException", "no"))  # type: ignore[assignment]
        eventually(
            lambda: command.series("ecr_target_failure_info", target="team/app", reason="access_denied")
        )
        assert command.series("ecr_target_success", target="team/api")[0][1] == 1
        assert command.statuses(repository="team/app"), "the last status stays"
        digest = aws.push(ACCOUNT, REGION, "team/api", "v2")
        eventually(lambda: command.statuses(repository="team/api", tag="v2") == {"COMPLETE"})
        assert command.series("ecr_image_info", digest=digest)
        lines = [line for line in command.log().splitlines() if "access_denied" in line]
        assert [re.findall(r"msg=(\w+)", line) for line in lines] == [
            ["aws_request_failed"],
            ["target_failed"],
        ]
        assert "ecr:DescribeImages" in lines[0]
        aws.fault = lambda _: None
        eventually(lambda: not command.series("ecr_target_failure_info"), within=90)
        eventually(lambda: "msg=recovered" in command.log())


def test_the_series_of_a_deleted_repository_disappear(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    targets = "targets: [{repository: team/app, tag: v1}, {repository: team/*}]"
    with running(tmp_path, configured(tmp_path, targets + FAST), **credentials) as command:
        eventually(lambda: command.statuses(repository="team/app"))
        eventually(lambda: command.statuses(repository="team/api"))
        aws.delete_repository(ACCOUNT, REGION, "team/app")
        reason = {"target": "team/app:v1", "reason": "repository_not_found"}
        eventually(lambda: command.series("ecr_target_failure_info", **reason))
        assert not command.series("ecr_image_replication_status", repository="team/app")
        assert command.statuses(repository="team/api")
        lines = [line for line in command.log().splitlines() if "repository_not_found" in line]
        assert len([line for line in lines if "msg=aws_request_failed" in line]) == 1


def test_statuses_stay_during_a_network_failure(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    config = f"targets: [{{repository: team/*}}]\n{FAST}"
    with running(tmp_path, configured(tmp_path, config), **credentials) as command:
        eventually(lambda: command.statuses() == {"COMPLETE"})
        aws.fault = lambda _: DropConnection()
        eventually(lambda: command.series("ecr_target_failure_info", reason="unavailable"))
        assert command.statuses() == {"COMPLETE"}
        assert ask(f"{command.url}/-/healthy").status == 200
        # A line that the registry is out of reach, and soon one that the target fails.
        failures = [line for line in command.log().splitlines() if "msg=aws_request_failed" in line]
        assert len(failures) == 1
        aws.fault = lambda _: None
        eventually(lambda: not command.series("ecr_target_failure_info"), within=60)


def test_a_status_that_is_not_known_has_its_own_name(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    digest = aws.push(ACCOUNT, REGION, "team/app", "odd")
    aws.set_status(ACCOUNT, REGION, "team/app", digest, [IRELAND | {"status": "TELEPORTED"}, OREGON])
    config = f"targets: [{{repository: team/*}}]\n{FAST}"
    with running(tmp_path, configured(tmp_path, config), **credentials) as command:
        eventually(lambda: command.statuses(tag="odd", region="eu-west-1") == {"TELEPORTED"})
        assert command.statuses(tag="odd", region="us-west-2") == {"UNKNOWN"}
        eventually(lambda: command.statuses(tag="v1") == {"COMPLETE"})
        assert command.log().count("TELEPORTED") == 1


def test_several_accounts_through_roles(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    other = "444455556666"
    aws.set_rules(other, "eu-west-1", [{"destinations": [OREGON]}])
    aws.create_repository(other, "eu-west-1", "team/app")
    aws.push(other, "eu-west-1", "team/app", "theirs")
    config = f"""
registries:
  - name: home
  - name: theirs
    region: eu-west-1
    role_arn: arn:aws:iam::{other}:role/reader
    external_id: planted-secret
targets: [{{repository: team/*}}]
{FAST}"""
    file = configured(tmp_path, config)
    with running(tmp_path, file, "--log.level=debug", **credentials) as command:
        eventually(lambda: command.statuses(source_registry_id=other, tag="theirs"))
        eventually(lambda: command.statuses(source_registry_id=ACCOUNT, tag="v1"))
        assert aws.count("AssumeRole") == 1
        for text in (command.log(), command.page(), ask(f"{command.url}/config").body):
            assert "planted-secret" not in text


def test_readiness_does_not_wait_for_images_and_success_does(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    """At few calls a second. Kubernetes ends a rollout that is not ready after ten minutes."""
    for number in range(100):
        aws.push(ACCOUNT, REGION, "team/app", f"build-{number}")
    config = configured(
        tmp_path, "targets: [{repository: team/*}]\nreplica_interval: 0s\nrequests_per_second: 5\n"
    )
    with running(tmp_path, config, **credentials) as command:
        eventually(lambda: ask(f"{command.url}/-/ready").status == 200)
        eventually(lambda: aws.count("DescribeImageReplicationStatus"))
        assert ask(f"{command.url}/-/ready").status == 200
        assert command.series("ecr_target_success") == []
        assert aws.count("DescribeImageReplicationStatus") < 102
        configured(tmp_path, f"targets: [{{repository: team/*}}]\n{FAST}")
        command.process.send_signal(signal.SIGHUP)
        eventually(lambda: [value for _, value in command.series("ecr_target_success")] == [1])
        assert aws.count("DescribeImageReplicationStatus") >= 102


def test_a_copy_is_not_missing_on_the_way_back(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    """Two registries replicate to each other, and ECR reports nothing of a copy."""
    other, home = IRELAND["region"], {"region": REGION, "registryId": ACCOUNT}
    aws.create_repository(ACCOUNT, other, "team/app")
    aws.set_rules(ACCOUNT, other, [{"destinations": [home]}])
    image = aws.push(ACCOUNT, REGION, "team/app", "v2")
    for tag, digest in (("v2", image), ("lost", None)):
        copy = aws.push(ACCOUNT, other, "team/app", tag, digest=digest, delay=lambda _: math.inf)
        aws.set_status(ACCOUNT, other, "team/app", copy, [])
    config = configured(
        tmp_path,
        f"registries: [{{region: {REGION}}}, {{region: {other}}}]\ntargets: [{{repository: team/*}}]\n{FAST}",
    )
    with running(tmp_path, config, **credentials) as command:
        eventually(lambda: command.statuses(source_region=other, tag="v2") == {"COMPLETE"})
        eventually(lambda: [value for _, value in command.series("ecr_target_success")] == [1, 1])
        assert command.statuses(source_region=other, tag="v2") == {"COMPLETE"}
        assert command.statuses(source_region=other, tag="lost") == {"MISSING"}


# -- restarts and shards ---------------------------------------------------------------------------


def test_settled_images_survive_a_stop_and_a_kill(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    state = tmp_path / "state"
    config = configured(tmp_path, f"targets: [{{repository: team/*}}]\nstate_file: {state}\n{FAST}")

    def calls() -> int:
        return aws.count("DescribeImageReplicationStatus")

    def both_shown(command: Command) -> bool:
        return len(command.series("ecr_image_replication_status", status="COMPLETE")) == 2

    with running(tmp_path, config, **credentials) as command:
        eventually(lambda: command.statuses() == {"COMPLETE"} and both_shown(command))
        assert command.stop()[0] == 0
    before = calls()
    with running(tmp_path, config, **credentials) as command:
        eventually(lambda: command.statuses() == {"COMPLETE"} and both_shown(command))
        eventually(lambda: ask(f"{command.url}/-/ready").status == 200)
        assert calls() == before
        command.process.kill()
    with running(tmp_path, config, **credentials) as command:
        eventually(lambda: command.statuses() == {"COMPLETE"} and both_shown(command))
        assert calls() == before
        command.process.kill()
    state.write_bytes(state.read_bytes()[:-9])
    with running(tmp_path, config, **credentials) as command:
        eventually(lambda: command.statuses() == {"COMPLETE"} and both_shown(command))
        assert calls() == before + 2
        assert command.log().count("state_file_unusable") == 1
        (found,) = command.series("ecr_replication_exporter_state_file_failures_total", operation="read")
        assert found[1] == 1


def test_shards_take_their_ordinal_from_the_pod_and_share_the_images(
    tmp_path: Path, aws: EmbeddedAWS, credentials: dict[str, str]
) -> None:
    config = configured(tmp_path, f"targets: [{{repository: team/*}}]\n{FAST}")
    aws.create_repository(ACCOUNT, REGION, "team/lib")
    aws.push(ACCOUNT, REGION, "team/lib", "v1")
    found: list[str] = []
    for ordinal in range(2):
        flags = ("--shard=auto", "--total-shards=2")
        with running(tmp_path, config, *flags, POD_NAME=f"exporter-{ordinal}", **credentials) as command:
            # Readiness does not wait for the images. The success of the target does.
            eventually(lambda: [value for _, value in command.series("ecr_target_success")] == [1])
            assert ask(f"{command.url}/-/ready").status == 200
            assert command.series("ecr_replication_exporter_shard_ordinal") == [({}, ordinal)]
            assert command.series("ecr_replication_exporter_total_shards") == [({}, 2)]
            assert f"shard={ordinal} total_shards=2" in command.log()
            found += [labels["repository"] for labels, _ in command.series("ecr_image_info")]
    assert sorted(found) == ["team/api", "team/app", "team/lib"]
