"""Each way to lend credentials: how often it is asked, and what happens when it fails early, late or slowly.

docs/iam.md holds the results as a table. What can be seen from outside is tested on the installed command.
What needs another time is tested on the session that the command makes its clients with.
"""

from __future__ import annotations

import os
import pty
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import boto3
import pytest
from support.command import Command, eventually, running
from support.embedded_aws import EmbeddedAWS, Fault, Garbage
from support.lender import WAYS, Lender, lending

from exporter.aws.credentials import RENEW_BEFORE
from exporter.aws.errors import ECRError
from exporter.aws.session import session_factory
from exporter.demo import ACCOUNT, REGION, Call, Refuse
from exporter.polling.rate_limit import FIRST_RATE

PARTNER = "444455556666"
IMAGES = 20
STATUS = "DescribeImageReplicationStatus"
CONFIG = """
targets: [{repository: team/*}]
discovery_interval: 1s
pending_interval: 1s
replica_interval: 0s
requests_per_second: 100
"""
OWN_KEYS = {"AWS_ACCESS_KEY_ID": f"AKIADEMO{ACCOUNT}", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": REGION}
ROLE_CONFIG = f"registries: [{{role_arn: arn:aws:iam::{ACCOUNT}:role/reader}}]{CONFIG}"
PARTNER_CONFIG = f"registries: [{{role_arn: arn:aws:iam::{PARTNER}:role/reader, region: eu-west-1}}]{CONFIG}"
#: Seconds before their end at which botocore 1.44.5 fails every call if credentials cannot be renewed.
BOTOCORE_INSISTS = 600.0

Start = Callable[..., AbstractContextManager[Command]]


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    yield lender
    lender.stop()


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS(delay=lambda _: 0.0) as aws:
        for account, region in ((ACCOUNT, REGION), (PARTNER, "eu-west-1")):
            there = {"region": "us-west-2", "registryId": account}
            aws.set_rules(account, region, [{"destinations": [there]}])
            aws.create_repository(account, region, "team/app")
            for number in range(IMAGES):
                aws.push(account, region, "team/app", f"v{number}")
        yield aws


@pytest.fixture
def start(tmp_path: Path, aws: EmbeddedAWS) -> Start:
    """Starts the command with a configuration and an environment."""

    def begin(
        environment: dict[str, str], config: str = CONFIG, stdin: str = os.devnull
    ) -> AbstractContextManager[Command]:
        (tmp_path / "config.yaml").write_text(config)
        known = {"AWS_ENDPOINT_URL": aws.endpoint_url} | environment
        return running(tmp_path, f"--config.file={tmp_path / 'config.yaml'}", stdin=stdin, **known)

    return begin


def reasons(command: Command) -> set[str]:
    """Why targets fail."""
    return {labels["reason"] for labels, _ in command.series("ecr_target_failure_info")}


def outcomes(command: Command) -> set[str]:
    """How calls ended."""
    name = "ecr_replication_exporter_aws_requests_total"
    return {labels["outcome"] for labels, value in command.series(name) if value}


def fails(command: Command, reason: str, word: str) -> None:
    """The only target fails for this reason, and the log says why."""
    eventually(lambda: reasons(command))
    assert reasons(command) == {reason}
    assert word in command.log()


def all_complete(aws: EmbeddedAWS, command: Command) -> bool:
    return aws.count(STATUS) >= IMAGES and command.statuses() == {"COMPLETE"}


# -- the installed command -------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_few_loans(start: Start, aws: EmbeddedAWS, lender: Lender, tmp_path: Path, way: str) -> None:
    """STS lends for 15 minutes at least, and botocore asks again at every call from 15 minutes to the end."""
    lender.seconds = 900.0
    config = ROLE_CONFIG if way == "role of an entry" else CONFIG
    with start(lending(way, lender, tmp_path), config) as command:
        eventually(lambda: all_complete(aws, command))
    assert lender.asked == 1


@pytest.mark.parametrize("fault", ["refuses", "says", "hangs"])
def test_keys_that_hold_are_used_while_nothing_is_lent(
    start: Start, aws: EmbeddedAWS, lender: Lender, tmp_path: Path, fault: str
) -> None:
    lender.seconds = BOTOCORE_INSISTS - 60
    with start(lending("Pod Identity", lender, tmp_path)) as command:
        eventually(lambda: all_complete(aws, command))
        spoil(lender, fault)
        aws.push(ACCOUNT, REGION, "team/app", "new")
        eventually(lambda: command.statuses(tag="new") == {"COMPLETE"})
        assert reasons(command) == set()
        assert "aws_request_failed" not in command.log()


def spoil(lender: Lender, fault: str) -> None:
    match fault:
        case "refuses":
            lender.refuses = 500
        case "says":
            lender.says = "<html>sign in</html>"
        case "hangs":
            lender.answers.clear()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_key_that_ends_in_a_line_break(start: Start, ending: str) -> None:
    with start(OWN_KEYS | {"AWS_ACCESS_KEY_ID": f"AKIAIOSFODNN7EXAMPLE{ending}"}) as command:
        fails(command, "access_denied", "the access key id ends in a line break")
        assert "AKIA" not in command.log()


@pytest.mark.parametrize("profile", ["default", "other"])
def test_nothing_asks_for_an_mfa_code(start: Start, tmp_path: Path, profile: str) -> None:
    """Not on the log and not on a terminal that is the standard input."""
    section = "default" if profile == "default" else f"profile {profile}"
    (tmp_path / "config").write_text(
        f"[{section}]\nrole_arn = arn:aws:iam::{ACCOUNT}:role/reader\nsource_profile = base\n"
        f"mfa_serial = arn:aws:iam::{ACCOUNT}:mfa/me\n"
        f"[profile base]\naws_access_key_id = AKIADEMO{ACCOUNT}\naws_secret_access_key = x\n"
    )
    files = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_REGION": REGION, "AWS_PROFILE": profile}
    terminal, stdin = pty.openpty()
    os.set_blocking(terminal, False)
    try:
        with start(files, stdin=os.ttyname(stdin)) as command:
            fails(command, "access_denied", "cannot enter an MFA code")
            assert "Enter MFA" not in command.log()
        with pytest.raises(BlockingIOError):
            os.read(terminal, 1)
    finally:
        os.close(terminal)
        os.close(stdin)


@pytest.mark.parametrize(
    ("mistake", "reason", "word"),
    [
        ({"AWS_ENDPOINT_URL": "localhost:4566"}, "invalid", "AWS_ENDPOINT_URL"),
        (
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.invalid"},
            "access_denied",
            "example.invalid",
        ),
        (
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN": "PLANTED\n",
            },
            "access_denied",
            "Auth token value",
        ),
    ],
    ids=["endpoint", "host", "token"],
)
def test_a_mistake_in_the_environment(start: Start, mistake: dict[str, str], reason: str, word: str) -> None:
    """botocore raises a plain ValueError. No request is sent, so nothing was answered."""
    keys = OWN_KEYS if "AWS_ENDPOINT_URL" in mistake else {"AWS_REGION": REGION}
    with start(keys | mistake) as command:
        fails(command, reason, word)
        assert "UnusableAnswer" not in command.log()
        assert "PLANTED" not in command.log()


