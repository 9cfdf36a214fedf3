"""What the log says of targets, in virtual time."""

from __future__ import annotations

from support.fakes import FakeECR, Rig, complete, denied, pushed, refusal, settings, world

from exporter.aws.errors import ECRError
from exporter.config.settings import TargetSettings
from exporter.replication.model import Reason


def logged(rig: Rig, event: str) -> list[object]:
    """The targets of such lines, in order."""
    return [fields["target"] for name, fields in rig.journal.events if name == event]


def reasons(rig: Rig) -> list[object]:
    return [fields["reason"] for name, fields in rig.journal.events if name == "target_failed"]


def shut(ecr: FakeECR) -> None:
    """Deny what concerns the images of a repository."""
    ecr.fault = lambda _, repository: refusal(Reason.ACCESS_DENIED) if repository else None


def test_a_name_that_does_not_exist_is_logged_at_once_and_once() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = Rig(settings(TargetSettings("team/app", tag="v1"), TargetSettings("team/app", tag="gone")), ecr)
    rig.run(3)
    assert logged(rig, "target_failed") == ["team/app:gone"]
    assert reasons(rig) == [Reason.IMAGE_NOT_FOUND]
    rig.run(600)
    assert logged(rig, "target_failed") == ["team/app:gone"]
    assert logged(rig, "target_recovered") == []
    pushed(ecr, tag="gone")
    rig.run(65)
    assert logged(rig, "target_recovered") == ["team/app:gone"]


def test_each_of_several_targets_that_fail_together_is_logged_at_once() -> None:
    ecr = FakeECR()
    names = [f"team/app-{number}" for number in range(3)]
    for name in names:
        pushed(ecr, name)
    shut(ecr)
    rig = Rig(settings(*map(TargetSettings, names)), ecr)
    rig.run(5)
    assert sorted(map(str, logged(rig, "target_failed"))) == names


def test_a_burst_of_targets_shares_a_line() -> None:
    ecr = FakeECR()
    names = [f"team/app-{number}" for number in range(12)]
    for name in names:
        pushed(ecr, name)
    rig = Rig(settings(*map(TargetSettings, names)), ecr)
    rig.run(30)
    rig.journal.events.clear()
    ecr.fault = denied("DescribeRegistry")
    rig.run(70)
    assert [fields for name, fields in rig.journal.events if name == "target_failed"] == [
        {
            "registry": "111122223333/us-east-1",
            "target": ", ".join(names[:5]),
            "targets": 12,
            "reason": Reason.ACCESS_DENIED,
        }
    ]


def test_a_target_that_comes_and_goes_takes_few_lines() -> None:
    ecr = FakeECR()
    pushed(ecr)
    rig = world(ecr, target=TargetSettings("team/app"), discovery_interval=5.0)
    rig.run(10)
    for _ in range(30):
        shut(ecr)
        rig.run(10)
        ecr.fault = lambda *_: None
        rig.run(10)
    assert 5 <= len(logged(rig, "target_failed")) <= 11
    assert len(logged(rig, "target_recovered")) <= 11


def test_another_reason_is_logged_too() -> None:
    ecr = FakeECR()
    pushed(ecr)
    shut(ecr)
    rig = world(ecr, target=TargetSettings("team/app"))
    rig.run(10)
    assert reasons(rig) == [Reason.ACCESS_DENIED]
    ecr.fault = lambda *_: None
    del ecr.repositories["team/app"]
    rig.run(70)
    assert reasons(rig) == [Reason.ACCESS_DENIED, Reason.REPOSITORY_NOT_FOUND]


def test_a_target_that_grows_late_is_logged_though_no_call_fails() -> None:
    ecr = FakeECR()
    pushed(ecr)

    def throttled(*_: str) -> ECRError | None:
        return refusal(Reason.THROTTLED)

    rig = world(ecr, stale_after=600.0)
    rig.run(30)
    ecr.fault = throttled
    rig.run(700)
    assert reasons(rig) == [Reason.THROTTLED]
