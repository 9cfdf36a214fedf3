"""Looks at the copies at one destination: a poller for each repository that is replicated to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from exporter.aws.ecr import EcrClient, TagStatus
from exporter.aws.errors import ECRError
from exporter.polling.access import Access
from exporter.polling.calls import Call, Job
from exporter.polling.context import Asker, Context
from exporter.polling.listing import Listing, Lookup
from exporter.polling.rate_limit import Operation
from exporter.polling.repository_settings import SettingsPoller
from exporter.replication.facts import DestinationFacts, Look
from exporter.replication.model import LOOKUP_SIZE, Destination, FailureScope, Image, Name, Page, Reason
from exporter.replication.replicas import Contents
from exporter.replication.steps import Steps, sliced

#: Calls of one look-up after which the repository is listed instead: unknown names cost a call each.
MOST_LOOKUPS = 10
#: One of so many looks lists untagged images too, if only to tell again why an image is not present.
UNTAGGED_EVERY = 4
#: What waits to be looked up soon is collected for this part of `pending_interval`.
COLLECT_FOR = 1 / 3
#: Seconds between two searches for looks that are too old.
CHECK_EVERY = 10.0


@dataclass(slots=True)
class _Look:
    """A look under way. A listing is one of tagged images, and then one of all images if that is needed."""

    run: Listing[Image] | Lookup
    #: Whether it is about all copies.
    whole: bool = True
    tags: TagStatus = "TAGGED"
    calls: int = 0
    #: Whether the repository exists there.
    exists: bool = True
    #: What was seen until now.
    contents: Contents = field(default_factory=Contents)


class ReplicaPoller(Asker):
    """Looks at one repository of a destination. A look under way shows nothing."""

    def __init__(
        self, context: Context, facts: DestinationFacts, repository: str, settings: SettingsPoller
    ) -> None:
        super().__init__(context)
        self._facts = facts
        self._settings = settings
        self._name = repository
        self._sightings = context.shared.sightings
        self._job = Job(Operation.REPLICAS, repository)
        self._scope = FailureScope("replicas", repository)
        self._look: _Look | None = None
        #: Monotonic time of the next look at all copies; and names to look up before.
        self._due = self._clock.monotonic()
        self._soon: set[Name] = set()
        #: Monotonic times: when to look them up, and until when to stay away after a failure.
        self._soon_due = self._due
        self._held_until = float("-inf")
        #: Monotonic time at which some copies may have been shown last without a look at all of them; None if
        #: that is forgotten. Listings of a watched registry show copies.
        self._shown_at: float | None = self._due
        #: How many pages the last listing had; None before. Which names were not there at the last look-up.
        self._pages: int | None = None
        self._suspects: frozenset[Name] = frozenset()
        #: Monotonic time at which all images were listed last.
        self._untagged_at = float("-inf")
        #: Whether ECR refuses to look names up in the archive too.
        self._lists_only = False
        with self._store.lock:
            facts.looks[repository] = Look(self._due)
        self._sightings.look(repository, facts.destination, self)
        self.ask_again(self._job)

    # -- what to look at ---------------------------------------------------------------------

    def look_soon(self, names: Iterable[Name]) -> None:
        """Look these names up soon: their copies have just arrived."""
        if not self._soon:
            # What arrives meanwhile does not put it off.
            self._soon_due = self._pacing.later(COLLECT_FOR * self._pacing.settings.pending_interval)
        self._soon.update(names)
        if not self._look:
            self._book()

    def listed(self, *, everything: bool) -> None:
        """Take that the registry's own listing showed all copies, or not `everything`."""
        self._shown_at = self._clock.monotonic()
        self._settings.seen(self._name, exists=True)
        if everything and (not self._look or self._context.reported(self._scope)):
            self._look = None
            self._works()
            self._done()
        elif self._facts.looks[self._name].time is None and not self._look:
            self._due = self._clock.monotonic()
            self._book()

    def _book(self) -> None:
        due = min(self._due, self._soon_due) if self._soon else self._due
        self.ask_again(self._job, due=max(due, self._held_until))

    def _begin(self) -> _Look:
        destination, pages = self._facts.destination, self._pages
        if pages is None:
            pages = self._sightings.pages(self._name, destination)
        if self._soon and self._clock.monotonic() < self._due and not self._lists_only:
            names = frozenset(self._soon)
            if Lookup.calls(names, frozenset()) <= max(1, pages or 1):
                self._soon.clear()
                return _by_name(names, whole=False)
        self._soon.clear()
        copies = self._sightings.copies(self._name, destination)
        if copies and len(copies) <= LOOKUP_SIZE * (pages or 1) and not self._lists_only:
            names = frozenset(name for image in copies for name in _names(image.digest, image.names))
            calls = Lookup.calls(names, self._suspects)
            # A listing has no unknown names that cost calls, so it wins a tie.
            if calls < (pages if pages is not None else 2):
                return _by_name(names, suspects=self._suspects)
        return self._list()

    def _list(self) -> _Look:
        untagged = self._sightings.untagged(self._name, self._facts.destination)
        return _Look(Listing("ecr:DescribeImages"), tags="ANY" if untagged else "TAGGED")

    # -- calls -------------------------------------------------------------------------------

    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        del job
        look = self._look = self._look or self._begin()
        look.calls += 1
        if isinstance(look.run, Lookup):
            return partial(client.find, self._name, look.run.names, archived=True)
        return partial(client.images, self._name, look.run.token, tags=look.tags, archived=True)

    def answered(self, call: Call, answer: Any) -> None:
        """Take a page, or the images of some names."""
        if look := self._look:
            look.run.answered(answer)
            look.contents.add(answer.items if isinstance(answer, Page) else answer)
            self._go_on(look)
        else:
            self.ask_again(call.job)

    def _go_on(self, look: _Look) -> None:
        self._settings.seen(self._name, exists=True)
        run = look.run
        if not run.complete:
            if isinstance(run, Lookup) and look.calls >= MOST_LOOKUPS + (self._pages or 0):
                if look.whole:
                    self._suspects |= run.missing
                self._look = self._list()
            self.ask_again(self._job)
            return
        if isinstance(run, Lookup):
            if look.whole:
                self._suspects = frozenset(run.missing)
            self._take(look)
        elif look.tags == "TAGGED":
            self._pages = run.pages
            self._context.shared.turns.begin(self._tagged_images_listed(look))
        else:
            look.contents.everything = True
            self._suspects = frozenset(n for n in self._suspects if not look.contents.has(n))
            self._take(look)

    def _tagged_images_listed(self, look: _Look) -> Steps[None]:
        """List all images, if that would tell something.

        Only untagged ones tell an absent image from an untagged one. What is known not to be present is told
        apart at every fourth look. The tagged images are listed again, because an image that gets a tag
        between a listing of tagged and one of untagged images is in neither.
        """
        now, destination = self._clock.monotonic(), self._facts.destination
        # Looks keep their distance, but for the time that their calls take.
        due = now >= self._untagged_at + (UNTAGGED_EVERY - 0.5) * self._pacing.settings.replica_interval
        for some in sliced(self._sightings.copies(self._name, destination)):
            if look.contents.lacks(some) if due else look.contents.has_news(some, destination):
                self._untagged_at = now
                look.run, look.tags, look.contents = Listing("ecr:DescribeImages"), "ANY", Contents()
                break
            yield
        if self._look is not look:
            return  # it is looked at no longer
        if look.tags == "ANY":
            self.ask_again(self._job)
        else:
            self._take(look)

    def _take(self, look: _Look) -> None:
        self._look = None
        self._shown_at = self._clock.monotonic()
        self._works()
        look.contents.arriving = frozenset(name.digest for name in self._soon if name.digest)
        self._settings.seen(self._name, exists=look.exists)
        self._sightings.looked(self._name, self._facts.destination, look.contents)
        if look.whole:
            self._done()
        else:
            self._book()

    def _done(self) -> None:
        """All copies were looked at: do so again after `replica_interval`."""
        now, interval = self._clock.monotonic(), self._pacing.settings.replica_interval
        # The first looks of all repositories come together, so the second ones are spread. Later ones keep
        # their distance, which costs fewer calls than intervals that are shortened at random.
        first = self._facts.looks[self._name].time is None
        distance = interval * (self._context.shared.random.uniform(0.1, 1.0) if first else 1.0)
        due = min(self._due, now) + distance
        self._due = due if due > now else now + distance
        with self._store.lock:
            self._facts.looked(self._name, Look(now, self._clock.time()))
        self._book()

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed. What was seen before stays, until it is too old."""
        look, reason = self._look, error.reason
        if not look:
            self.ask_again(call.job)  # asked before the repository was looked at again
            return
        if reason is Reason.IMAGE_NOT_FOUND and isinstance(look.run, Lookup):
            look.run.not_found()
            self._go_on(look)
            return
        if reason is Reason.REPOSITORY_NOT_FOUND:
            self._take(_Look(Listing("ecr:DescribeImages"), contents=Contents(everything=True), exists=False))
            return
        if reason is Reason.INVALID and isinstance(look.run, Lookup) and not self._lists_only:
            self._lists_only, self._look = True, None
            self.ask_again(self._job)
            return
        if reason is not Reason.UNAVAILABLE:
            self._look = None  # its token may be what is wrong
        due = self._context.fail(
            self._scope, error, call, cap=self._pacing.settings.failed_interval, fails_targets=False
        )
        if self._context.reported(self._scope):
            with self._store.lock:
                self._facts.failures[self._scope] = reason
        self._held_until = due
        self.ask_again(self._job, due=due)

    def _works(self) -> None:
        self._held_until = float("-inf")
        self._context.works(self._scope)
        with self._store.lock:
            self._facts.failures.pop(self._scope, None)

    # -- time and configuration --------------------------------------------------------------

    def intervals_changed(self) -> None:
        """Count another interval from the last look."""
        look = self._facts.looks[self._name]
        if look.time is not None:
            self._due = look.at + self._pacing.settings.replica_interval
        if not self._look:
            self._book()

    def forget_old(self, now: float) -> None:
        """Take that what was seen is not known any more, if it could not be confirmed for too long."""
        settings, last = self._pacing.settings, self._facts.looks[self._name]
        shown_at = self._shown_at if last.time is None else last.at
        if shown_at is not None and now > shown_at + settings.replica_interval + settings.stale_after:
            self._shown_at = None
            self._sightings.looked(self._name, self._facts.destination, None)
            with self._store.lock:
                self._facts.looks[self._name] = last._replace(time=None)

    def retire(self) -> None:
        """It is looked at no longer: leave nothing behind."""
        self._pacing.cancel(self._job)
        self._look = None
        self._works()
        with self._store.lock:
            del self._facts.looks[self._name]
        self._sightings.unlook(self._name, self._facts.destination, self)


def _by_name(names: frozenset[Name], *, whole: bool = True, suspects: frozenset[Name] = frozenset()) -> _Look:
    contents = Contents(everything=True, asked=names)
    return _Look(Lookup(names, suspects=suspects), whole=whole, contents=contents)


def _names(digest: str, names: Iterable[Name]) -> Iterable[Name]:
    """What to look up to tell what became of an image under its names."""
    return {Name("", digest), *(name for name in names if name.tag)}


class Replicas:
    """Looks at the repositories of one destination."""

    def __init__(self, context: Context, settings: SettingsPoller) -> None:
        self._context = context
        self._settings = settings
        clock, source = context.shared.clock, context.facts.source
        destination = Destination(source.region, source.registry_id)
        self.facts = DestinationFacts(destination, context.facts, since=clock.monotonic())
        context.shared.sightings.settings[destination] = settings
        #: By repository.
        self.pollers: dict[str, ReplicaPoller] = {}
        self._interval = 0.0
        self._check_at = float("-inf")

    def configure(self, repositories: Collection[str], accesses: Iterable[Access]) -> None:
        """Look at these repositories and no others, with these accesses. The pacing has the settings."""
        accesses, interval = tuple(accesses), self._context.pacing.settings.replica_interval
        with self._context.shared.store.lock:
            self.facts.interval = interval
        for name in self.pollers.keys() - set(repositories):
            self.pollers.pop(name).retire()
        for name in repositories:
            if name not in self.pollers:
                self.pollers[name] = ReplicaPoller(self._context, self.facts, name, self._settings)
            elif interval != self._interval:
                self.pollers[name].intervals_changed()
            self.pollers[name].choice.configure(accesses)
        self._interval = interval

    def record(self) -> float:
        """Forget what could not be confirmed for too long; when to do so again (monotonic)."""
        now = self._context.shared.clock.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK_EVERY
            for poller in self.pollers.values():
                poller.forget_old(now)
        return self._check_at

    def retire(self) -> None:
        """It is looked at no longer: leave nothing behind."""
        for poller in self.pollers.values():
            poller.retire()
        self.pollers.clear()
        known, destination = self._context.shared.sightings.settings, self.facts.destination
        # What looks at it now may be another poller.
        if known.get(destination) is self._settings:
            del known[destination]