def test_a_sign_in_that_is_over(start: Start, lender: Lender, tmp_path: Path) -> None:
    environment = lending("SSO", lender, tmp_path)
    (token,) = (tmp_path / ".aws" / "sso" / "cache").iterdir()
    token.write_text(token.read_text().replace(str(time.gmtime().tm_year), "2020"))
    with start(environment) as command:
        fails(command, "access_denied", "Error when retrieving token from sso")
    assert lender.asked == 0


def test_throttled_sts_paces_sts_alone(start: Start, aws: EmbeddedAWS) -> None:
    throttled = [Refuse(400, "Throttling", "Rate exceeded")] * 4
    aws.fault = lambda call: throttled.pop() if throttled and call.operation == "AssumeRole" else None
    rates: list[float] = []
    with start(OWN_KEYS, PARTNER_CONFIG) as command:

        def complete() -> bool:
            """Also notes the rate at each look, because it rises again after a refusal."""
            found = command.series("ecr_replication_exporter_request_rate_limit")
            rates.extend(value for _, value in found)
            return all_complete(aws, command)

        eventually(complete)
    assert throttled == []
    assert rates
    assert min(rates) >= FIRST_RATE


def test_a_region_that_only_the_account_of_the_role_enabled(start: Start, aws: EmbeddedAWS) -> None:
    def fault(call: Call) -> Fault | None:
        refused = call.kind.service == "sts" and call.kind.region == "eu-west-1"
        return Refuse(403, "InvalidClientTokenId", "The security token is invalid") if refused else None

    aws.fault = fault
    with start(OWN_KEYS, PARTNER_CONFIG) as command:
        eventually(lambda: all_complete(aws, command), within=15)


