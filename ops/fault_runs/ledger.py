"""What was lost and what took effect twice, from what was seen before, during and after a fault. Pure.

A sample is acknowledged when the trainer has told the broker so: from then on it must be in its store. What the
broker loses before that is counted apart: its stream of samples is written behind (topology.py, persist_async).
A draft is acknowledged when its manifest is on the bus, a decision when it is in the journal. Decisions within the
journal are checked by benches.takeover_ledger, which the bench of takeovers uses too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tide_daemon.wire.records import NO_DRAFT, NodeReport

Chunk = tuple[str, int]
"""Request id and chunk index."""


@dataclass(slots=True)
class Samples:
    """Chunks as the stream of samples showed them."""

    _at: dict[int, Chunk] = field(default_factory=dict)
    _seen: set[Chunk] = field(default_factory=set)
    _acknowledged: set[Chunk] = field(default_factory=set)
    _floor: int = 0

    def seen(self, sequence: int, chunk: Chunk) -> None:
        """The stream holds this chunk at this place. After a crash a place may be taken by another chunk."""
        self._at[sequence] = chunk
        self._seen.add(chunk)
        if sequence <= self._floor:
            self._acknowledged.add(chunk)

    def acknowledged_up_to(self, floor: int) -> None:
        """All places up to `floor` are acknowledged; it goes back when the broker lost its newest acknowledgements."""
        self._acknowledged |= {
            chunk for sequence, chunk in self._at.items() if min(self._floor, floor) < sequence <= floor
        }
        self._floor = floor

    @property
    def num_seen(self) -> int:
        """Distinct chunks."""
        return len(self._seen)

    def by_now(self) -> frozenset[Chunk]:
        """What was seen so far: once all that waited is taken, it is stored or lost; what comes later may wait."""
        return frozenset(self._seen)

    def missing(self, stored: Counter[Chunk], taken: frozenset[Chunk]) -> tuple[int, int, int]:
        """How many acknowledged chunks are not stored, how many others are not, and how many are stored twice.

        Args:
            taken: which of those that nobody acknowledged must be stored by now, see `by_now`.
        """
        lost = self._seen - stored.keys()
        return (
            len(lost & self._acknowledged),
            len((lost & taken) - self._acknowledged),
            sum(count > 1 for count in stored.values()),
        )

    def forget_missing(self, stored: Counter[Chunk], taken: frozenset[Chunk]) -> None:
        """What is lost has been counted; begin anew with the rest."""
        for chunk in (self._seen - stored.keys()) & (self._acknowledged | taken):
            self._seen.discard(chunk)
            self._acknowledged.discard(chunk)
        self._at = {sequence: chunk for sequence, chunk in self._at.items() if chunk in self._seen}


@dataclass(slots=True)
class Drafts:
    """Manifests by version: the digest of each must stay the same for ever."""

    _digests: dict[int, str] = field(default_factory=dict)
    num_contradictions: int = 0

    def seen(self, version: int, digest: str) -> None:
        """A manifest is on the bus."""
        known = self._digests.setdefault(version, digest)
        self.num_contradictions += known != digest

    def by_now(self) -> dict[int, str]:
        """Digest by version, of those seen so far."""
        return dict(self._digests)


def missing_drafts(seen: Mapping[int, str], present: Mapping[int, str]) -> int:
    """How many manifests are gone or changed. `seen` must be known before `present` is read: drafts keep coming."""
    return sum(present.get(version) != digest for version, digest in seen.items())


def applied_twice(reports: Iterable[NodeReport]) -> int:
    """Swaps of one engine's life beyond the changes of what it runs: a version that was swapped in anew in place.

    Args:
        reports: of one node, in their order; reports may be missing.
    """
    twice = 0
    before: NodeReport | None = None
    for report in reports:
        if before is not None and report.engine_starts == before.engine_starts and report.engine == "ready":
            swaps = report.num_swaps - before.num_swaps
            changed = (report.running_version, report.running_digest) != (before.running_version, before.running_digest)
            twice += max(0, swaps - 1 if changed else swaps) if before.running_version != NO_DRAFT else 0
        if report.engine == "ready":
            before = report
    return twice
