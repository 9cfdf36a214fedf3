"""Which images to watch: the targets select them from what a registry holds.

All functions are pure: settings and listings go in, selections come out, and the time is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import translate
from hashlib import blake2b
from heapq import nlargest
from itertools import chain

from exporter.config.settings import TargetSettings
from exporter.replication.facts import NOWHERE
from exporter.replication.model import Destination, Image, Name, Source
from exporter.replication.newest import age_of
from exporter.replication.steps import Steps, finished, sliced

_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several exporters that share the repositories between them; ordinals count from 0."""

    ordinal: int = 0
    total: int = 1

    def owns(self, source: Source, repository: str) -> bool:
        """Whether this shard watches the repository. Exactly one of all shards does.

        The hash is the same in every process and release, so that a shard can use its state file after a
        restart.
        """
        key = f"{source.registry_id}/{source.region}/{repository}".encode()
        return int.from_bytes(blake2b(key, digest_size=8).digest()) % self.total == self.ordinal


#: A single exporter, which watches all repositories.
WHOLE = Shard()


@dataclass(frozen=True, slots=True)
class Watched:
    """An image that targets select, and the names in the labels of its series, in order."""

    digest: str
    names: tuple[Name, ...]
    pushed_at: float | None = None
    replicated_from: float | None = None
    #: Where the targets say that it must arrive.
    required: frozenset[Destination] = NOWHERE

    @property
    def image(self) -> Image:
        """The image, with those of its tags that are watched."""
        tags = tuple(name.tag for name in self.names if name.tag)
        return Image(self.digest, tags, self.pushed_at, self.replicated_from)


@dataclass(frozen=True, slots=True)
class Selected:
    """What one target selects in one repository."""

    label: str
    images: int
    #: Names that the target spells out, and that do not exist there.
    missing: frozenset[Name]


@dataclass(frozen=True, slots=True)
class Selection:
    """What all targets together select in one repository, by digest."""

    images: Mapping[str, Watched]
    targets: tuple[Selected, ...]


class Target:
    """One entry of `targets`, with its patterns compiled."""

    def __init__(self, settings: TargetSettings, source: Source) -> None:
        self.settings = settings
        self.label = settings.label
        #: Where the images must arrive. A destination without an account is of the source's own account.
        self.required = frozenset(
            Destination(region, account or source.registry_id)
            for account, _, region in (place.rpartition("/") for place in settings.destinations)
        ) - {Destination(source.region, source.registry_id)}
        self._repository = _Patterns([settings.repository])
        exact = [settings.tag] if settings.tag else []
        everything = [] if settings.digest or exact or settings.tags else ["*"]
        self._tags = _Patterns([*exact, *settings.tags, *everything])
        self._excluded = _Patterns(settings.exclude_tags)
        self._every_tag = bool(everything) and not settings.exclude_tags
        names = [Name(tag, "") for tag in self._tags.exact if not self._excluded.match(tag)]
        names += [Name("", settings.digest)] if settings.digest else []
        #: The names that the target spells out. The target fails if one of them does not exist. A glob over
        #: repositories spells out no name, because not every repository must have the tag.
        self.named = frozenset() if settings.is_glob else frozenset(names)
        #: Whether the images of `named` are all that the target can select.
        self.by_name = not (settings.is_glob or self._tags.globs or settings.untagged)
        #: Whether images without a tag can be selected.
        self.untagged = settings.untagged or settings.digest is not None

    def covers(self, repository: str) -> bool:
        """Whether the target applies to the repository."""
        return self._repository.match(repository)

    def select(self, images: Collection[Image], *, now: float) -> Steps[dict[str, Watched]]:
        """The images that the target selects, by digest; `now` is Unix time.

        An image without a push time passes `pushed_within`, because it would be hidden for ever otherwise.
        For `latest` it is the oldest.
        """
        within, latest = self.settings.pushed_within, self.settings.latest
        found: dict[str, Watched] = {}
        for some in sliced(images):
            for image in some:
                recent = within is None or image.pushed_at is None or image.pushed_at >= now - within
                if recent and (names := self._names(image)):
                    times = (image.pushed_at, image.replicated_from)
                    found[image.digest] = Watched(image.digest, names, *times, self.required)
            if latest is not None:
                found = {w.digest: w for w in nlargest(latest, found.values(), key=age_of)}
            yield
        return found

    def wants(self, tag: str) -> bool:
        """Whether an image is selected by this tag, if `latest` and `pushed_within` let it."""
        return self._every_tag or (self._tags.match(tag) and not self._excluded.match(tag))

    def _names(self, image: Image) -> tuple[Name, ...]:
        if self.settings.digest:
            return (Name("", image.digest),) if image.digest == self.settings.digest else ()
        if not image.tags:
            return (Name("", image.digest),) if self.settings.untagged else ()
        return tuple([Name(tag, "") for tag in sorted(set(image.tags)) if self.wants(tag)])


class _Patterns:
    """Globs and exact words. Exact words are in a set, because there may be thousands."""

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(patterns)
        self.globs = [pattern for pattern in patterns if _GLOB & set(pattern)]
        self.exact = frozenset(patterns) - set(self.globs)
        self._match = re.compile("|".join(map(translate, self.globs))).match if self.globs else None

    def match(self, text: str) -> bool:
        return text in self.exact or bool(self._match and self._match(text))


