"""What `check` finds, and how it is told. All pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

from exporter.commands.console import plain


class Level(StrEnum):
    """How grave a finding is. Only a problem makes the command fail."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


#: So many repositories or names are told in one line.
MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission that a principal lacks."""

    action: str
    resources: tuple[str, ...]
    #: The ARN of the role or user; "" if it is not known.
    principal: str = ""

    @property
    def statement(self) -> dict[str, Any]:
        """The IAM statement that grants it."""
        resource = self.resources[0] if len(self.resources) == 1 else list(self.resources)
        return {"Effect": "Allow", "Action": self.action, "Resource": resource}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `subject` is a registry, destination or target."""

    level: Level
    subject: str
    message: str
    remedy: str = ""
    lacks: Permission | None = None

    def json(self) -> dict[str, Any]:
        lacks = self.lacks
        return {
            "level": self.level,
            "subject": plain(self.subject),
            "message": plain(self.message),
            "remedy": plain(self.remedy) or None,
            "action": lacks.action if lacks else None,
            "resources": list(lacks.resources) if lacks else None,
            "principal": plain(lacks.principal) or None if lacks else None,
            "statement": lacks.statement if lacks else None,
        }


def as_text(findings: Sequence[Finding]) -> str:
    """For people: the findings by subject, and how many problems there are."""
    lines: list[str] = []
    for subject, found in groupby(findings, key=lambda finding: finding.subject):
        lines.append(subject)
        for finding in found:
            statement = [f"add {json.dumps(finding.lacks.statement)}"] if finding.lacks else []
            details = [finding.remedy] if finding.remedy else []
            lines.append(f"  {finding.level:7}  {finding.message}")
            lines += [f"           {detail}" for detail in (*details, *statement)]
    problems, notes = (sum(f.level is level for f in findings) for level in (Level.PROBLEM, Level.NOTE))
    lines.append(f"{problems} problem{'s' * (problems != 1)}, {notes} note{'s' * (notes != 1)}")
    return "".join(f"{plain(line)}\n" for line in lines)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    failed = is_problem(findings)
    return {"result": "problems" if failed else "ok", "findings": [finding.json() for finding in findings]}


def is_problem(findings: Iterable[Finding]) -> bool:
    """Whether something is not as it should be."""
    return any(finding.level is Level.PROBLEM for finding in findings)


def role_of(arn: str) -> str:
    """What a policy is attached to: the role of an assumed role, whose path its ARN does not tell.

    "" for the root of an account, which has no policies.
    """
    if arn.endswith(":root"):
        return ""
    return re.sub(r"^(arn:[\w-]+):sts::(\d+):assumed-role/([^/]+)/.*$", r"\1:iam::\2:role/\3", arn)


#: What makes every replication fail where the policy of the destination asks for it: ECR sends neither.
_TRAPS = ("aws:sourceaccount", "aws:sourcearn")


def policy_findings(subject: str, policy: str, source: str, repositories: Sequence[str]) -> list[Finding]:
    """What the registry policy of a destination means for replication from the account `source`.

    `repositories` are the ARNs there of the repositories that it sends, at least one. Reads statements that
    name the actions, or * or ecr:*, for the account, its root or *. Conditions are not evaluated, except for
    the two that replication never satisfies (users' reports).
    """
    partition = repositories[0].split(":")[1]
    remedy = f"let arn:{partition}:iam::{source}:root do ecr:ReplicateImage and ecr:CreateRepository there"
    if not policy:
        message = f"its registry policy lets no other account replicate to it, and {source} needs that"
        return [Finding(Level.PROBLEM, subject, message, remedy)]
    try:
        statements = _list(json.loads(policy)["Statement"])
        meant = [statement for statement in statements if _names(statement.get("Principal"), source)]
        replicate = {arn: _grants(meant, "ecr:ReplicateImage", arn) for arn in repositories}
        create = {arn: _grants(meant, "ecr:CreateRepository", arn) for arn in repositories}
        traps = {arn: _trap(found[0]) for arn, found in replicate.items() if found and all(map(_trap, found))}
        no_creation = [arn for arn, found in create.items() if all(map(_trap, found))]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [Finding(Level.NOTE, subject, "its registry policy cannot be understood")]
    findings = []
    if refused := [arn for arn, found in replicate.items() if not found]:
        message = f"its registry policy does not let {source} do ecr:ReplicateImage on {listed(refused)}"
        findings.append(Finding(Level.PROBLEM, subject, message, remedy))
    if traps:
        message = f"its registry policy has a condition on {min(traps.values())}: every replication fails"
        if len(traps) < len(replicate):
            message += f" to {listed(traps)}"
        remove = "remove the condition; the principal is enough"
        findings.append(Finding(Level.PROBLEM, subject, message, remove))
    if no_creation and not findings:
        message = (
            f"its registry policy does not let {source} do ecr:CreateRepository on {listed(no_creation)}"
        )
        advice = "replication fails where the repository does not exist there yet"
        findings.append(Finding(Level.NOTE, subject, message, f"{advice}; {remedy}"))
    return findings or [Finding(Level.OK, subject, f"its registry policy lets {source} replicate to it")]


def listed(names: Iterable[str]) -> str:
    """The first few of the names, and how many more there are."""
    names = sorted(names)
    more = [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*names[:MOST_NAMES], *more])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(principal: Any, account: str) -> bool:
    named = _list(principal.get("AWS", [])) if isinstance(principal, dict) else [principal]
    return any(
        each in ("*", account) or re.fullmatch(rf"arn:[\w-]+:iam::{account}:root", each) for each in named
    )


def _grants(statements: Iterable[Any], action: str, arn: str) -> list[Any]:
    """The statements that allow the action on the resource; none if one without a condition denies it."""
    about = [
        statement
        for statement in statements
        if _matches(statement.get("Action", []), action) and _matches(statement.get("Resource", "*"), arn)
    ]
    if any(statement["Effect"] == "Deny" and not statement.get("Condition") for statement in about):
        return []
    return [statement for statement in about if statement["Effect"] == "Allow"]


def _matches(patterns: Any, text: str) -> bool:
    """Whether a pattern of IAM, in which * and ? stand for characters, matches. Case does not matter."""
    forms = (re.escape(each).replace(r"\*", ".*").replace(r"\?", ".") for each in _list(patterns))
    return any(re.fullmatch(form, text, re.IGNORECASE) for form in forms)


def _trap(statement: Any) -> str:
    """The condition key that replication never satisfies; "" if there is none."""
    keys = [key for condition in statement.get("Condition", {}).values() for key in condition]
    return next((key for key in keys if key.lower() in _TRAPS), "")
