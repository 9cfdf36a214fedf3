from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.configs import BAD, CONFIGS, DIGEST, configurations, loader

from exporter.config import web
from exporter.config.settings import (
    DestinationSettings,
    RegistrySettings,
    Settings,
    TargetSettings,
    load,
    parse,
    to_yaml,
)
from exporter.config.validators import Secret, format_duration, parse_duration
from exporter.config.web import TLSSettings, WebSettings, load_web
from exporter.config.yaml_source import ConfigError, Problem, keys

ROOT = Path(__file__).parents[2]
EXPECT = "# expect:"


def problems(read: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read()
    return [str(problem) for problem in caught.value.problems]


def ok(name: str) -> Settings:
    return load(str(CONFIGS / f"{name}.ok.yaml"))


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_problem_of_a_bad_file_is_reported_at_once(path: Path) -> None:
    lines = path.read_text().splitlines()
    expected = [f"{path}:{line.removeprefix(EXPECT)}" for line in lines if line.startswith(EXPECT)]
    assert problems(lambda: loader(path)(str(path))) == expected


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_no_secret_is_repeated(path: Path) -> None:
    assert "planted" not in str(problems(lambda: loader(path)(str(path))))


def test_the_least_that_works() -> None:
    assert ok("minimal") == Settings(targets=(TargetSettings("team/app"),))


def test_text_stays_as_it_was_written() -> None:
    found = ok("raw_text")
    assert found.registries[0].registry_id == "012345678901"
    assert found.registries[0].label == "012345678901/eu-west-1"
    assert found.registries[1] == RegistrySettings()
    assert [target.tag for target in found.targets] == ["1.10", "2024-01-31", None]
    assert found.targets[2].tags == ("1e3", "0x1F", "true")
    assert found.max_images == 5000  # quoted in the file


def test_anchors_and_merges() -> None:
    found = ok("anchors")
    assert [registry.name for registry in found.registries] == ["us", "eu"]
    assert [registry.region for registry in found.registries] == ["us-east-1", "eu-west-1"]
    assert found.targets == (
        TargetSettings("team/*", tags=("v*",), latest=5),
        TargetSettings("tools/*", tags=("v*",), latest=9),
        TargetSettings("base/*", exclude_tags=("v*",)),
    )


def test_destinations() -> None:
    found = ok("destinations")
    assert found.replica_interval == 0
    assert [target.destinations for target in found.targets] == [
        ("eu-west-1", "444455556666/us-west-2", "012345678901/us-gov-west-1"),
        (),
    ]
    assert found.destinations == (
        DestinationSettings(
            "444455556666",
            role_arn="arn:aws:iam::444455556666:role/ecr-replica-reader",
            external_id=Secret("s3cr3t"),
        ),
        DestinationSettings("012345678901", region="us-gov-west-1"),
    )


def test_queues() -> None:
    assert [entry.events_queue_url for entry in ok("queues").registries] == [
        "https://sqs.us-east-1.amazonaws.com/222233334444/ecr-events",
        "https://sqs.cn-north-1.amazonaws.com.cn/222233334444/ecr.fifo",
        "http://localhost:4566/000000000000/ecr_{shard}-events",
    ]


@pytest.mark.parametrize("text", ["0", "0s", "0h0m", "00ms"])
def test_an_interval_of_nothing_means_never(text: str) -> None:
    assert parse(f"targets: [{{repository: team/app}}]\nreplica_interval: {text}").replica_interval == 0


def test_the_example_is_valid_and_shows_the_defaults() -> None:
    found = load(str(ROOT / "config.example.yaml"))
    defaults = Settings(targets=())
    tunables = set(keys(Settings)[()]) - {"registries", "destinations", "targets", "state_file"}
    assert {key: getattr(found, key) for key in tunables} == {key: getattr(defaults, key) for key in tunables}


@pytest.mark.parametrize("model", [Settings, TargetSettings, RegistrySettings, DestinationSettings])
def test_the_example_and_the_reference_know_every_key(model: type) -> None:
    example_file = (ROOT / "config.example.yaml").read_text()
    reference = (ROOT / "docs" / "configuration.md").read_text()
    for key in keys(model)[()]:
        assert re.search(rf"^[ -]*{key}:", example_file, re.MULTILINE), key
        assert f"| `{key}` |" in reference, key


def test_the_reference_knows_every_web_key() -> None:
    reference = (ROOT / "docs" / "configuration.md").read_text()
    known = {key for each in keys(WebSettings).values() for key in each} | set(web.REFUSED)
    assert len(known) > 20
    assert [key for key in sorted(known) if f"`{key}`" not in reference] == []


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.yaml")
    assert problems(lambda: load(missing)) == [f"{missing}: cannot be read: No such file or directory"]
    assert problems(lambda: load(str(tmp_path))) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_web() -> None:
    found = load_web(str(CONFIGS / "web_full.ok.yaml"))
    assert found.tls_server_config == TLSSettings(
        cert_file=str(CONFIGS / "server.crt"),
        key_file="/etc/tls/server.key",
        client_ca_file=str(CONFIGS / "ca" / "clients.crt"),
        client_auth_type="RequireAndVerifyClientCert",
        min_version="TLS13",
    )
    assert found.headers == {"Strict-Transport-Security": "max-age=31536000", "X-Frame-Options": "deny"}
    assert found.basic_auth_users["alice"].get_secret_value().startswith("$2y$10$")
    assert "$2" not in repr(found)
    assert load_web(str(CONFIGS / "web_empty.ok.yaml")) == WebSettings()


# -- texts -----------------------------------------------------------------------------------------

FLOOD = 200_000
BOUNDS = "config.yaml:1: holds more than 200000 values or 30 levels, with its aliases"
#: PyYAML 6.0.4 itself stops flow nesting at 1,000 levels; it reads ahead, so it may be the first to do so.
DEEP = (
    BOUNDS,
    "config.yaml:1: is not YAML: while increasing flow level",
    BOUNDS.replace(":1:", ":2:"),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(b"\xff\xfe", "config.yaml:1: is not UTF-8 text", id="utf-16"),
        pytest.param("# ok\n\ud800", "config.yaml:2: is not UTF-8 text", id="surrogate"),
        pytest.param(
            "# é\n\0",
            "config.yaml:2: is not YAML: control characters and %TAG directives are not allowed",
            id="nul",
        ),
        pytest.param("targets: " + "[" * FLOOD, DEEP, id="lists"),
        pytest.param("targets:\n" + "- " * FLOOD, DEEP, id="block lists"),
        pytest.param("targets: " + "{repository: " * FLOOD, DEEP, id="mappings"),
        pytest.param(
            "%TAG !a! !b\n" * FLOOD,
            "config.yaml:1: is not YAML: control characters and %TAG directives are not allowed",
            id="directives",
        ),
        pytest.param("targets: [" + "," * FLOOD, "config.yaml:1: is not YAML: ", id="commas"),
        pytest.param("#" * 2**23 + "#", "config.yaml: is larger than 8 MiB", id="bytes"),
        pytest.param("targets: [" + "a," * 600_000, BOUNDS, id="values"),
        pytest.param(
            "targets: &a [*a]", "config.yaml:1: targets[0]: is an alias of no anchor above", id="self"
        ),
        pytest.param("~", "config.yaml:1: the file is not a mapping of keys to values", id="null"),
        pytest.param(
            "targets: [&t {repository: team/app, tags: ["
            + ",".join(f"v{i}" for i in range(1000))
            + "]}"
            + ",*t" * 1000
            + "]",
            BOUNDS,
            id="aliases",
        ),
    ],
)
def test_hostile_texts_get_one_clear_answer(text: str | bytes, expected: str | tuple[str, ...]) -> None:
    (problem,) = problems(lambda: parse(text))
    assert problem.startswith(expected)