#: A registry of which nothing is known.
_UNKNOWN = Source("", "")


class Targets:
    """All targets of one registry, in the repositories that this shard watches."""

    def __init__(
        self,
        settings: Iterable[TargetSettings],
        *,
        source: Source = _UNKNOWN,
        ours: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._ours = ours
        # Targets with one label select the same images, for the registries of all of them.
        wanted: dict[str, TargetSettings] = {}
        for s in settings:
            if s.is_glob or ours(s.repository):
                wanted[s.label] = _merged(wanted.get(s.label, s), s)
        self.all = tuple(Target(each, source) for each in wanted.values())
        self._globs = [target for target in self.all if target.settings.is_glob]
        self._exact: dict[str, list[Target]] = {}
        for target in self.all:
            if not target.settings.is_glob:
                self._exact.setdefault(target.settings.repository, []).append(target)
        #: The repositories that targets spell out. They need not exist.
        self.repositories = frozenset(self._exact)
        #: Whether the registry's repositories must be listed, because a glob ranges over them.
        self.need_repositories = bool(self._globs)

    def matching(self, existing: Iterable[str]) -> frozenset[str]:
        """The repositories to watch: those that are spelt out, and the existing ones that a glob matches."""
        return self.repositories.union(filter(self.selects, existing))

    def selects(self, repository: str) -> bool:
        """Whether an existing repository is one to watch."""
        if repository in self.repositories:
            return True
        return any(target.covers(repository) for target in self._globs) and self._ours(repository)

    def matching_nothing(self, existing: Iterable[str]) -> frozenset[str]:
        """The labels of the globs that match no repository of any shard."""
        existing = list(existing)
        return frozenset(t.label for t in self._globs if not any(map(t.covers, existing)))

    def of(self, repository: str) -> RepositoryTargets:
        """The targets that apply to the repository."""
        exact = self._exact.get(repository, [])
        return RepositoryTargets(tuple(exact + [t for t in self._globs if t.covers(repository)]))


def _merged(one: TargetSettings, other: TargetSettings) -> TargetSettings:
    """One target in place of two that differ only in their registries and destinations."""
    both = (*one.registries, *other.registries) if one.registries and other.registries else ()
    destinations = tuple(dict.fromkeys((*one.destinations, *other.destinations)))
    return replace(one, registries=both, destinations=destinations)


class RepositoryTargets:
    """The targets that apply to one repository."""

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self.targets = targets
        self.labels = tuple(target.label for target in targets)
        #: What each target selects, by label.
        self.selections = {target.label: target.settings.selection for target in targets}
        #: Where images must arrive: of each target, by label, and of all together.
        self.required_by = {target.label: target.required for target in targets}
        self.required = NOWHERE.union(*self.required_by.values())
        self.untagged = any(target.untagged for target in targets)
        #: Whether the selection can change although the images stay the same.
        self.age_matters = any(target.settings.pushed_within is not None for target in targets)
        #: Whether an image can be selected because another one goes.
        self.counted = any(target.settings.latest is not None for target in targets)
        self._named = frozenset(name for target in targets for name in target.named)
        #: All names to look up; None if some target needs a listing.
        self.names = self._named if all(target.by_name for target in targets) else None

    def wants(self, tag: str) -> bool:
        """Whether some target can select an image by this tag."""
        return any(target.wants(tag) for target in self.targets)

    def missing(self, images: Sequence[Image]) -> frozenset[Name]:
        """The names that targets spell out and that no image has."""
        if not self._named:
            return self._named
        tags = set(chain.from_iterable(image.tags for image in images))
        digests = {image.digest for image in images}
        return frozenset(name for name in self._named if name.tag not in tags and name.digest not in digests)

    def select(self, images: Sequence[Image], *, now: float) -> Selection:
        """What the targets select of the images; `now` is Unix time."""
        return finished(self.selecting(images, now=now))

    def selecting(self, images: Sequence[Image], *, now: float) -> Steps[Selection]:
        """`select` in steps."""
        single = yield from _without_twins(images)
        merged: dict[str, Watched] = {}
        counts: list[Selected] = []
        missing = self.missing(images)
        for target in self.targets:
            chosen = yield from target.select(single, now=now)
            counts.append(Selected(target.label, len(chosen), target.named & missing))
            for some in sliced(chosen.keys() & merged.keys()):
                for digest in some:
                    one, other = merged[digest], chosen[digest]
                    names = tuple(sorted({*one.names, *other.names}))
                    chosen[digest] = replace(other, names=names, required=one.required | other.required)
                yield
            merged |= chosen
        return Selection(merged, tuple(counts))


def _without_twins(images: Sequence[Image]) -> Steps[Collection[Image]]:
    """Each digest once and each tag once.

    A tag that moves between two pages is on two images of the listing. The newest push keeps it.
    """
    single = {image.digest: image for image in images}
    owners: dict[str, Image] = {}
    for some in sliced(single.values()):
        for image in some:
            for tag in image.tags:
                owner = owners.setdefault(tag, image)
                if owner is image:
                    continue
                older, owners[tag] = sorted((owner, image), key=_pushed)
                kept = single[older.digest]
                single[older.digest] = replace(kept, tags=tuple(t for t in kept.tags if t != tag))
        yield
    return single.values()


def _pushed(image: Image) -> tuple[float, str]:
    return image.pushed_at or 0.0, image.digest