TROUBLE: tuple[Fault, ...] = (
    Refuse(400, "RequestTimeout"),
    Refuse(400, "RequestTimeoutException"),
    Refuse(400, "RequestAbortedException"),
    Refuse(408, ""),
    Garbage(b"<html>Access to this page is denied</html>", status=403),
    Garbage(b"<html>Sign in to the network</html>", status=400),
    Garbage(b"{}", status=400, headers=(("x-amzn-errortype", "ThrottlingException:http://internal/"),)),
)


def test_trouble_on_the_way_is_no_refusal(start: Start, aws: EmbeddedAWS) -> None:
    left = list(TROUBLE)
    aws.fault = lambda call: left.pop() if left and call.operation == STATUS else None
    with start(OWN_KEYS) as command:
        eventually(lambda: all_complete(aws, command))
        assert left == []
        assert outcomes(command) == {"success", "unavailable", "throttled"}


# -- at another time -------------------------------------------------------------------------------


#: Those of WAYS that a session has. botocore reads the home directory of SSO when it is imported.
OF_A_SESSION = [way for way in WAYS if way not in ("SSO", "role of an entry")]


@pytest.fixture
def ahead() -> list[float]:
    """Seconds that the clock of the session is ahead."""
    return [0.0]


@pytest.fixture
def make(
    way: str,
    lender: Lender,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ahead: list[float],
) -> Callable[[], boto3.Session]:
    """Makes sessions as the command does, whose credentials are lent in the way of the test."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "1")
    for name, value in lending(way, lender, tmp_path).items():
        monkeypatch.setenv(name, value)
    return session_factory(clock=lambda: time.time() + ahead[0], process_timeout=5.0)


def token_of(session: boto3.Session) -> str | None:
    """The session token that the next call of the session is signed with."""
    credentials = session.get_credentials()
    return credentials.get_frozen_credentials().token if credentials else None


@pytest.mark.parametrize("way", OF_A_SESSION)
def test_renewed_before_the_end(
    make: Callable[[], boto3.Session], lender: Lender, ahead: list[float]
) -> None:
    lender.seconds = 600.0
    session = make()
    assert token_of(session) == "token 1"
    ahead[0] = 600 - RENEW_BEFORE + 1
    assert [token_of(session) for _ in range(60)] == ["token 2"] * 60
    assert lender.asked == 2


@pytest.mark.parametrize("way", ["web identity", "role of a profile"])
def test_the_region_of_the_other_sdks(
    make: Callable[[], boto3.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore reads AWS_DEFAULT_REGION only, and a role needs the STS of a Region."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert token_of(make()) == "token 1"


@pytest.mark.parametrize("way", ["credential_process", "container agent"])
def test_keys_that_have_ended_are_not_used(make: Callable[[], boto3.Session], lender: Lender) -> None:
    """Those of an instance role are: botocore lets AWS decide."""
    lender.seconds = -60.0
    with pytest.raises(ECRError, match="whose end has passed") as caught:
        token_of(make())
    assert caught.value.reason == "access_denied"


@pytest.mark.parametrize("way", ["credential_process"])
@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("echo PLANTED >&2; exit 3", "its exit status is 3"),
        ("echo PLANTED; sleep 60", "it is killed after 5 s"),
        ("echo PLANTED", "gave no credentials; run it by hand"),
    ],
)
def test_why_a_process_gave_nothing(
    make: Callable[[], boto3.Session], tmp_path: Path, script: str, word: str
) -> None:
    (tmp_path / "script").write_text(script)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {tmp_path / 'script'}\n")
    with pytest.raises(ECRError) as caught:
        token_of(make())
    assert caught.value.reason == "access_denied"
    assert word in str(caught.value)
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("way", OF_A_SESSION)
@pytest.mark.parametrize("fault", ["refuses", "says"])
def test_the_old_keys_are_used_until_their_end(
    make: Callable[[], boto3.Session], lender: Lender, ahead: list[float], fault: str
) -> None:
    lender.seconds = 600.0
    session = make()
    assert token_of(session) == "token 1"
    spoil(lender, fault)
    ahead[0] = 600 - RENEW_BEFORE + 1
    assert [token_of(session) for _ in range(60)] == ["token 1"] * 60
    assert lender.asked <= 4  # botocore tries agents and STS three times
    ahead[0] = 601
    with pytest.raises(ECRError) as caught:
        token_of(session)
    assert caught.value.reason in ("access_denied", "unavailable")
    assert caught.value.everything
    assert not caught.value.action.startswith("ecr:")
    lender.refuses = lender.says = None
    assert token_of(session) == "token 2"


@pytest.mark.parametrize("way", ["credential_process", "web identity", "role of a profile"])
def test_one_thread_waits_for_a_slow_lender(
    make: Callable[[], boto3.Session], lender: Lender, ahead: list[float]
) -> None:
    lender.seconds = 600.0
    session = make()
    assert token_of(session) == "token 1"
    lender.answers.clear()
    ahead[0] = 600 - RENEW_BEFORE + 1
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(token_of, session)
        eventually(lambda: lender.asked == 2)
        assert [token_of(session) for _ in range(60)] == ["token 1"] * 60
        assert lender.asked == 2
        lender.answers.set()
        assert renewing.result(10) in ("token 1", "token 2")


@pytest.mark.parametrize("way", ["credential_process"])
def test_a_lender_that_hangs_is_waited_for_once(make: Callable[[], boto3.Session], lender: Lender) -> None:
    """Threads that wait to make a client of the same session share the outcome."""
    session = make()
    lender.answers.clear()
    for _ in range(10):
        with pytest.raises(ECRError) as caught:
            token_of(session)
        assert (caught.value.reason, caught.value.everything) == ("access_denied", True)
    assert lender.asked == 1
    lender.answers.set()
    assert token_of(make())


#: With what follows the key, and with the end.
PLANTED_KEYS = """{"Version": 1, "Code": "Success", "AccessKeyId": "PLANTED%s", "SecretAccessKey": "PLANTED",
"Token": "PLANTED", "SessionToken": "PLANTED", "Expiration": "%s"}"""


@pytest.mark.parametrize("way", ["credential_process", "container agent", "instance role"])
@pytest.mark.parametrize(
    "said",
    [
        "[]",
        "{}",
        "null",
        '"x"',
        PLANTED_KEYS % ("", "tomorrow"),
        PLANTED_KEYS % ("", "2040-01-01T00:00:00"),  # botocore compares it with a time that has a zone
        PLANTED_KEYS.replace('"SecretAccessKey": "PLANTED"', '"SecretAccessKey": 7')
        % ("", "2040-01-01T00:00:00Z"),
        PLANTED_KEYS % ("\\n", "2040-01-01T00:00:00Z"),
    ],
)
def test_nonsense_is_not_lent(make: Callable[[], boto3.Session], lender: Lender, said: str, way: str) -> None:
    lender.says = said
    session = make()
    if way == "instance role" and "PLANTED" not in said and said != "null":
        assert token_of(session) is None  # botocore goes on as if there were no instance role
    else:
        with pytest.raises(ECRError) as caught:
            token_of(session)
        assert caught.value.everything
        assert "PLANTED" not in str(caught.value)
        assert "UnusableAnswer" not in str(caught.value)
    lender.says = None
    assert token_of(make())
