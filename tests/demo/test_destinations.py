"""What destinations of the simulated ECR hold."""

from collections.abc import Sequence
from typing import Any

import pytest
from support.embedded_aws import replication_rule
from support.fakes import FakeClock

from exporter.demo import ACCOUNT, REGION, Call, CallKind, Refuse
from exporter.demo.ecr import ECR
from exporter.replication.model import Destination

HOME = (ACCOUNT, REGION)
IRELAND = (ACCOUNT, "eu-west-1")
PARTNER = ("444455556666", "us-west-2")
APP = "team/app"
TAKES = 10.0
#: Settings of a repository that differ from the defaults.
STRICT = {
    "imageTagMutability": "IMMUTABLE",
    "imageScanningConfiguration": {"scanOnPush": True},
    "encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": "alias/ecr"},
}


def to(registry: tuple[str, str]) -> Destination:
    account, region = registry
    return Destination(region, account)


class World(ECR):
    """An ECR with a repository that is replicated to Ireland in TAKES seconds."""

    def __init__(self) -> None:
        self.time = FakeClock()
        super().__init__(clock=self.time.time, delay=lambda _: TAKES)
        self.create_repository(*HOME, APP)
        self.set_rules(*HOME, [replication_rule(to(IRELAND))])

    def ask(self, registry: tuple[str, str], operation: str, **params: Any) -> dict[str, Any]:
        return self.serve(Call(CallKind("ecr", operation, *registry), params))

    def repositories(self, registry: tuple[str, str]) -> list[str]:
        rows = self.ask(registry, "DescribeRepositories")["repositories"]
        return [row["repositoryName"] for row in rows]

    def rows(
        self, registry: tuple[str, str], repository: str = APP, **params: Any
    ) -> dict[str, dict[str, Any]]:
        """DescribeImages, by digest."""
        answer = self.ask(registry, "DescribeImages", repositoryName=repository, **params)
        return {row["imageDigest"]: row for row in answer["imageDetails"]}

    def held(self, registry: tuple[str, str] = IRELAND, repository: str = APP) -> dict[str, set[str]]:
        """The tags of each active image."""
        return {
            digest: set(row.get("imageTags", ())) for digest, row in self.rows(registry, repository).items()
        }

    def reported(self, registry: tuple[str, str], digest: str) -> list[str]:
        answer = self.ask(
            registry,
            "DescribeImageReplicationStatus",
            repositoryName=APP,
            imageId={"imageDigest": digest},
        )
        return [row["status"] for row in answer["replicationStatuses"]]

    def push_and_wait(self, *tags: str) -> str:
        """Push an image with tags and let its copy arrive."""
        digest = self.push(*HOME, APP, tags[0] if tags else None)
        for tag in tags[1:]:
            self.push(*HOME, APP, tag, digest=digest)
        self.time.now += TAKES
        return digest


@pytest.fixture
def world() -> World:
    return World()


def code_of(world: World, registry: tuple[str, str], operation: str, **params: Any) -> str:
    with pytest.raises(Refuse) as caught:
        world.ask(registry, operation, **params)
    return caught.value.code


