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
    """What a policy is attached to: the role of an assumed role, whose path its ARN does not tell."""
    return re.sub(r"^(arn:[\w-]+):sts::(\d+):assumed-role/([^/]+)/.*$", r"\1:iam::\2:role/\3", arn)


#: What makes every replication fail where the policy of the destination asks for it: ECR sends neither.
_TRAPS = ("aws:sourceaccount", "aws:sourcearn")


def policy_findings(subject: str, policy: str, source: str) -> list[Finding]:
    """What the registry policy of a destination means for replication from the account `source`.

    Reads statements that name the actions, or * or ecr:*, for the account, its root or *. Conditions are not
    evaluated, except for the two that replication never satisfies (users' reports).
    """
    remedy = f"let arn:aws:iam::{source}:root do ecr:ReplicateImage and ecr:CreateRepository there"
    if not policy:
        message = f"its registry policy lets no other account replicate to it, and {source} needs that"
        return [Finding(Level.PROBLEM, subject, message, remedy)]
    try:
        statements = _list(json.loads(policy)["Statement"])
        meant = [statement for statement in statements if _names(statement.get("Principal"), source)]
        replicate = [s for s in meant if _allows(s, "ecr:ReplicateImage")]
        create = [s for s in meant if _allows(s, "ecr:CreateRepository")]
        trapped = [s for s in replicate if _trap(s)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [Finding(Level.NOTE, subject, "its registry policy cannot be understood")]
    if not replicate:
        message = f"its registry policy does not let {source} do ecr:ReplicateImage"
        return [Finding(Level.PROBLEM, subject, message, remedy)]
    if len(trapped) == len(replicate):
        message = f"its registry policy has a condition on {_trap(trapped[0])}: every replication fails"
        return [Finding(Level.PROBLEM, subject, message, "remove the condition; the principal is enough")]
    if all(_trap(statement) for statement in create):
        message = f"its registry policy does not let {source} do ecr:CreateRepository"
        advice = "replication fails where the repository does not exist there yet"
        return [Finding(Level.NOTE, subject, message, f"{advice}; {remedy}")]
    return [Finding(Level.OK, subject, f"its registry policy lets {source} replicate to it")]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(principal: Any, account: str) -> bool:
    named = _list(principal.get("AWS", [])) if isinstance(principal, dict) else [principal]
    return any(
        each in ("*", account) or re.fullmatch(rf"arn:[\w-]+:iam::{account}:root", each) for each in named
    )


def _allows(statement: Any, action: str) -> bool:
    wanted = action.lower()
    patterns = [re.escape(each.lower()).replace(r"\*", ".*") for each in _list(statement.get("Action", []))]
    return statement["Effect"] == "Allow" and any(re.fullmatch(pattern, wanted) for pattern in patterns)


def _trap(statement: Any) -> str:
    """The condition key that replication never satisfies; "" if there is none."""
    keys = [key for condition in statement.get("Condition", {}).values() for key in condition]
    return next((key for key in keys if key.lower() in _TRAPS), "")
