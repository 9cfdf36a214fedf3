"""Which images a request asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from exporter.http.advice import Verdict
from exporter.replication.facts import ImageFacts

#: The longest value. The time to translate a glob grows with the square of its length.
_LONGEST = 512


class QueryError(ValueError):
    """A query that is not understood, in a sentence."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which images are wanted. Names may be globs. A digest may be cut at its end, and needs no "sha256:"."""

    repository: str = ""
    tag: str = ""
    digest: str = ""
    status: str = ""
    verdict: str = ""

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)

    @classmethod
    def of(cls, query: Mapping[str, Sequence[str]], *more: str) -> Filters:
        """The filters of a query. `more` are other parameters that it may have. Raises QueryError."""
        for name, given in query.items():
            if name not in (*cls.__slots__, *more):
                known = ", ".join((*cls.__slots__, *more))
                raise QueryError(f"There is no parameter {name!r}; the parameters are {known}.")
            if len(given) > 1:
                raise QueryError(f"The parameter {name} is given more than once.")
        filters = cls(**{name: query[name][0].strip() for name in cls.__slots__ if name in query})
        for name in cls.__slots__:
            if len(getattr(filters, name)) > _LONGEST:
                raise QueryError(f"The parameter {name} is longer than {_LONGEST} characters.")
        filters.check("verdict", list(Verdict))
        if not re.fullmatch("(?:sha256:)?[0-9a-f]{0,64}", filters.digest):
            raise QueryError(f"{filters.digest!r} is not a digest or its beginning, such as sha256:0123abcd.")
        return filters

    def check(self, name: str, values: Sequence[str]) -> None:
        """Raise QueryError if the parameter of that name has none of these values."""
        value = getattr(self, name)
        if value and value not in values:
            raise QueryError(f"{value!r} is not a {name}; a {name} is one of {', '.join(values)}.")

    def query(self, **more: str) -> dict[str, str]:
        """The parameters that ask for the same, and others."""
        asked = {name: str(getattr(self, name)) for name in self.__slots__}
        return {name: value for name, value in (asked | more).items() if value}

    def has_repository(self, name: str) -> bool:
        return not self.repository or _matcher(self.repository)(name) is not None

    def has_status(self, status: str | None) -> bool:
        return self.status in ("", status)

    def has_verdict(self, verdict: Verdict) -> bool:
        return self.verdict in ("", verdict)

    def matching(self, images: Sequence[ImageFacts]) -> Sequence[ImageFacts]:
        """The images whose tag and digest match."""
        if self.digest:
            start = self.digest.removeprefix("sha256:")
            images = [image for image in images if image.digest.removeprefix("sha256:").startswith(start)]
        if self.tag:
            match = _matcher(self.tag)
            tagged = ((image, name.tag) for image in images for name in image.names if name.tag)
            images = list({image.digest: image for image, tag in tagged if match(tag)}.values())
        return images


@lru_cache(maxsize=64)
def _matcher(glob: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(translate(glob)).match