def test_a_thousand_problems_are_enough() -> None:
    found = problems(lambda: parse("targets: [" + "~," * 5000 + "]"))
    assert len(found) == 1001
    assert found[-1] == "config.yaml: has more problems; these are the first 1000"


def test_a_byte_order_mark_is_no_matter() -> None:
    assert parse(b"\xef\xbb\xbftargets: [{repository: team/app}]") == ok("minimal")


FRAGMENTS = st.sampled_from(
    "targets registries repository tag tags latest name region external_id 1 1h yes team/* [v1] v1"
    " <<: &a *a - : ? [ ] { } , \n ' \" | > ! % @ ~ # --- ...".split(" ")
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200), st.lists(FRAGMENTS).map(" ".join)))
@example(b"targets: &a [*a]")
@example("? &a {<<: *a}")
def test_no_input_raises_anything_but_a_config_error(text: str | bytes) -> None:
    try:
        parse(text)
    except ConfigError as error:
        lines = str(error).split("\n")
        found = error.problems
    else:
        return
    assert len(lines) == len(found)
    assert all(line.isprintable() for line in lines)


def test_ten_thousand_targets() -> None:
    text = "targets:\n" + "".join(
        f"  - {{repository: team/app{i}, tags: ['v*', latest], exclude_tags: ['*-dev'], latest: {i + 1}}}\n"
        for i in range(10_000)
    )
    began = time.process_time()
    found = parse(text)
    assert time.process_time() - began < 2.0  # twice what is promised: other work slows a processor down
    assert len(found.targets) == 10_000
    assert found.targets[-1] == TargetSettings(
        "team/app9999", tags=("v*", "latest"), exclude_tags=("*-dev",), latest=10_000
    )