class TestArrival:
    def test_the_destination_has_no_repository_before_the_first_copy(self, world: World) -> None:
        world.push(*HOME, APP, "v1")
        world.time.now += TAKES - 1
        assert code_of(world, IRELAND, "DescribeImages", repositoryName=APP) == "RepositoryNotFoundException"
        assert world.repositories(IRELAND) == []

    def test_a_copy_has_the_digest_and_the_tags_and_the_time_of_its_arrival(self, world: World) -> None:
        digest = world.push(*HOME, APP, "v1")
        world.push(*HOME, APP, "latest", digest=digest)
        pushed_at = world.time.time()
        world.time.now += 2 * TAKES
        assert world.held() == {digest: {"v1", "latest"}}
        assert world.rows(IRELAND)[digest]["imagePushedAt"] == pushed_at + TAKES
        assert world.rows(IRELAND)[digest]["registryId"] == ACCOUNT
        assert world.ask(IRELAND, "ListImages", repositoryName=APP)["imageIds"] == [
            {"imageDigest": digest, "imageTag": "v1"},
            {"imageDigest": digest, "imageTag": "latest"},
        ]

    def test_an_untagged_image_arrives_untagged(self, world: World) -> None:
        assert world.held(HOME) == {}
        digest = world.push_and_wait()
        assert world.held() == {digest: set()}

    def test_images_of_the_past_are_there_at_once(self, world: World) -> None:
        digest = world.push(*HOME, APP, "v1", pushed_at=world.time.time() - 60)
        assert world.held() == {digest: {"v1"}}

    def test_nothing_arrives_where_the_registry_denies_or_the_copy_hangs(self, world: World) -> None:
        world.denied.add(to(IRELAND))
        world.push(*HOME, APP, "v1")
        world.denied.clear()
        world.push(*HOME, APP, "v2", delay=lambda _: float("inf"))
        arrived = world.push(*HOME, APP, "v3")
        world.time.now += 1e6
        assert world.held() == {arrived: {"v3"}}

    def test_every_destination_gets_its_copy_in_its_own_time(self, world: World) -> None:
        world.set_rules(*HOME, [replication_rule(to(IRELAND), to(PARTNER))])
        world.delay = lambda place: 5.0 if place == to(PARTNER) else TAKES
        digest = world.push(*HOME, APP, "v1")
        world.time.now += 5
        assert world.held(PARTNER) == {digest: {"v1"}}
        assert world.repositories(IRELAND) == []
        world.time.now += TAKES
        assert world.held(IRELAND) == {digest: {"v1"}}

    def test_an_image_that_is_deleted_on_its_way_does_not_arrive(self, world: World) -> None:
        world.create_repository(*HOME, "team/other")
        gone = world.push(*HOME, APP, "v1")
        world.push(*HOME, "team/other", "v1")
        kept = world.push(*HOME, APP, "v2")
        world.delete_image(*HOME, APP, gone)
        world.delete_repository(*HOME, "team/other")
        world.time.now += TAKES
        assert world.held() == {kept: {"v2"}}
        assert [
            row["repositoryName"] for row in world.ask(IRELAND, "DescribeRepositories")["repositories"]
        ] == [APP]

    def test_copies_are_not_sent_on(self, world: World) -> None:
        world.set_rules(*IRELAND, [replication_rule(to(PARTNER))])
        digest = world.push_and_wait("v1")
        world.archive_image(*IRELAND, APP, digest)
        world.restore_image(*IRELAND, APP, digest)
        world.push(*IRELAND, APP, "v1-tested", digest=digest)
        world.time.now += 1e6
        assert world.reported(IRELAND, digest) == []
        assert world.held(IRELAND) == {digest: {"v1", "v1-tested"}}
        assert world.repositories(PARTNER) == []

    def test_two_registries_that_replicate_to_each_other(self, world: World) -> None:
        world.set_rules(*IRELAND, [replication_rule(to(HOME))])
        first = world.push_and_wait("v1")
        second = world.push(*IRELAND, APP, "v2")
        world.time.now += TAKES
        assert world.held(HOME) == world.held(IRELAND) == {first: {"v1"}, second: {"v2"}}
        assert world.reported(HOME, first) == ["COMPLETE"]
        assert world.reported(HOME, second) == []


class TestTagsThatMove:
    def test_a_tag_moves_when_the_newer_image_arrives(self, world: World) -> None:
        old = world.push_and_wait("latest")
        new = world.push(*HOME, APP, "latest")
        assert world.held() == {old: {"latest"}}
        world.time.now += TAKES
        assert world.held() == {old: set(), new: {"latest"}}

    def test_a_tag_never_moves_back_to_an_image_that_arrives_late(self, world: World) -> None:
        late = world.push(*HOME, APP, "latest", delay=lambda _: 100.0)
        new = world.push_and_wait("latest")
        assert world.held() == {new: {"latest"}}
        world.time.now += 100
        assert world.held() == {new: {"latest"}, late: set()}

    def test_a_tag_that_is_added_later_takes_as_long_as_a_copy(self, world: World) -> None:
        digest = world.push_and_wait("v1")
        world.push(*HOME, APP, "stable", digest=digest)
        assert world.reported(HOME, digest) == ["COMPLETE"]
        assert world.held() == {digest: {"v1"}}
        world.time.now += TAKES
        assert world.held() == {digest: {"v1", "stable"}}

    def test_an_immutable_destination_keeps_its_tag_and_takes_the_image_untagged(self, world: World) -> None:
        old = world.push_and_wait("latest")
        world.set_settings(*IRELAND, APP, {"imageTagMutability": "IMMUTABLE"})
        new = world.push_and_wait("latest")
        assert world.held() == {old: {"latest"}, new: set()}
        assert world.reported(HOME, new) == ["COMPLETE"]

    def test_an_immutable_repository_refuses_a_push(self, world: World) -> None:
        world.create_repository(*HOME, "team/fixed", {"imageTagMutability": "IMMUTABLE"})
        digest = world.push(*HOME, "team/fixed", "v1")
        assert world.push(*HOME, "team/fixed", "v1", digest=digest) == digest
        with pytest.raises(Refuse, match="ImageTagAlreadyExistsException"):
            world.push(*HOME, "team/fixed", "v1")
        assert world.held(HOME, "team/fixed") == {digest: {"v1"}}


