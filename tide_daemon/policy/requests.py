"""What an operator may ask, and what follows: pin, unpin, roll back, forget. Pure: a fleet state to the next one.

A request is an event like any other, so the controller stays the only writer of desired state, and the journal says
who asked and why. Each is answered once: the state remembers which were, since a new leader reads the last hour's
again. A pin holds what is served: nothing is promoted meanwhile. Failures still roll back, pinned or not.
"""

from dataclasses import dataclass, replace

from tide_daemon.policy import rollout
from tide_daemon.policy.events import NO_DRAFT, FleetState, OperatorRequested

MAX_AGE_S = 600.0
"""An older request is answered with no: who asked it has long looked elsewhere."""
_KEPT_ANSWERS = 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fleet after a request, whether it was granted, and why (or what now) in a sentence."""

    fleet: FleetState
    granted: bool
    reason: str


def was_answered(fleet: FleetState, request: str) -> bool:
    """Whether this request was answered before, by this leader or by another."""
    return request in fleet.answered


def answer(fleet: FleetState, event: OperatorRequested, at: float) -> Outcome:
    """The outcome of a request that was not answered yet, `at` the controller's time."""
    noted = replace(fleet, answered=(*fleet.answered, event.request)[-_KEPT_ANSWERS:])
    age_s = at - event.asked_at
    if age_s > MAX_AGE_S:
        return Outcome(noted, False, f"it was asked {age_s:.0f} s ago; ask again")
    match event.action:
        case "pin":
            return _pin(noted, event, at)
        case "unpin":
            return _unpin(noted)
        case "roll_back":
            return _roll_back(noted, at)
        case "forget":
            return _forget(noted, event.version)
    return Outcome(noted, False, f"this controller does not know how to {event.action}")


def _pin(fleet: FleetState, event: OperatorRequested, at: float) -> Outcome:
    fleet, dropped = replace(fleet, pinned=True), ""
    if fleet.stage == rollout.CANARY:
        # Not refused for ever: nothing was found against it.
        dropped = f"; version {fleet.candidate_version} was taken off its canary {fleet.canary}"
        fleet = replace(
            fleet, stage=rollout.STEADY, since=at, candidate_version=NO_DRAFT, candidate_digest="", canary=""
        )
    if event.version in (NO_DRAFT, fleet.serving_version):
        served = f"version {fleet.serving_version}" if fleet.serving_version else "plain decoding"
        return Outcome(fleet, True, f"{served} stays until it is unpinned{dropped}")
    moved = replace(
        fleet,
        stage=rollout.REST,
        since=at,
        previous_version=fleet.serving_version,
        previous_digest=fleet.serving_digest,
        serving_version=event.version,
        serving_digest=event.digest,
        refused=tuple(version for version in fleet.refused if version != event.version),
        proven=False,
        downs=(),
    )
    reason = f"every node is brought to version {event.version}, which stays until it is unpinned{dropped}"
    return Outcome(moved, True, reason)


def _unpin(fleet: FleetState) -> Outcome:
    if not fleet.pinned:
        return Outcome(fleet, False, "nothing is pinned")
    return Outcome(replace(fleet, pinned=False), True, "the next candidate that passes the gate is tried")


def _roll_back(fleet: FleetState, at: float) -> Outcome:
    if fleet.stage == rollout.CANARY:
        dropped = rollout.drop_candidate(fleet, at)
        return Outcome(dropped, True, f"version {fleet.candidate_version} was taken off its canary {fleet.canary}")
    if fleet.previous_version == fleet.serving_version:
        return Outcome(fleet, False, f"no other draft than version {fleet.serving_version} is known to go back to")
    back = rollout.roll_back(fleet, at)
    where = f"version {back.serving_version}" if back.serving_version else "plain decoding"
    return Outcome(back, True, f"from version {fleet.serving_version} back to {where}")


def _forget(fleet: FleetState, version: int) -> Outcome:
    uses = {
        fleet.candidate_version: f"it is on its canary {fleet.canary}",
        fleet.previous_version: "a rollback would go there",
        fleet.serving_version: "it is served",
    }
    if version in uses:
        return Outcome(fleet, False, f"version {version} is in use: {uses[version]}")
    forgotten = replace(fleet, refused=(*fleet.refused, version)[-rollout.KEPT_VERSIONS :])
    if not rollout.was_judged(fleet, version):
        forgotten = rollout.with_judged(forgotten, version)
    return Outcome(forgotten, True, f"version {version} is not served again")
