"""Which draft versions the stream holds, which of them may go, and their removal.

Kept are the newest few, those in use (the pool of earlier drafts included; nodes that are gone use none), and whatever
the kept ones are deltas of, down to their anchors. Claims are never purged: they are small, and they are why a version
number names one content for ever.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from tide_daemon.bus.port import Bus
from tide_daemon.errors import BusError, WireError
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredServer, DesiredTrainer, DraftManifest

log = structlog.get_logger()

PURGE_EVERY_S = 15.0
GONE_AFTER_S = 86_400.0
"""Desired state that is so much older than the newest keeps no draft, see _Wanted."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A published version: its content and the version it is a delta of (None for an anchor)."""

    digest: str
    base_version: int | None
    num_parts: int


def chain(versions: Mapping[int, Listed], version: int) -> list[int] | None:
    """The version, its base, and so on to the anchor; None when a link is not listed (or they form a ring)."""
    links: list[int] = []
    at: int | None = version
    while at is not None:
        if at not in versions or at in links:
            return None
        links.append(at)
        at = versions[at].base_version
    return links


def removable(versions: Mapping[int, Listed], in_use: Iterable[int], keep_newest: int) -> list[int]:
    """Versions that nobody needs any more, ascending."""
    kept: set[int] = set()
    for version in {*in_use, *sorted(versions)[-keep_newest:]} if keep_newest else set(in_use):
        at: int | None = version
        while at is not None and at in versions and at not in kept:
            kept.add(at)
            at = versions[at].base_version
    return sorted(set(versions) - kept)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The drafts that one node's desired state names, and when it was stored, unix seconds of the broker.

    Desired state stays on the bus when its node is gone. Whoever is there is asked anew when another draft is served,
    so what is served now is in the newest desired state of each kind, however old that is; and a draft that only
    those name that are older than the newest of all by GONE_AFTER_S is wanted by nodes that are gone.
    """

    kind: type[DesiredServer | DesiredTrainer]
    versions: tuple[int, ...]
    stored_at: float


class DraftCatalog:
    """Follows the manifests and the desired states of one model, and purges what nobody needs."""

    def __init__(self, bus: Bus, model: str, keep_newest: int) -> None:
        """`keep_newest`: versions kept besides those in use; 0 to purge nothing."""
        self._bus = bus
        self._model = model
        self._keep_newest = keep_newest
        self._versions: dict[int, Listed] = {}
        self._in_use: dict[str, _Wanted] = {}

    def listed(self) -> dict[int, Listed]:
        """Versions whose manifests were seen on the stream and that were not purged by us."""
        return self._versions

    async def run(self) -> None:
        """Follow for ever. Raises BusSetupError when a stream may not be read."""
        works = (self._follow_manifests(), self._follow_desired(), self._purge_for_ever())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.gather(*tasks)  # a TaskGroup would raise a group
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_manifests(self) -> None:
        async for message in self._bus.tail(subjects.all_manifests(self._model), since="all"):
            try:
                manifest = envelope.decode(message.data)
                subjects.verify(message.subject, manifest)
            except WireError as error:
                log.warning("manifest_undecodable", subject=message.subject, error=str(error))
                continue
            if isinstance(manifest, DraftManifest):
                listed = Listed(manifest.content_digest, manifest.base_version, len(manifest.parts))
                self._versions[manifest.version] = listed

    async def _follow_desired(self) -> None:
        async for message in self._bus.tail(subjects.all_control(self._model), since="last"):
            try:
                desired = envelope.decode(message.data)
            except WireError as error:
                log.warning("desired_state_undecodable", subject=message.subject, error=str(error))
                continue
            if isinstance(desired, DesiredServer):
                versions: tuple[int, ...] = (desired.draft_version,)
            elif isinstance(desired, DesiredTrainer):
                # Earlier drafts that may be served again are in use too.
                versions = (desired.serving_version, *(version for version, _ in desired.pool))
            else:
                continue
            self._in_use[message.subject] = _Wanted(type(desired), versions, message.stored_at)

    async def _purge_for_ever(self) -> None:
        # Waits first: what is in use is not known until the desired states of all nodes have been read.
        while self._keep_newest:
            await asyncio.sleep(PURGE_EVERY_S)
            await self.purge()

    async def purge(self) -> None:
        """Remove parts and manifest of what nobody needs; what fails is left for the next call."""
        if not self._in_use:
            return
        self._leave_out_the_gone()
        in_use = {version for wanted in self._in_use.values() for version in wanted.versions}
        for version in removable(self._versions, in_use, self._keep_newest):
            listed = self._versions[version]
            try:
                # The manifest goes first: a reader sees no version rather than one with holes.
                await self._bus.purge(subjects.draft_manifest(self._model, version))
                for part in range(listed.num_parts):
                    await self._bus.purge(subjects.draft_part(self._model, version, part))
            except BusError as error:
                log.warning("draft_not_purged", version=version, error=str(error))
                return
            del self._versions[version]
            log.info("draft_purged", version=version)

    def _leave_out_the_gone(self) -> None:
        newest: dict[type, float] = {}
        for wanted in self._in_use.values():
            newest[wanted.kind] = max(wanted.stored_at, newest.get(wanted.kind, 0.0))
        oldest = max(newest.values()) - GONE_AFTER_S
        self._in_use = {
            subject: wanted
            for subject, wanted in self._in_use.items()
            if wanted.stored_at >= min(oldest, newest[wanted.kind])
        }
