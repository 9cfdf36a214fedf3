"""One contract for every client: the fake that the engine is tested on, the real one on the embedded AWS,
and the real one on moto's own ECR, which was written by others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.request import urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer
from support.embedded_aws import EmbeddedAWS
from support.fakes import ACCOUNT, HOME, REGION, FakeAWS, FakeECR, digest_of

from exporter.aws.connector import AwsConnector
from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings
from exporter.demo import ACCOUNT as DEMO_ACCOUNT
from exporter.replication.model import (
    BACKFILL_PAGE_SIZE,
    LOOKUP_SIZE,
    Backfill,
    BackfillStatus,
    Destination,
    Image,
    Name,
    Page,
    Reason,
    Replication,
    RepositorySettings,
    Rule,
    Status,
)

PUSHED_AT = 1_600_000_000.0
IRELAND = Destination("eu-west-1", "444455556666")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class World(Protocol):
    """What the suite does behind the client's back."""

    client: EcrClient
    account: str

    def create(self, repository: str) -> None: ...

    def scan(self, repository: str, *, on_push: bool) -> None: ...

    def push(self, repository: str, *tags: str) -> str: ...

    def rules(self, *destinations: Destination, prefix: str = "") -> None: ...

    def report(self, repository: str, digest: str, *replications: Replication) -> None: ...

    def backfill(self, *backfills: Backfill) -> None: ...


class Faked:
    account = ACCOUNT

    def __init__(self) -> None:
        self.ecr = FakeECR(rules=(), page_size=1000)
        self.client = FakeAWS({HOME: self.ecr}).ecr(RegistrySettings(), connections=1)
        self.create = self.ecr.create
        self.report = self.ecr.report

    def scan(self, repository: str, *, on_push: bool) -> None:
        self.ecr.settings[repository] = RepositorySettings("MUTABLE", "AES256", "", str(on_push))

    def push(self, repository: str, *tags: str) -> str:
        return self.ecr.push(repository, *tags, at=PUSHED_AT)

    def rules(self, *destinations: Destination, prefix: str = "") -> None:
        filters = (prefix,) if prefix else ()
        self.ecr.rules = (Rule(destinations, filters, filters),)

    def backfill(self, *backfills: Backfill) -> None:
        self.ecr.page_size = BACKFILL_PAGE_SIZE
        self.ecr.backfills = backfills


class Embedded:
    account = DEMO_ACCOUNT

    def __init__(self, aws: EmbeddedAWS) -> None:
        self.aws = aws
        client = AwsConnector(session=aws.session, endpoint_url=aws.endpoint_url)
        self.client: EcrClient = client.ecr(RegistrySettings(), connections=2)

    def create(self, repository: str) -> None:
        self.aws.create_repository(self.account, REGION, repository)

    def scan(self, repository: str, *, on_push: bool) -> None:
        settings = {"imageScanningConfiguration": {"scanOnPush": on_push}}
        self.aws.set_settings(self.account, REGION, repository, settings)

    def push(self, repository: str, *tags: str) -> str:
        digest = self.aws.push(self.account, REGION, repository, None, pushed_at=PUSHED_AT)
        for tag in tags:
            self.aws.push(self.account, REGION, repository, tag, digest=digest)
        return digest

    def rules(self, *destinations: Destination, prefix: str = "") -> None:
        rule: dict[str, Any] = {
            "destinations": [{"region": d.region, "registryId": d.registry_id} for d in destinations]
        }
        if prefix:
            rule["repositoryFilters"] = [{"filter": prefix, "filterType": "PREFIX_MATCH"}]
        self.aws.set_rules(self.account, REGION, [rule])

    def report(self, repository: str, digest: str, *replications: Replication) -> None:
        rows = [
            {"region": r.destination.region, "registryId": r.destination.registry_id, "status": r.status}
            | ({"failureCode": r.failure_code} if r.failure_code else {})
            for r in replications
        ]
        self.aws.set_status(self.account, REGION, repository, digest, rows)

    def backfill(self, *backfills: Backfill) -> None:
        rows = [
            {
                "replicationBackfillId": backfill.id,
                "destination": {
                    "region": backfill.destination.region,
                    "registryId": backfill.destination.registry_id,
                },
                "status": backfill.status,
                "startedAt": backfill.started_at,
                "endedAt": backfill.ended_at,
                "progress": {f"{state}ReplicationCount": number for state, number in backfill.images}
                | {"failureCodes": backfill.failure_codes},
            }
            for backfill in backfills
        ]
        self.aws.set_backfills(self.account, REGION, rows)