class TestDeletionsAtTheSource:
    @pytest.fixture(params=[False, True], ids=["kept", "mirrored"])
    def mirrored(self, request: pytest.FixtureRequest, world: World) -> bool:
        mirrors = bool(request.param)
        world.set_rules(*HOME, [replication_rule(to(IRELAND), mirrors_deletions=mirrors)])
        return mirrors

    def test_of_an_image(self, world: World, mirrored: bool) -> None:
        digest = world.push_and_wait("v1")
        world.push(*IRELAND, APP, "ours", digest=digest)
        world.delete_image(*HOME, APP, digest)
        assert world.held() == ({} if mirrored else {digest: {"v1", "ours"}})

    def test_of_a_tag(self, world: World, mirrored: bool) -> None:
        digest = world.push_and_wait("v1", "stable")
        world.untag(*HOME, APP, "stable")
        assert world.held() == {digest: {"v1"} if mirrored else {"v1", "stable"}}

    def test_of_the_last_tag(self, world: World, mirrored: bool) -> None:
        digest = world.push_and_wait("v1")
        world.push(*IRELAND, APP, "ours", digest=digest)
        world.untag(*HOME, APP, "v1")
        assert world.held() == ({} if mirrored else {digest: {"v1", "ours"}})

    def test_of_a_tag_on_its_way(self, world: World, mirrored: bool) -> None:
        first = world.push_and_wait("v1")
        second = world.push(*HOME, APP, "v2")
        world.push(*HOME, APP, "stable", digest=second)
        world.untag(*HOME, APP, "stable")
        world.time.now += TAKES
        assert world.held() == {first: {"v1"}, second: {"v2"} if mirrored else {"v2", "stable"}}

    @pytest.mark.usefixtures("mirrored")
    def test_of_a_tag_that_names_another_image_there(self, world: World) -> None:
        digest = world.push_and_wait("v1", "stable")
        other = world.push(*IRELAND, APP, "stable")
        world.untag(*HOME, APP, "stable")
        assert world.held() == {digest: {"v1"}, other: {"stable"}}

    def test_over_the_wire(self, world: World, mirrored: bool) -> None:
        first, second = world.push_and_wait("v1"), world.push_and_wait("v2")
        image_ids = [{"imageDigest": first}, {"imageTag": "v2"}]
        world.ask(HOME, "BatchDeleteImage", repositoryName=APP, imageIds=image_ids)
        assert world.held() == ({} if mirrored else {first: {"v1"}, second: {"v2"}})

    @pytest.mark.usefixtures("mirrored")
    def test_where_it_never_arrived(self, world: World) -> None:
        world.push(*HOME, APP, "v1", delay=lambda _: float("inf"))
        other = world.push_and_wait("v2")
        world.untag(*HOME, APP, "v1")
        assert world.held() == {other: {"v2"}}


class TestChangesAtTheDestination:
    def test_what_happens_there_leaves_the_source_and_its_status_alone(self, world: World) -> None:
        deleted, untagged, archived = (world.push_and_wait(tag, f"{tag}-also") for tag in ("v1", "v2", "v3"))
        world.delete_image(*IRELAND, APP, deleted)
        world.untag(*IRELAND, APP, "v2")
        world.archive_image(*IRELAND, APP, archived)
        world.time.now += 1e6
        assert world.held() == {untagged: {"v2-also"}}
        assert world.held(HOME).keys() == {deleted, untagged, archived}
        for digest in (deleted, untagged, archived):
            assert world.reported(HOME, digest) == ["COMPLETE"]

    def test_a_copy_by_hand_has_no_status(self, world: World) -> None:
        world.set_rules(*HOME, [])
        digest = world.push(*HOME, APP, "v1")
        world.create_repository(*IRELAND, APP)
        assert world.push(*IRELAND, APP, "v1", digest=digest) == digest
        assert world.held() == {digest: {"v1"}}
        assert world.reported(HOME, digest) == []

    def test_an_image_that_was_there_before_is_kept(self, world: World) -> None:
        digest = world.push(*HOME, APP, "v1")
        world.create_repository(*IRELAND, APP)
        world.push(*IRELAND, APP, "ours", digest=digest)
        world.time.now += TAKES
        assert world.held() == {digest: {"ours", "v1"}}

    def test_a_repository_that_is_deleted_there_comes_back_with_the_next_copy(self, world: World) -> None:
        world.push_and_wait("v1")
        world.delete_repository(*IRELAND, APP)
        digest = world.push_and_wait("v2")
        assert world.held() == {digest: {"v2"}}


