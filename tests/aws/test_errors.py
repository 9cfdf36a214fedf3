"""Which kind an error of botocore is, for whole families of errors."""

from __future__ import annotations

from string import Formatter

import pytest
from botocore import exceptions
from botocore.exceptions import BotoCoreError

from exporter.aws.errors import Classified, ECRError
from exporter.replication.model import Reason

#: Words in the names of botocore's errors about what lends credentials.
LENDING = ("Login", "SSO", "AuthToken", "TokenRetrieval", "Credential", "MFA", "ProfileNotFound")
FAMILY = [
    each
    for name, each in vars(exceptions).items()
    if isinstance(each, type) and issubclass(each, BotoCoreError) and any(word in name for word in LENDING)
]


def classified(error: Exception) -> ECRError:
    with pytest.raises(ECRError) as caught, Classified("ecr:DescribeImages"):
        raise error
    return caught.value


def test_the_family_is_found() -> None:
    assert len(FAMILY) > 12
    assert exceptions.LoginRefreshRequired in FAMILY


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_what_lends_no_credentials_is_access_denied(kind: type[BotoCoreError]) -> None:
    fields = {name: "x" for _, name, _, _ in Formatter().parse(kind.fmt) if name}
    error = classified(kind(**fields))
    assert (error.reason, error.everything) == (Reason.ACCESS_DENIED, True)
    assert error.code == kind.__name__


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Received non 200 response 500 from container metadata: x", Reason.UNAVAILABLE),
        ("Received error when attempting to retrieve container metadata: x", Reason.UNAVAILABLE),
        ("Received non 200 response 403 from container metadata: x", Reason.ACCESS_DENIED),
    ],
)
def test_a_container_agent_that_is_down_is_no_refusal(message: str, reason: Reason) -> None:
    text = f"Error retrieving metadata: {message}"
    error = classified(exceptions.CredentialRetrievalError(provider="container-role", error_msg=text))
    assert (error.reason, error.everything) == (reason, True)


def test_the_html_of_an_agent_is_not_quoted() -> None:
    text = "Error retrieving metadata: Received non 200 response 403 from container metadata: <html>PLANTED"
    error = classified(exceptions.CredentialRetrievalError(provider="container-role", error_msg=text))
    assert str(error).endswith("Received non 200 response 403 from container metadata")