# -- back to YAML ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(configurations)
def test_what_is_shown_reads_back_the_same(configuration: Settings) -> None:
    assert parse(to_yaml(configuration)) == configuration


def test_defaults_that_are_shown_read_back_the_same() -> None:
    shown = to_yaml(ok("minimal"))
    assert shown.startswith("registries:\n- {}\ntargets:\n- repository: team/app\ndestinations: []\n")
    assert parse(shown) == ok("minimal")


def test_what_is_shown_is_complete_and_masked() -> None:
    found = load(str(ROOT / "config.example.yaml"))
    shown = to_yaml(found)
    assert "change-me" not in shown
    assert "  external_id: <secret>\n" in shown
    assert shown.endswith(
        "discovery_interval: 1m\npending_interval: 15s\nfailed_interval: 5m\nsettled_interval: 6h\n"
        "replica_interval: 15m\nstale_after: 1h\nrequests_per_second: 10\nmax_images: 100000\n"
        "image_series: all\nstate_file: /var/lib/ecr-replication-exporter/state\n"
    )


# -- words -----------------------------------------------------------------------------------------


def test_secrets_are_masked_but_compared() -> None:
    secret = Secret("s3cr3t")
    assert secret.get_secret_value() == "s3cr3t"
    assert {str(secret), f"{secret}", f"{secret!s:>8}", "%s" % secret} == {"<secret>"}  # noqa: UP031
    assert repr(secret) == "Secret('<secret>')"
    assert json.dumps({"a": secret}, default=str) == '{"a": "<secret>"}'
    assert secret == Secret("s3cr3t")
    assert hash(secret) == hash(Secret("s3cr3t"))
    assert secret != Secret("other")
    assert secret != "s3cr3t"


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (TargetSettings("team/app", tag="v1.2.3"), "team/app:v1.2.3"),
        (TargetSettings("team/api", digest=DIGEST), f"team/api@{DIGEST}"),
        (TargetSettings("team/*"), "team/*"),
        (TargetSettings("team/*", untagged=True), "team/* untagged"),
        (
            TargetSettings(
                "team/*", tags=("v*", "latest"), exclude_tags=("*-dev",), latest=20, pushed_within=2592000.0
            ),
            "team/*:v*,latest exclude_tags=*-dev latest=20 pushed_within=30d",
        ),
    ],
)
def test_labels(target: TargetSettings, label: str) -> None:
    assert target.label == label
    assert target.is_glob == ("*" in target.repository)
    assert replace(target, name="mine").label == "mine"


MANY = tuple(f"v{n:050}" for n in range(60))