class TestArchive:
    @pytest.fixture
    def digests(self, world: World) -> tuple[str, str]:
        """An active image v1 and an archived image v2."""
        active, archived = world.push_and_wait("v1"), world.push_and_wait("v2")
        world.archive_image(*IRELAND, APP, archived)
        return active, archived

    @pytest.mark.parametrize(
        ("image_filter", "listed"),
        [
            ({}, "v1"),
            ({"imageStatus": "ACTIVE"}, "v1"),
            ({"imageStatus": "ARCHIVED"}, "v2"),
            ({"imageStatus": "ACTIVATING"}, ""),
            ({"imageStatus": "ANY"}, "v1 v2"),
            ({"imageStatus": "ANY", "tagStatus": "UNTAGGED"}, ""),
        ],
    )
    @pytest.mark.usefixtures("digests")
    def test_listings_show_the_requested_status(
        self, world: World, image_filter: dict[str, str], listed: str
    ) -> None:
        rows = world.rows(IRELAND, filter=image_filter).values()
        assert [tag for row in rows for tag in row["imageTags"]] == listed.split()
        names = world.ask(IRELAND, "ListImages", repositoryName=APP, filter=image_filter)["imageIds"]
        assert [name["imageTag"] for name in names] == listed.split()

    def test_each_image_has_its_status(self, world: World, digests: tuple[str, str]) -> None:
        rows = world.rows(IRELAND, filter={"imageStatus": "ANY"})
        assert [rows[digest]["imageStatus"] for digest in digests] == ["ACTIVE", "ARCHIVED"]

    @pytest.mark.parametrize("by", ["imageDigest", "imageTag"])
    def test_look_ups_find_the_requested_status(
        self, world: World, digests: tuple[str, str], by: str
    ) -> None:
        names: Sequence[str] = digests if by == "imageDigest" else ("v1", "v2")
        image_ids = [{by: name} for name in names]
        assert world.rows(IRELAND, imageIds=image_ids, filter={"imageStatus": "ANY"}).keys() == set(digests)
        for image_filter in ({}, {"imageStatus": "ACTIVE"}, {"imageStatus": "ARCHIVED"}):
            request = {"repositoryName": APP, "imageIds": image_ids, "filter": image_filter}
            assert code_of(world, IRELAND, "DescribeImages", **request) == "ImageNotFoundException"

    def test_a_restored_image_is_replicated_again(self, world: World) -> None:
        digest = world.push_and_wait("v1", "stable")
        world.delete_image(*IRELAND, APP, digest)
        world.archive_image(*HOME, APP, digest)
        world.restore_image(*HOME, APP, digest)
        assert world.rows(HOME)[digest]["lastActivatedAt"] == world.time.time()
        assert world.reported(HOME, digest) == ["IN_PROGRESS"]
        assert world.held() == {}
        world.time.now += TAKES
        assert world.held() == {digest: {"v1", "stable"}}

    def test_a_copy_is_restored_when_it_is_replicated_again(self, world: World) -> None:
        digest = world.push_and_wait("v1")
        world.archive_image(*IRELAND, APP, digest)
        world.push(*HOME, APP, "stable", digest=digest)
        world.time.now += TAKES
        assert world.held() == {digest: {"v1", "stable"}}

    def test_over_the_wire(self, world: World) -> None:
        digest = world.push_and_wait("v1")
        for storage_class, status in (("ARCHIVE", "ARCHIVED"), ("STANDARD", "ACTIVE")):
            answer = world.ask(
                HOME,
                "UpdateImageStorageClass",
                repositoryName=APP,
                imageId={"imageTag": "v1"},
                targetStorageClass=storage_class,
            )
            assert answer["imageStatus"] == status
            rows = world.rows(HOME, filter={"imageStatus": "ANY"})
            assert rows[digest]["imageStatus"] == status


class TestSettings:
    def settings(self, world: World, registry: tuple[str, str]) -> dict[str, Any]:
        (row,) = world.ask(registry, "DescribeRepositories", repositoryNames=[APP])["repositories"]
        return {name: row[name] for name in STRICT}

    def test_a_replicated_repository_has_the_defaults(self, world: World) -> None:
        world.delete_repository(*HOME, APP)
        world.ask(HOME, "CreateRepository", repositoryName=APP, **STRICT)
        world.push_and_wait("v1")
        assert self.settings(world, HOME) == STRICT
        assert self.settings(world, IRELAND) == {
            "imageTagMutability": "MUTABLE",
            "imageScanningConfiguration": {"scanOnPush": False},
            "encryptionConfiguration": {"encryptionType": "AES256"},
        }

    def test_settings_change(self, world: World) -> None:
        world.ask(HOME, "PutImageTagMutability", repositoryName=APP, imageTagMutability="IMMUTABLE")
        scanning = {"scanOnPush": True}
        world.ask(
            HOME, "PutImageScanningConfiguration", repositoryName=APP, imageScanningConfiguration=scanning
        )
        world.create_repository(*IRELAND, APP)
        world.set_settings(*IRELAND, APP, STRICT)
        assert self.settings(world, HOME)["imageTagMutability"] == "IMMUTABLE"
        assert self.settings(world, HOME)["imageScanningConfiguration"] == scanning
        assert self.settings(world, IRELAND) == STRICT
