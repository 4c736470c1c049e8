"""The pool: drafts that were served before and may be served again, under their own numbers. Pure.

A workload that comes back is first tried with a draft that knew it; training one again costs minutes and data.
A served draft that is replaced goes into the pool if it is worth a second look:

    traffic changed while it served (outdated): it is the last draft of its time
    or it is the last word on some workload: no draft that served later is known to do as well there, within
    gate_max_loss, by the gate's accept lengths of when it was promoted or scored last

Others were replaced by a better draft for the same traffic, and nothing speaks for them. The draft served before is
always in: a rollback goes there. A version that was rolled back never is. When there are more than pool_size, those go
first that are the last word on nothing, and among equals the one that stopped serving longest ago.

Which of them is asked about when is in pool_try.py; who keeps their files is in roles/draft_catalog.py.
"""

from collections.abc import Iterable
from dataclasses import replace

from tide_daemon.policy.events import NO_DRAFT, DraftName, FleetState, PastDraft
from tide_daemon.policy.gate_parts import MAX_WORKLOADS
from tide_daemon.policy.settings import PolicySettings

Lengths = tuple[tuple[str, float], ...]


def names(fleet: FleetState) -> tuple[DraftName, ...]:
    """(version, digest) of every draft in the pool, by version."""
    return tuple(sorted((past.version, past.digest) for past in fleet.pool))


def find(fleet: FleetState, version: int) -> PastDraft | None:
    """The draft of that version if it is in the pool."""
    return next((past for past in fleet.pool if past.version == version), None)


def best_lengths(fleet: FleetState) -> dict[str, float]:
    """Accept length that the serving draft or one of the pool is known to have had, by workload; the best of them."""
    best: dict[str, float] = {}
    for workload, length in (*fleet.lengths, *(item for past in fleet.pool for item in past.lengths)):
        best[workload] = max(length, best.get(workload, 0.0))
    return best


def with_shift(fleet: FleetState, *, settled: bool) -> FleetState:
    """The state after a shift was seen; `settled`: the draft that serves had learnt what was to be learnt."""
    if fleet.outdated or fleet.serving_version == NO_DRAFT:
        return fleet
    return replace(fleet, outdated=True, settled=settled)


def without(fleet: FleetState, versions: Iterable[int]) -> FleetState:
    """The state when these are no longer held by anybody."""
    gone = set(versions)
    return replace(fleet, pool=tuple(past for past in fleet.pool if past.version not in gone)) if gone else fleet


def with_lengths(fleet: FleetState, version: int, lengths: Lengths) -> FleetState:
    """The state when a draft of the pool was scored again on these workloads."""
    drafts = [
        replace(past, lengths=_merged(lengths, past.lengths)) if past.version == version else past
        for past in fleet.pool
    ]
    return replace(fleet, pool=tuple(drafts))


def follow(before: FleetState, after: FleetState, settings: PolicySettings) -> FleetState:
    """`after`, a rollout's next state, with its pool and what is known of the serving draft brought up to date."""
    if after.serving_version == before.serving_version:
        if after.stage == before.stage:
            return after
        kept = [past for past in after.pool if past.version not in after.refused]
        lengths = after.candidate_lengths if after.candidate_version != NO_DRAFT else ()
        return replace(after, pool=tuple(kept), candidate_lengths=lengths)
    back = find(before, after.serving_version)
    others = [past for past in before.pool if past.version != after.serving_version]
    known = () if back is None else back.lengths
    if before.serving_version in after.refused:  # rolled back
        outdated, settled = (False, False) if back is None else (back.outdated, back.settled)
        after = replace(after, lengths=known, outdated=outdated, settled=settled)
    else:
        # An earlier draft is better on what is served now: traffic is not what the replaced one was made for.
        outdated = before.outdated or back is not None
        after = replace(after, lengths=_merged(before.candidate_lengths, known), outdated=False, settled=False)
        if before.serving_version != NO_DRAFT:
            others.append(
                PastDraft(
                    before.serving_version,
                    before.serving_digest,
                    before.lengths,
                    outdated,
                    before.settled,
                    after.since,
                )
            )
    pool = _chosen([past for past in others if past.version not in after.refused], after, settings)
    return replace(after, pool=pool, candidate_lengths=())


def _chosen(drafts: list[PastDraft], fleet: FleetState, settings: PolicySettings) -> tuple[PastDraft, ...]:
    unmatched = _unmatched(drafts, fleet, 1.0 - settings.gate_max_loss)
    before = fleet.previous_version

    def worth(past: PastDraft) -> tuple[bool, bool, float, int]:
        return past.version == before, past.version in unmatched, past.served_until, past.version

    kept = [past for past in drafts if past.outdated or past.version in unmatched or past.version == before]
    largest = sorted(kept, key=worth, reverse=True)[: settings.pool_size]
    return tuple(sorted(largest, key=lambda past: past.version))


def _unmatched(drafts: list[PastDraft], fleet: FleetState, enough: float) -> set[int]:
    """Versions that are the last word on some workload; `enough`: share of an accept length that does as well."""
    later, found = dict(fleet.lengths), set()
    for past in sorted(drafts, key=lambda past: (past.served_until, past.version), reverse=True):
        if any(later.get(workload, 0.0) < enough * length for workload, length in past.lengths):
            found.add(past.version)
        for workload, length in past.lengths:
            later[workload] = max(length, later.get(workload, 0.0))
    return found


def _merged(newer: Lengths, older: Lengths) -> Lengths:
    """What is known by workload, newer figures first where there are too many."""
    known = dict(newer)
    for workload, length in older:
        if len(known) < MAX_WORKLOADS:
            known.setdefault(workload, length)
    return tuple(sorted(known.items()))