def test_a_long_label_is_cut_and_ends_in_a_hash() -> None:
    """The hash is the same in each release. Mimir refuses series with a label of over 2048 characters."""
    label = TargetSettings("team/app", tags=MANY).label
    assert label == f"team/app:v{'0' * 50},v{'0' * 49}~a4171f09dfc7cc88"


@pytest.mark.parametrize("length", [127, 128, 129, 3000])
def test_labels_have_at_most_128_characters_and_tell_targets_apart(length: int) -> None:
    tags = "x" * (length - len("team/app:") - 3)
    targets = [TargetSettings("team/app", tags=(f"{tags}{n:03}",)) for n in range(1000)]
    labels = {target.label for target in targets}
    assert len(labels) == 1000
    assert {len(label) for label in labels} == {min(length, 128)}


def test_what_a_target_selects_has_no_name_and_no_registries() -> None:
    target = TargetSettings("team/*", tags=("v*",), registries=("a",), name="mine")
    assert target.selection == TargetSettings("team/*", tags=("v*",))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15),
        ("1h30m", 5400),
        ("1ms", 0.001),
        ("30d", 2592000),
        ("2w", 1209600),
        ("1y", 31536000),
        ("0", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == {"0": "0s"}.get(text, text)


@pytest.mark.parametrize("text", ["", "1", "h", "1.5h", "1m1h", "1h1h", "-1h", " 1h", "1H", "٣s", "293y"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|longest"):
        parse_duration(text)


@given(st.integers(0, 292 * 365 * 86400 * 1000))
def test_durations_lose_nothing_to_the_millisecond(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize(
    "region",
    ["us-east-1", "us-gov-west-1", "cn-north-1", "us-iso-east-1", "eusc-de-east-1", "ap-southeast-12"],
)
def test_regions_are_a_pattern_and_no_list(region: str) -> None:
    text = f"registries: [{{region: {region}}}]\ntargets: [{{repository: team/app}}]"
    assert parse(text).registries[0].region == region


@pytest.mark.parametrize(
    ("region", "advice"), [("us-est-1", "; did you mean us-east-1?"), ("xx-nowhere-1", "")]
)
def test_an_unknown_region_is_a_warning_wherever_it_stands(region: str, advice: str) -> None:
    found: list[Problem] = []
    text = (
        f"registries:\n- {{region: us-east-1}}\n- {{region: {region}}}\n"
        f"destinations:\n- {{registry_id: 444455556666}}\n- {{registry_id: 444455556666, region: {region}}}\n"
        f"targets:\n- repository: team/app\n  destinations: [us-east-1, {region}, 444455556666/{region}]"
    )
    assert parse(text, regions=["us-east-1"], warn=found.append).registries[1].region == region
    message = f'"{region}" is not a Region that botocore knows{advice}'
    assert [str(warning) for warning in found if warning.path] == [
        f"config.yaml:3: registries[1].region: {message}",
        f"config.yaml:6: destinations[1].region: {message}",
        f"config.yaml:9: targets[0].destinations[1]: {message}",
        f"config.yaml:9: targets[0].destinations[2]: {message}",
    ]


@pytest.mark.parametrize("given", ["region: eu-west-1, ", ""], ids=["its own Region", "the default Region"])
def test_a_queue_in_another_region_is_a_warning(given: str) -> None:
    found: list[Problem] = []
    queues = [
        "https://sqs.us-east-1.amazonaws.com/222233334444/events",
        "https://sqs.eu-west-1.amazonaws.com/222233334444/events",
        "https://queue.amazonaws.com/222233334444/events",
        "http://localhost:4566/000000000000/events",
    ]
    entries = "".join(f"- {{name: r{i}, {given}events_queue_url: '{url}'}}\n" for i, url in enumerate(queues))
    text = f"registries:\n{entries}targets: [{{repository: team/app}}]"
    parse(text, region="eu-west-1", regions=["us-east-1", "eu-west-1"], warn=found.append)
    (elsewhere,) = (str(warning) for warning in found if warning.path)
    assert elsewhere == (
        "config.yaml:2: registries[0].events_queue_url: the queue is in us-east-1 and the registry in"
        " eu-west-1: a rule of EventBridge sends only to queues in its own Region, so a rule must forward the"
        " events to an event bus in the Region of the queue"
    )


@pytest.mark.parametrize(
    ("region", "partition", "is_wrong"),
    [
        ("cn-north-1", "aws", True),
        ("cn-north-1", "aws-cn", False),
        ("us-gov-west-1", "aws", True),
        ("us-gov-west-1", "aws-us-gov", False),
        ("us-east-1", "aws-us-gov", True),
        ("us-east-1", "aws", False),
        ("us-iso-east-1", "aws-iso", False),
        ("eusc-de-east-1", "aws-eusc", False),
    ],
)
@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("registries", "region: REGION, "),
        ("registries", ""),
        ("destinations", 'registry_id: "222233334444", region: REGION, '),
    ],
    ids=["registry", "the default Region", "destination"],
)
def test_a_role_of_another_partition_is_a_warning(
    kind: str, given: str, region: str, partition: str, is_wrong: bool
) -> None:
    found: list[Problem] = []
    role = f"arn:{partition}:iam::222233334444:role/reader"
    entry = f"{{{given.replace('REGION', region)}role_arn: '{role}'}}"
    parse(f"{kind}:\n- {entry}\ntargets: [{{repository: team/app}}]", region=region, warn=found.append)
    message = (
        f"config.yaml:2: {kind}[0].role_arn: the role is in partition {partition}, and {region} is in"
        " another: no role of one partition works in another"
    )
    assert [str(warning) for warning in found if warning.path] == ([message] if is_wrong else [])


def test_the_check_shows_warnings_and_succeeds(tmp_path: Path) -> None:
    """Here without libyaml, which makes one more warning."""
    file = tmp_path / "config.yaml"
    file.write_text("registries: [{region: us-est-1}]\ntargets: [{repository: team/app}]")
    program = (
        "import sys; sys.modules['yaml._yaml'] = None\n"
        "from exporter.app import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "--config.check", f"--config.file={file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout == f"{file} is valid: 1 target, 1 registry\n"
    libyaml, region = done.stderr.splitlines()
    assert libyaml.startswith(f"{file}: PyYAML has no libyaml here")
    assert region == (
        f'{file}:1: registries[0].region: "us-est-1" is not a Region that botocore knows;'
        " did you mean us-east-1 or us-west-1? (warning)"
    )


def test_settings_are_keys_and_can_be_replaced() -> None:
    entry = parse("registries: [{region: us-east-1}]\ntargets: [{repository: team/app}]").registries[0]
    assert {entry: 1}[RegistrySettings(region="us-east-1")] == 1
    assert replace(entry, region="eu-west-1").region == "eu-west-1"
    with pytest.raises(FrozenInstanceError):
        entry.region = "eu-west-1"  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ["y", "1e3", "012345678901", "0o17", "1_000", "on", "~", "2026-01-31", "1.10"]
)
def test_what_other_readers_take_for_another_type_is_quoted(text: str) -> None:
    shown = to_yaml(Settings(targets=(TargetSettings("team/app", tag=text),)))
    assert re.search(rf"""tag: ["']{text}["']$""", shown, re.MULTILINE)


@pytest.mark.parametrize(("text", "number"), [("5.0", 5), ("'5'", 5), ("5.00", 5)])
def test_whole_numbers_may_have_a_fraction_of_zero(text: str, number: int) -> None:
    found = parse(f"targets: [{{repository: team/app, latest: {text}}}]\nmax_images: {text}")
    assert (found.max_images, found.targets[0].latest) == (number, number)
    assert isinstance(found.max_images, int)


def test_a_role_gives_the_default_name() -> None:
    found = parse(
        "registries:\n"
        "- {region: us-east-1, role_arn: 'arn:aws:iam::222233334444:role/path/reader', external_id: id:1}\n"
        "targets: [{repository: team/app, registries: [222233334444/us-east-1]}]"
    )
    assert found.registries[0].label == "222233334444/us-east-1"
    assert found.registries[0].external_id == Secret("id:1")
