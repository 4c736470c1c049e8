"""Puts a candidate draft on the bus: claims a version number, then parts, then the manifest.

Order is the whole safety: a number is taken by compare-and-set before anything stands under it, parts come before the
manifest that lists them, and the manifest, published only onto an empty subject, is what makes the version exist.
Cut off anywhere, `publish` called again with the same round goes on: the number it was taking is in the round's
claim.json, and every message carries an id that makes a repetition harmless. A number that was claimed and never
published stays unused.

The payload is a delta against the serving draft when that is held and saves bytes, else a dense anchor; an anchor
comes at a fixed interval of numbers too, so that a reader never follows a long chain. What is kept on the stream:
see draft_catalog.py. The reading side: draft_fetch.py.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from tide_daemon.bus.port import Bus
from tide_daemon.draft import checkpoint, delta
from tide_daemon.draft.checkpoint import Checkpoint, tensor_digests
from tide_daemon.errors import BusConflictError, DraftError, WireError
from tide_daemon.trainer.rounds import Round, Trained
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.kinds import MAX_VERSION
from tide_daemon.wire.records import (
    NO_DRAFT,
    DraftClaim,
    DraftManifest,
    DraftPart,
    PartEntry,
    Record,
    RequestScore,
    TargetSpec,
    TensorEntry,
)
from tide_daemon.wire.weights import split_parts

log = structlog.get_logger()

MAX_PART_BYTES = 1 << 20
_ENVELOPE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Base:
    """The draft that readers are likely to hold: the serving one. `chain` is how many deltas lead to it."""

    version: int
    checkpoint: Checkpoint
    chain: int


class Publisher:
    """Publishes the rounds of one trainer. May be cancelled anywhere; call again to go on."""

    def __init__(
        self,
        bus: Bus,
        spec: TargetSpec,
        trainer: str,
        anchor_interval: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._spec = spec
        self._trainer = trainer
        self._anchor_interval = anchor_interval
        self._now = now

    async def publish(
        self, round_: Round, scores: tuple[RequestScore, ...], num_steps: int, base: Base | None, hint: int
    ) -> DraftManifest:
        """Publish a trained round's candidate.

        Args:
            scores: candidate against `base` (or plain decoding) on held-out requests.
            base: the serving draft, None for none.
            hint: a version number known to be taken, where the search for a free one begins; 0 if none.

        Raises:
            BusError: the broker is away or refused; call again.
            DraftError, StoreError: the candidate or the round cannot be read.
        """
        trained = round_.trained()
        if trained is None:
            raise DraftError(f"round {round_.number} has no trained candidate")
        candidate = await asyncio.to_thread(checkpoint.load, round_.candidate_dir, trained.content_digest)
        version = await self._claim(round_, candidate.digest, hint)
        written = await self._last(subjects.draft_manifest(self._spec.model, version))
        if isinstance(written, DraftManifest) and written.content_digest == candidate.digest:
            return written
        base_used, payload = await asyncio.to_thread(self._payload, candidate, base, version)
        part_bytes = min(MAX_PART_BYTES, self._bus.max_payload - _ENVELOPE_BYTES)
        parts = await asyncio.to_thread(split_parts, payload, part_bytes)
        for entry, data in parts:
            await self._put(DraftPart(version, entry.index, data))
        entries = [entry for entry, _ in parts]
        manifest = await asyncio.to_thread(
            self._manifest, version, candidate, base, base_used, trained, entries, scores, num_steps
        )
        try:
            await self._put(manifest, expected_last=0)
        except BusConflictError:
            # Our own, from a try whose acknowledgement was lost, or the number's rule is broken.
            written = await self._last(subjects.draft_manifest(self._spec.model, version))
            if not isinstance(written, DraftManifest) or written.content_digest != candidate.digest:
                raise
            manifest = written
        log.info(
            "draft_published",
            version=version,
            digest=candidate.digest[:12],
            parent_version=manifest.parent_version,
            anchor=base_used is None,
            payload_bytes=len(payload),
            parts=len(parts),
        )
        return manifest

    async def _claim(self, round_: Round, digest: str, hint: int) -> int:
        """A version number that is ours for this content, free or already claimed by us."""
        intent = round_.read("claim")
        if intent is not None and intent["digest"] == digest and await self._is_ours(intent["version"], digest):
            return int(intent["version"])
        version = await self._first_free(hint)
        while True:
            round_.write("claim", {"version": version, "digest": digest})
            try:
                claim = DraftClaim(version, self._trainer, digest, self._now())
                await self._put(claim, expected_last=0)
                return version
            except BusConflictError:
                if await self._is_ours(version, digest):
                    return version
                version += 1

    async def _is_ours(self, version: int, digest: str) -> bool:
        claim = await self._last(subjects.draft_claim(self._spec.model, version))
        return isinstance(claim, DraftClaim) and (claim.trainer, claim.content_digest) == (self._trainer, digest)

    async def _first_free(self, hint: int) -> int:
        """The lowest unclaimed number above `hint`. Numbers are taken in order, so that a gap has nothing above it."""
        taken, step = hint, 1
        while taken + step <= MAX_VERSION and await self._is_taken(taken + step):
            taken, step = taken + step, step * 2
        while step > 1:
            step //= 2
            if taken + step <= MAX_VERSION and await self._is_taken(taken + step):
                taken += step
        if taken >= MAX_VERSION:
            raise DraftError(f"all {MAX_VERSION} version numbers of {self._spec.model} are taken; use a new model name")
        return taken + 1

    async def _is_taken(self, version: int) -> bool:
        return await self._bus.last(subjects.draft_claim(self._spec.model, version)) is not None

    def _payload(self, candidate: Checkpoint, base: Base | None, version: int) -> tuple[Base | None, bytes]:
        """The smaller of delta and anchor, and the base if it is a delta."""
        dense = delta.encode(candidate)
        if base is None or version % self._anchor_interval == 0 or base.chain + 1 >= self._anchor_interval:
            return None, dense
        difference = delta.encode(candidate, base.checkpoint)
        return (base, difference) if len(difference) < len(dense) else (None, dense)

    def _manifest(
        self,
        version: int,
        candidate: Checkpoint,
        serving: Base | None,
        base: Base | None,
        trained: Trained,
        parts: list[PartEntry],
        scores: tuple[RequestScore, ...],
        num_steps: int,
    ) -> DraftManifest:
        return DraftManifest(
            spec=self._spec,
            version=version,
            parent_version=serving.version if serving is not None else NO_DRAFT,
            base_version=base.version if base is not None else None,
            base_digest=base.checkpoint.digest if base is not None else "",
            content_digest=candidate.digest,
            draft_vocab_size=candidate.config.draft_vocab_size,
            vocab_map_digest=candidate.vocab_map.digest(),
            config_json=candidate.config.to_json(),
            tensors=tuple(TensorEntry(name, *entry) for name, entry in tensor_digests(candidate.tensors).items()),
            parts=tuple(parts),
            trainer=self._trainer,
            created_at=self._now(),
            num_train_tokens=trained.num_train_tokens,
            oldest_sample_at=trained.oldest_sample_at,
            newest_sample_at=trained.newest_sample_at,
            num_steps=num_steps,
            scores=scores,
        )

    async def _put(self, record: Record, expected_last: int | None = None) -> None:
        model = self._spec.model
        data = await asyncio.to_thread(envelope.encode, record)
        await self._bus.publish(
            subjects.subject_of(model, record),
            data,
            message_id=subjects.message_id(model, record),
            expected_last=expected_last,
        )

    async def _last(self, subject: str) -> Record | None:
        """The record on a subject, None if there is none or it is damaged."""
        message = await self._bus.last(subject)
        try:
            return envelope.decode(message.data) if message is not None else None
        except WireError as error:
            log.warning("draft_message_undecodable", subject=subject, error=str(error))
            return None
