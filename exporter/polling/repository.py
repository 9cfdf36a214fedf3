"""One repository: which of its images are watched.

Loop thread only. It takes the answers to listings, and its `statuses` take those to status calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.aws.events import Event, EventKind
from exporter.polling.access import Access
from exporter.polling.calls import Call, Job, unusable
from exporter.polling.context import Asker, Context, Outcome
from exporter.polling.listing import ImageListing, Lookup
from exporter.polling.rate_limit import Operation
from exporter.polling.statuses import StatusPoller
from exporter.replication.durations import SLACK
from exporter.replication.facts import ImageFacts, RepositoryFacts, TargetImages
from exporter.replication.model import Destination, FailureScope, Image, Name, Reason
from exporter.replication.newest import Selectable
from exporter.replication.replicas import renamed
from exporter.replication.state_file import Remembered
from exporter.replication.steps import Steps, finished, sliced
from exporter.replication.targets import RepositoryTargets, Selected

#: The part of `discovery_interval` by which it is shortened at random, at most.
LISTING_SPREAD = 0.03
#: So many images that events name are looked up by digest. For more, the repository is listed.
MOST_HINTS = 10


class RepositoryPoller(Asker):
    """Keeps the facts of one repository. It makes the listings itself."""

    def __init__(
        self,
        context: Context,
        name: str,
        targets: RepositoryTargets,
        accesses: Iterable[Access],
        *,
        gone: Callable[[str], bool],
    ) -> None:
        accesses = tuple(accesses)
        super().__init__(context, accesses)
        self.name = name
        self.facts = RepositoryFacts(labels=targets.labels, required=targets.required)
        self._listing = ImageListing(name, targets)
        self.statuses = StatusPoller(
            context, name, self.facts, self._listing, accesses, list_soon=self._list_soon
        )
        self._targets = targets
        #: Told that the repository does not exist; False if it is polled all the same.
        self._gone = gone
        self._newest = context.shared.newest
        self._sightings = context.shared.sightings
        self._memory = context.shared.memory
        self._job = Job(Operation.IMAGES, name)
        self._scope = FailureScope("images", name)
        self._group = f"{id(context)}/{name}"
        #: The present or last change of the images, which goes on in turns.
        self._turns = context.shared.turns
        self._work: Steps[None] | None = None
        #: When the present listing began, and the last complete one (Unix time).
        self._began = self._listed_from = 0.0
        #: Monotonic time at which the next listing is due.
        self._list_at = self._clock.monotonic()
        #: The images that events name, by digest ("" for one that is not named), and whether each must exist.
        self._hints: dict[str, bool] = {}
        #: Monotonic times: of the first of these events, and until when to stay away after a failure.
        self._hinted_at = self._held_until = float("-inf")
        #: The look-up of such images that is under way, and those of them that must exist.
        self._lookup: Lookup | None = None
        self._expected: frozenset[Name] = frozenset()
        #: The hash of the last listing, if an equal one selects the same.
        self._shown: int | None = None
        #: The floor of `newest` when its images were shown.
        self._floor: object = None
        self._sightings.watch(name, self._registry.source, self.statuses.copies)
        self._book()

    # -- events ------------------------------------------------------------------------------

    def happened(self, event: Event) -> Outcome:
        """Take that something happened to an image: ask about it soon, unless that is known already."""
        if event.place != self._registry.source or event.kind is EventKind.REPLICATE_IMAGE:
            return self.statuses.happened(event)
        if event.at is not None and event.at + SLACK < self._listed_from:
            return Outcome.OLD
        if event.digest and event.digest not in self._newest.selected(self._group):
            unwanted = event.tag and not self._targets.untagged and not self._targets.wants(event.tag)
            if event.kind is EventKind.DELETE or (event.kind is EventKind.PUSH and unwanted):
                return Outcome.FOREIGN
        if not self._hints:
            self._hinted_at = self._clock.monotonic()
        self._hints[event.digest] = event.kind is EventKind.PUSH
        if len(self._hints) > MOST_HINTS:
            self._hints = {"": False}  # a listing, however many come while the repository fails
        self._book()
        return Outcome.USED

    def _list_soon(self) -> None:
        """List the images now, unless that fails."""
        self._list_at = max(self._clock.monotonic(), self._held_until)
        self._book()

    def _book(self) -> None:
        """Ask when the next listing is due, or at once if events name images."""
        due = self._list_at
        if self._hints or self._lookup:
            due = min(due, max(self._hinted_at, self._held_until))
        self.ask_again(self._job, due=due)

    def _start(self) -> None:
        """Begin a look-up of the images that events name, or a listing if it costs no more."""
        few = "" not in self._hints and 0 < len(self._hints) <= MOST_HINTS
        # An image that loses its watched tags may have others. Only a listing tells whether it has none.
        cheaper = self._listing.calls > 1 and not self._listing.untagged
        if few and cheaper and self.facts.exists and self._clock.monotonic() < self._list_at:
            hints = {Name("", digest): exists for digest, exists in self._hints.items()}
            self._expected = frozenset(name for name, exists in hints.items() if exists)
            # One unknown name fails its whole call, so what may be deleted is asked for alone.
            self._lookup = Lookup(hints, suspects=frozenset(hints) - self._expected)
        else:
            self._began = self._clock.time()
        self._hints.clear()

    # -- listings ----------------------------------------------------------------------------

    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        del job
        if not (self._lookup or self._listing.under_way):
            self._start()
        if self._lookup:
            return partial(client.find, self.name, self._lookup.names)
        return self._listing.call(client)

    def answered(self, call: Call, answer: Any) -> None:
        """Take a page, or the images of some names."""
        if self._lookup:
            self._lookup.answered(answer)
            self._take_lookup(self._lookup)
        elif self._listing.under_way:
            self._take_result(self._listing.answered(answer))
        else:
            self.ask_again(call.job)  # asked before the targets changed

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed."""
        if not (self._lookup or self._listing.under_way):
            self.ask_again(call.job)  # asked before the targets changed
            return
        if self._lookup and error.reason is Reason.IMAGE_NOT_FOUND:
            self._lookup.not_found()
            self._take_lookup(self._lookup)
            return
        self._lookup = None  # a listing takes its place
        if error.reason is Reason.IMAGE_NOT_FOUND:
            by_name, images = self._listing.not_found()
            if by_name:
                self._take_result(images)
                return
        if error.reason is not Reason.UNAVAILABLE:
            self._listing.begin_again()  # its token may be what is wrong
        if error.reason is Reason.REPOSITORY_NOT_FOUND:
            if self._gone(self.name):
                return
            # A target spells it out. Its images are gone, and that is no failure of its own.
            self._shown = None
            self._listed([], exists=False)
            self._context.fail(self._scope, error, call)
        else:
            self._list_at = self._held_until = self._context.fail(self._scope, error, call)
            self._book()

    def _take_lookup(self, lookup: Lookup) -> None:
        """Take the images that events named, if all were asked for."""
        if not lookup.complete:
            self.ask_again(self._job)
            return
        self._lookup = None
        if not lookup.missing.isdisjoint(self._expected):
            self._list_at = self._clock.monotonic()
        self._begin(self._caught(self._merge(lookup)))

    def _take_result(self, images: Sequence[Image] | None) -> None:
        """Take the images of a whole pass, and begin the next later; None: the pass goes on."""
        if images is None:
            self.ask_again(self._job)
        else:
            self._context.works(self._scope)
            self._listed(images)

    def _listed(self, images: Sequence[Image], *, exists: bool = True) -> None:
        self._begin(self._caught(self._take_images(images, exists=exists)))

    def _begin(self, work: Steps[None]) -> None:
        """Change the images in steps, after the last change has ended."""
        self._finish()
        self._work = work
        self._turns.begin(work)

    def _finish(self) -> None:
        if self._work:
            finished(self._work)

    def _caught(self, work: Steps[None]) -> Steps[None]:
        """Do the work, and then ask again when that is due."""
        try:
            yield from work
        except Exception as error:  # noqa: BLE001 - no answer of AWS may stop the exporter
            self._list_at = self._held_until = self._context.fail(self._scope, unusable(error))
        self._book()

    def _take_images(self, images: Sequence[Image], *, exists: bool) -> Steps[None]:
        """Take a complete listing. It shows at once, after a look at all of it."""
        now, began = self._clock.monotonic(), self._began
        was_fresh = self.facts.fresh(now, self._store.stale_after)
        if not was_fresh:
            self.statuses.durations.interrupted()
        fingerprint = yield from _fingerprint(images, exists=exists)
        if fingerprint != self._shown:
            self._shown = None
            # That the images of a missing repository are missing is no failure of its own.
            yield from self._select(images, complete=lambda target: not (exists and target.missing))
            self._shown = None if self._targets.age_matters else fingerprint
        elif self._floor != self._newest.floor:
            yield from self._show_admitted()
        with self._store.lock:
            if exists != self.facts.exists or not was_fresh:
                self._store.changed()
            self.facts.exists = exists
            self.facts.listed_at = now
            self.facts.listed_time = self._clock.time()
        self._sightings.listed(self.name, self._registry.source, images, at=now)
        self.statuses.durations.listed(began)
        self._memory.forget(self._registry.source, self.name)
        self.statuses.begin_first_round()
        self._listed_from = began
        # Listings have many pages, so less of their interval is given away.
        self._list_at = self._pacing.later(self._pacing.settings.discovery_interval, spread=LISTING_SPREAD)

    def _merge(self, lookup: Lookup) -> Steps[None]:
        """Change the images that events named, and take their tags from the others: a tag names one image.

        If an image may have left a target with `latest`, a listing follows, because another takes its place.
        """
        found = {image.digest: image for image in lookup.items}
        tags = {tag for image in found.values() for tag in image.tags}
        asked = {*found, *(name.digest for name in lookup.missing)}
        images = [image for image in found.values() if not image.archived]
        before = {Name("", digest) for digest in asked}
        #: Each target counts its own images, so an image may leave one of them and keep a tag.
        several, left = len(self._targets.targets) > 1, False
        for some in sliced(self._newest.selected(self._group).values()):
            for known in some:
                if known.digest in asked:
                    before.update(known.names)
                    there = found.get(known.digest)
                    kept = there.tags if there and not there.archived else ()
                else:
                    kept = tuple(name.tag for name in known.names if name.tag and name.tag not in tags)
                    images.append(Image(known.digest, kept, known.pushed_at, known.replicated_from))
                lost = [name for name in known.names if name.tag not in kept]
                if lost and (several or len(lost) == len(known.names)):
                    left = True
            yield
        if left and self._targets.counted:
            self._list_at = max(self._clock.monotonic(), self._held_until)
        # Other images that a target names may exist without being selected.
        complete = {target.label for target in self.facts.targets or () if target.complete}
        yield from self._select(
            images,
            complete=lambda target: (
                (target.label in complete or not target.missing) and target.missing.isdisjoint(before)
            ),
        )
        self._shown = None

    # -- the images --------------------------------------------------------------------------

    def _select(self, images: Sequence[Image], *, complete: Callable[[Selected], bool]) -> Steps[None]:
        """Watch what the targets select. `complete` says whether all exists that a target names."""
        selection = yield from self._targets.selecting(images, now=self._clock.time())
        yield from self._newest.put(self._group, selection.images)
        if self._newest.newly_skipped():
            self._context.warned("images_skipped", max_images=self._newest.limit)
        with self._store.lock:
            self.facts.targets = tuple(
                TargetImages(t.label, t.images, complete=complete(t)) for t in selection.targets
            )
            self._store.skipped = self._newest.skipped
        self._context.targets_changed = True
        yield from self._show_admitted(self._memory.of(self._registry.source, self.name))

    def _show_admitted(self, remembered: Mapping[str, Remembered] | None = None) -> Steps[None]:
        self._floor = self._newest.floor
        admitted = yield from self._newest.admitted(self._group, self._floor)
        is_selected = self.facts.targets is not None
        if not is_selected:
            # `newest` has what the targets before selected. Of that, the facts have what the present ones do.
            images = self.facts.images
            admitted = {digest: images[digest] for digest in admitted if digest in images}
        yield from self._show(admitted, remembered=remembered)
        if self._floor is None and is_selected:  # all of them were admitted, and not only the newest
            self._newest.lend(self._group, self.facts.images)

    def _show(
        self, selected: Mapping[str, Selectable], *, remembered: Mapping[str, Remembered] | None = None
    ) -> Steps[None]:
        """Make the facts those of the selected images, and ask for what is new among them."""
        new, changed, shown = yield from self._differences(selected, remembered or {})
        renames = []
        with self._store.lock:
            gone = self.facts.images.keys() - selected.keys()
            # An answer may have come since the names were compared.
            for digest, names, required in changed:
                before = self.facts.images[digest]
                self.facts.put(renamed(before, names, required))
                renames.append(before)
            self.facts.replace(gone=gone, new=new)
            if gone or new or changed:
                self._store.changed()
        self._newest.shows(self._group, shown)
        for digests in sliced(gone):
            for digest in digests:
                self.statuses.removed(digest)
            yield
        if not selected:
            self.statuses.works()
        may_wait = self.statuses.copies.awaits_looks
        for some in sliced(new):
            for image in some:
                self.statuses.added(image, may_wait=may_wait)
            yield
        for before in renames:
            self.statuses.renamed(before)
        self.statuses.copies.find_destinations()

    def _differences(
        self, selected: Mapping[str, Selectable], remembered: Mapping[str, Remembered]
    ) -> Steps[tuple[list[ImageFacts], list[tuple[str, tuple[Name, ...], frozenset[Destination]]], int]]:
        """The new images, with what is remembered; the other names and destinations of known ones; and how
        many names there are.
        """
        shown = 0
        new: list[ImageFacts] = []
        changed = []
        for some in sliced(selected.values()):
            for image in some:
                shown += len(image.names)
                known = self.facts.images.get(image.digest)
                if known is None or known.replicated_from != image.replicated_from:
                    times = (image.pushed_at, image.replicated_from)
                    found = ImageFacts(image.digest, image.names, *times, required=image.required)
                    new.append(self.statuses.recall(found, remembered.get(image.digest)))
                elif known.names != image.names or known.required != image.required:
                    changed.append((image.digest, image.names, image.required))
            yield
        return new, changed, shown

    # -- what else changes -------------------------------------------------------------------

    def allow(self, accesses: Iterable[Access]) -> None:
        """Ask with one of these accesses from now on."""
        accesses = tuple(accesses)
        self.choice.configure(accesses)
        self.statuses.choice.configure(accesses)

    def retarget(self, targets: RepositoryTargets) -> None:
        """Take the targets: images that others do not select go now, those that they add come soon."""
        if (targets.selections, targets.required_by) == (
            self._targets.selections,
            self._targets.required_by,
        ):
            return
        self._targets = targets
        with self._store.lock:
            self.facts.labels = targets.labels
            self.facts.required = targets.required
            self.facts.targets = None
        self.statuses.restart_first_round()
        self.statuses.durations.interrupted()
        self._begin(self._narrow(targets))
        self._shown = self._lookup = None
        self._listing.begin_again(targets)
        self._list_at = self._clock.monotonic()
        self._book()

    def _narrow(self, targets: RepositoryTargets) -> Steps[None]:
        """Watch those of the present images that the targets select."""
        known = [
            Image(f.digest, tuple(n.tag for n in f.names if n.tag), f.pushed_at, f.replicated_from)
            for f in self.facts.images.values()
        ]
        selection = yield from targets.selecting(known, now=self._clock.time())
        self._newest.keep(self._group)
        yield from self._show(selection.images)

    def intervals_changed(self) -> None:
        """Count other intervals from the last listing and the last answers."""
        if self.facts.listed_at is not None and not self._listing.under_way:
            self._list_at = self.facts.listed_at + self._pacing.settings.discovery_interval
            self._book()
        self.statuses.intervals_changed()

    def admit(self) -> None:
        """Watch those of the listed images that fit under `max_images` now, after a change under way."""
        if self.facts.listed_at is not None and self._floor != self._newest.floor:
            self._work = self._admitting(self._work)
            self._turns.begin(self._work)

    def _admitting(self, before: Steps[None] | None) -> Steps[None]:
        yield from before or ()
        yield from self._show_admitted()

    def retire(self) -> None:
        """It is polled no longer: leave nothing behind."""
        self._finish()
        self._context.forget(self.name)
        self._pacing.cancel(self._job)
        self.statuses.retire()
        finished(self._newest.put(self._group, {}))
        self._newest.shows(self._group, 0)
        self._sightings.unwatch(self.name, self._registry.source, self.statuses.copies)
        with self._store.lock:
            self._store.skipped = self._newest.skipped


def _fingerprint(images: Sequence[Image], *, exists: bool) -> Steps[int]:
    """A hash of a listing. The listing itself takes as much memory as what is known of its images."""
    fingerprint = hash((exists, len(images)))
    for some in sliced(images):
        fingerprint = hash((fingerprint, *some))
        yield
    return fingerprint