class Moto:
    account = "123456789012"

    def __init__(self, endpoint_url: str) -> None:
        def session() -> boto3.Session:
            return boto3.Session("testing", "testing", region_name=REGION)

        self.boto: Any = session().client("ecr", endpoint_url=endpoint_url)
        self.client: EcrClient = AwsConnector(session=session, endpoint_url=endpoint_url).ecr(
            RegistrySettings(), connections=2
        )
        self.pushed = 0

    def create(self, repository: str) -> None:
        self.boto.create_repository(repositoryName=repository)

    def scan(self, repository: str, *, on_push: bool) -> None:
        self.boto.put_image_scanning_configuration(
            repositoryName=repository, imageScanningConfiguration={"scanOnPush": on_push}
        )

    def push(self, repository: str, *tags: str) -> str:
        self.pushed += 1
        layer = {"digest": digest_of(f"{repository}{self.pushed}"), "size": 1}
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer]})
        for tag in tags:
            answer = self.boto.put_image(repositoryName=repository, imageTag=tag, imageManifest=manifest)
        return str(answer["image"]["imageId"]["imageDigest"])

    def rules(self, *destinations: Destination, prefix: str = "") -> None:
        rule: dict[str, Any] = {
            "destinations": [{"region": d.region, "registryId": d.registry_id} for d in destinations]
        }
        if prefix:
            rule["repositoryFilters"] = [{"filter": prefix, "filterType": "PREFIX_MATCH"}]
        self.boto.put_replication_configuration(replicationConfiguration={"rules": [rule]})

    def report(self, *_: object) -> None:
        pytest.skip("moto has no DescribeImageReplicationStatus")

    def backfill(self, *_: object) -> None:
        pytest.skip("moto has no ListReplicationBackfills")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["fake", "embedded", "moto"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        yield Faked()
    elif request.param == "moto":
        endpoint_url = request.getfixturevalue("moto")
        _reset(endpoint_url)
        yield Moto(endpoint_url)
    else:
        with EmbeddedAWS() as aws:
            yield Embedded(aws)


def _reset(endpoint_url: str) -> None:
    urlopen(f"{endpoint_url}/moto-api/reset", data=b"").read()


def failing(reason: Reason) -> Any:
    return pytest.raises(ECRError, check=lambda error: error.reason is reason and not error.everything)


def test_the_account(world: World) -> None:
    assert world.client.account() == world.account


def test_the_registry_and_its_rules(world: World) -> None:
    world.rules(IRELAND, prefix="team/")
    registry = world.client.registry()
    assert registry.registry_id == world.account
    assert registry.destinations("team/app") == {IRELAND}
    assert registry.destinations("other") == set()


def test_the_repositories(world: World) -> None:
    assert world.client.repositories(None).items == ()
    for name in ("team/b", "team/a"):
        world.create(name)
    page = world.client.repositories(None)
    assert (sorted(each.name for each in page.items), page.token) == (["team/a", "team/b"], None)


def test_the_settings_of_a_repository(world: World) -> None:
    for name, on_push in (("team/a", True), ("team/b", False)):
        world.create(name)
        world.scan(name, on_push=on_push)
    settings = dict(world.client.repositories(None).items)
    assert settings["team/a"] == RepositorySettings("MUTABLE", "AES256", "", "True")
    assert settings["team/a"].differing(settings["team/b"]) == ("scan_on_push",)


def test_the_images(world: World) -> None:
    world.create("team/app")
    first = world.push("team/app", "v1", "latest")
    second = world.push("team/app", "v2")
    page = world.client.images("team/app", None)
    found = {image.digest: image for image in page.items}
    assert page.token is None
    assert {d: sorted(i.tags) for d, i in found.items()} == {first: ["latest", "v1"], second: ["v2"]}
    assert all(isinstance(image.pushed_at, float) for image in found.values())


def test_looking_up_names(world: World) -> None:
    world.create("team/app")
    first = world.push("team/app", "v1", "latest")
    second = world.push("team/app", "v2")
    found = world.client.find("team/app", [Name("v1", ""), Name("latest", ""), Name("", second)])
    assert sorted(image.digest for image in found) == sorted([first, second])


def test_one_unknown_name_fails_the_look_up(world: World) -> None:
    world.create("team/app")
    world.push("team/app", "v1")
    for unknown in (Name("v2", ""), Name("", digest_of("unknown"))):
        with failing(Reason.IMAGE_NOT_FOUND):
            world.client.find("team/app", [Name("v1", ""), unknown])


def test_an_unknown_repository(world: World) -> None:
    with failing(Reason.REPOSITORY_NOT_FOUND):
        world.client.images("team/gone", None, tags="ANY")
    with failing(Reason.REPOSITORY_NOT_FOUND):
        world.client.find("team/gone", [Name("v1", "")])


def test_what_is_reported(world: World) -> None:
    world.create("team/app")
    digest = world.push("team/app", "v1")
    reported = (
        Replication(IRELAND, Status.FAILED, "DESTINATION_REGISTRY_ACCESS_DENIED"),
        Replication(Destination("us-west-2", world.account), Status.COMPLETE),
        Replication(Destination("us-west-1", world.account), Status.IN_PROGRESS),
        Replication(Destination("sa-east-1", world.account), "TELEPORTED"),
    )
    world.report("team/app", digest, *reported)
    assert world.client.status("team/app", digest) == reported
    world.report("team/app", digest)
    assert world.client.status("team/app", digest) == ()


def test_the_backfills_in_pages_of_fifty(world: World) -> None:
    running = Backfill(
        "1", IRELAND, BackfillStatus.IN_PROGRESS, PUSHED_AT, None, (("total", 7), ("failed", 1))
    )
    failed = Backfill("2", IRELAND, BackfillStatus.FAILED, PUSHED_AT, PUSHED_AT + 60, (), ("DENIED", "GONE"))
    others = [Backfill(str(n), IRELAND, BackfillStatus.PREPARING, PUSHED_AT) for n in range(3, 60)]
    world.backfill()
    assert world.client.backfills(None) == Page(())
    world.backfill(running, failed, *others)
    first = world.client.backfills(None)
    assert first.items == (running, failed, *others[:48])
    assert world.client.backfills(first.token) == Page(tuple(others[48:]))


class TestWithoutMoto:
    """Pages, limits and statuses, which moto's ECR does not have."""

    @pytest.fixture(params=["fake", "embedded"])
    def world(self, request: pytest.FixtureRequest) -> Iterator[World]:
        if request.param == "fake":
            yield Faked()
        else:
            with EmbeddedAWS() as aws:
                yield Embedded(aws)

    def test_untagged_images_only_if_wanted(self, world: World) -> None:
        world.create("team/app")
        tagged, untagged = world.push("team/app", "v1"), world.push("team/app")
        assert [i.digest for i in world.client.images("team/app", None).items] == [tagged]
        everything = world.client.images("team/app", None, tags="ANY").items
        assert {i.digest for i in everything} == {tagged, untagged}

    def test_a_tag_moves(self, world: World) -> None:
        world.create("team/app")
        old = world.push("team/app", "latest")
        new = world.push("team/app", "latest")
        assert [i.digest for i in world.client.find("team/app", [Name("latest", "")])] == [new]
        assert world.client.find("team/app", [Name("", old)]) == (Image(old, (), PUSHED_AT),)

    def test_all_pages(self, world: World) -> None:
        world.create("team/app")
        pushed = {world.push("team/app", f"v{number}") for number in range(2001)}
        seen: list[str] = []
        token, pages = None, 0
        while pages == 0 or token:
            page = world.client.images("team/app", token)
            seen += [image.digest for image in page.items]
            token, pages = page.token, pages + 1
        assert (pages, len(seen), set(seen)) == (3, 2001, pushed)

    def test_a_hundred_names_at_most(self, world: World) -> None:
        world.create("team/app")
        names = [Name(f"v{number}", "") for number in range(LOOKUP_SIZE + 1)]
        for name in names:
            world.push("team/app", name.tag)
        assert len(world.client.find("team/app", names[:LOOKUP_SIZE])) == LOOKUP_SIZE
        with failing(Reason.INVALID):
            world.client.find("team/app", names)

    def test_the_status_of_what_is_gone(self, world: World) -> None:
        with failing(Reason.REPOSITORY_NOT_FOUND):
            world.client.status("team/app", digest_of("x"))
        world.create("team/app")
        with failing(Reason.IMAGE_NOT_FOUND):
            world.client.status("team/app", digest_of("x"))
