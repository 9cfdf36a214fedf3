"""How an image is named on the command line."""

from __future__ import annotations

import pytest

from exporter.commands.image import ImageReference, parse_image

DIGEST = "sha256:" + "0a" * 32
ACCOUNT = "111122223333"


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("team/app:v1", ImageReference("team/app", tag="v1")),
        (f"team/app@{DIGEST}", ImageReference("team/app", digest=DIGEST)),
        (f"team/app:v1@{DIGEST}", ImageReference("team/app", tag="v1", digest=DIGEST)),
        *(
            (f"{host}/team/app:v1", ImageReference("team/app", "v1", account=ACCOUNT, region="eu-west-1"))
            for host in (
                f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com",
                f"https://{ACCOUNT}.dkr.ecr-fips.eu-west-1.amazonaws.com",
                f"{ACCOUNT}.dkr-ecr.eu-west-1.on.aws",
                f"oci://{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com",
                f"docker://{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com",
            )
        ),
    ],
)
def test_a_name_in_every_form(text: str, image: ImageReference) -> None:
    assert parse_image(text) == image


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "does not name an image"),
        ("team/app", "does not name an image"),
        (":v1", "does not name an image"),
        (f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/team/app", "does not name an image"),
        ("team/*:v1", "is a pattern"),
        ("Team/app:v1", "is not an ECR repository name"),
        ("team/app:-v1", "is not an image tag"),
        ("team/app@sha256:12", "is not a digest"),
        ("docker://team/app:v1", "leave out docker://"),
        ("oci://team/app", "leave out oci://"),
    ],
)
def test_advice_for_what_is_no_name(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_image(text)
