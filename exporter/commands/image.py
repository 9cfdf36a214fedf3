"""How an operator names an image on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from exporter.config import validators as of
from exporter.config.validators import checked
from exporter.replication.model import Name

_REFERENCE = re.compile(
    rf"(?:{of.REGISTRY_HOST}/)?(?P<repository>[^:@]+)(?::(?P<tag>[^:@]+))?(?:@(?P<digest>.+))?"
)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image by tag, digest or both. The account and the Region are "" unless a registry URI names them."""

    repository: str
    tag: str = ""
    digest: str = ""
    account: str = ""
    region: str = ""

    @property
    def name(self) -> Name:
        """What identifies the image: the digest if there is one."""
        return Name("", self.digest) if self.digest else Name(self.tag, "")

    def __str__(self) -> str:
        tag, digest = self.tag and f":{self.tag}", self.digest and f"@{self.digest}"
        return f"{self.repository}{tag}{digest}"


def parse_image(text: str) -> ImageReference:
    """The image of `repo:tag`, `repo@sha256:…`, both, or a registry URI. Raises ValueError with advice."""
    found = _REFERENCE.fullmatch(text)
    tag, digest = (found["tag"] or "", found["digest"] or "") if found else ("", "")
    if (scheme := re.match("[a-z]+://", text)) and not (found and found[1]):
        raise ValueError(f"{text!r} is no registry URI of ECR; leave out {scheme[0]}, or write the whole URI")
    if not found or not (tag or digest):
        raise ValueError(f"{text!r} does not name an image; write repo:tag, repo@sha256:… or a registry URI")
    repository = checked(of.RepositoryOrGlob, found["repository"])
    if not of.GLOB.isdisjoint(repository):
        raise ValueError(f"{text!r} is a pattern; name one image")
    return ImageReference(
        repository,
        tag=tag and checked(of.Tag, tag),
        digest=digest and checked(of.Digest, digest),
        account=found[1] or "",
        region=found[2] or "",
    )
