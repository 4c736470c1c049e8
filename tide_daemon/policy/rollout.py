"""From a promoted candidate to a served draft: canary, rest, watch; back on failure, drop or deadline.

    steady --promoted--> canary --pass--> rest --pass--> watch --pass--> steady
                           |               |               |
                           +----fail-------+-----fail------+--> steady with the draft served before

    canary   one node runs the candidate; every other node and the trainers keep the serving draft
    rest     the candidate is the serving draft; every node that is there has to report it, one at least
    watch    live accept lengths are still compared; the next round of training may begin meanwhile

The next candidate waits for the end of the watch, about watch_s: a canary that began in it would end it, with a draft
served that only its own canary had tried. A round that begins with the watch and takes longer loses nothing by it.

With one node the canary is that node. A node that comes back later takes the serving draft: desired
state is level-triggered, nothing is replayed to it. Pure: a function of FleetState and node views.

A leader that takes over in the middle knows of no node until it reports. Whoever is there has reported
within lost_after_s, the limit of contact loss; until then nobody is lost, nobody is the only one, and
nothing passes because all were seen. The deadline for nodes that were seen counts from the takeover.

What an engine that goes down says about a draft is in outages.py.

A node that cannot have the draft says why (DraftFailed). In "canary" and "rest" that ends the rollout once it has
tried draft_max_tries times in a row. What may pass by itself is no such try: without a broker, without room on the
disk, without an answer of its engine a node is on its way until the deadline.

A canary among several passes only on live figures. A single one may pass without them (traffic is
gone, or speculation is off because it does not pay): there is no second node to protect, and the
next round can start from the better draft.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tide_daemon.policy import outages
from tide_daemon.policy.events import NO_DRAFT, CandidatePublished, DraftName, FleetState
from tide_daemon.policy.node_view import NodeView
from tide_daemon.policy.settings import PolicySettings

STEADY, CANARY, REST, WATCH = "steady", "canary", "rest", "watch"
_WAIT, _PASS, _FAIL = "wait", "pass", "fail"
KEPT_VERSIONS = 256
_ONE_SIDED_Z = 1.645


@dataclass(frozen=True, slots=True)
class Move:
    """A change of the fleet's state, and why."""

    fleet: FleetState
    reason: str
    numbers: dict[str, float]


def begin(
    fleet: FleetState,
    candidate: CandidatePublished,
    accept_length: float,
    gain: float,
    canary: str,
    at: float,
    before: tuple[float, int] = (0.0, 0),
) -> FleetState:
    """The state when a promoted candidate goes to its canary.

    Args:
        accept_length, gain: the gate's.
        before: what the canary accepts live so far and on chains of what length, for a leader that did not see it.
    """
    return replace(
        fleet,
        stage=CANARY,
        candidate_version=candidate.version,
        candidate_digest=candidate.digest,
        canary=canary,
        since=at,
        offline_accept_length=accept_length,
        offline_num_steps=candidate.num_steps,
        last_gain=gain,
        canary_accept_length=before[0],
        canary_num_steps=before[1],
        proven=False,
        downs=(),
    )


def with_judged(fleet: FleetState, version: int) -> FleetState:
    """The state after the gate answered for a version."""
    return replace(fleet, judged=(*fleet.judged, version)[-KEPT_VERSIONS:])


def was_judged(fleet: FleetState, version: int) -> bool:
    """Whether the gate has answered for it, now or so long ago that it is forgotten."""
    forgotten = len(fleet.judged) == KEPT_VERSIONS and version < min(fleet.judged)
    return forgotten or version in fleet.judged


def newest(fleet: FleetState) -> int:
    """The version on its canary, else the one that is served: the one that `offline_accept_length` is of."""
    return fleet.candidate_version or fleet.serving_version


def draft_for(fleet: FleetState, node: str) -> tuple[int, str]:
    """(version, digest) that a node shall run."""
    if fleet.stage == CANARY and node == fleet.canary:
        return fleet.candidate_version, fleet.candidate_digest
    return fleet.serving_version, fleet.serving_digest


@dataclass(frozen=True, slots=True)
class Reign:
    """How long this leader has led and seen, in seconds and at the time of `at`.

    Attributes:
        stage_s: since the stage began, whoever led.
        seen_s: of the stage, since the takeover if that was later.
        taken_over: the stage began under another leader.
        knows_all: it has led for so long that whoever is there was heard of.
    """

    at: float
    stage_s: float
    seen_s: float
    taken_over: bool
    knows_all: bool


def reign(fleet: FleetState, at: float, led_since: float, settings: PolicySettings) -> Reign:
    """What a leader since `led_since` has seen of the stage."""
    since = max(fleet.since, led_since)
    return Reign(at, at - fleet.since, at - since, led_since > fleet.since, at - led_since >= settings.lost_after_s)


def advance(
    fleet: FleetState, nodes: Sequence[NodeView], at: float, settings: PolicySettings, led_since: float = -math.inf
) -> Move | None:
    """The next state of a rollout, None to wait.

    Args:
        led_since: when this leader began to lead.
        nodes: in "canary" all of them, or the canary alone once it is lost; in "rest" those that may have failed and
            one that is outstanding, all of them once none is or is_late; in "watch" those that may have failed or
            shown enough, all of them once is_late. Any larger set gives the same answer.
    """
    check = _CHECKS.get(fleet.stage)
    if check is None:
        return None
    outcome, reason, numbers = check(fleet, nodes, reign(fleet, at, led_since, settings), settings)
    noted = outages.with_noted(fleet, nodes) if fleet.stage in (REST, WATCH) else None
    if outcome == _WAIT:
        return None if noted is None else Move(*noted)
    moved = _TRANSITIONS[fleet.stage, outcome](fleet if noted is None else noted[0], at)
    if fleet.stage == CANARY:
        moved = replace(moved, proven=outcome == _PASS and numbers["num_seen"] >= settings.watch_min_steps)
    return Move(moved, reason, numbers)


def is_late(fleet: FleetState, led: Reign, settings: PolicySettings) -> bool:
    """Whether "rest" or "watch" is decided now whatever was seen."""
    limit_s = settings.rollout_deadline_s + (settings.watch_s if fleet.stage == WATCH else 0.0)
    return led.knows_all and led.seen_s >= limit_s


_Outcome = tuple[str, str, dict[str, float]]
_STILL: _Outcome = (_WAIT, "", {})


def _check_canary(fleet: FleetState, nodes: Sequence[NodeView], led: Reign, settings: PolicySettings) -> _Outcome:
    view = next((node for node in nodes if node.name == fleet.canary), None)
    if view is None or not view.alive:
        if led.knows_all and led.stage_s >= settings.rollout_deadline_s:
            return _FAIL, f"canary {fleet.canary} was lost", {}
        return _STILL
    if view.engine == "down":
        return _FAIL, f"the engine of canary {view.name} went down", {}
    candidate = fleet.candidate_version, fleet.candidate_digest
    if not _runs(view, *candidate):
        return _not_yet(view, candidate, led, settings)
    if (failed := _dropped(view, settings)) is not None:
        return failed
    if view.num_seen >= settings.watch_min_steps:
        reason = f"canary {view.name}: accept length {view.live:.2f} over {view.num_seen} chains"
        return _PASS, reason, _live_numbers(view)
    running_s = led.at - view.running_since
    if not any(node.alive and node.name != view.name for node in nodes):
        if not led.knows_all:
            return _STILL
        if view.settled or running_s >= settings.rollout_deadline_s:
            return _PASS, f"{view.name} runs it and is the only node", _live_numbers(view)
        return _STILL
    if view.busy_running_s >= settings.canary_busy_s:
        return _FAIL, f"canary {view.name} showed no live figures in {view.busy_running_s:.0f} busy seconds", {}
    others_busy = any(node.busy for node in nodes if node.alive and node.name != view.name)
    if not view.busy and others_busy and running_s >= settings.rollout_deadline_s:
        return _FAIL, f"canary {view.name} got no traffic for {running_s:.0f} s", {}
    return _STILL


def _check_rest(fleet: FleetState, nodes: Sequence[NodeView], led: Reign, settings: PolicySettings) -> _Outcome:
    waiting, num_running = False, 0
    if (against := outages.condemned(fleet, nodes, settings)) is not None:
        return _FAIL, *against
    for view in nodes:
        if not view.alive or view.engine != "ready":
            continue
        if not _runs(view, fleet.serving_version, fleet.serving_digest):
            outcome = _not_yet(view, (fleet.serving_version, fleet.serving_digest), led, settings)
            if outcome[0] == _FAIL:
                return outcome
            waiting = True
            continue
        if (failed := _dropped(view, settings)) is not None:
            return failed
        num_running += 1
    if waiting or not led.knows_all:
        return _STILL
    if num_running == 0:
        return _nobody(fleet, led) if is_late(fleet, led, settings) else _STILL
    return _PASS, f"{num_running} node(s) run version {fleet.serving_version}", {"num_nodes": float(num_running)}


def _check_watch(fleet: FleetState, nodes: Sequence[NodeView], led: Reign, settings: PolicySettings) -> _Outcome:
    if (against := outages.condemned(fleet, nodes, settings)) is not None:
        return _FAIL, *against
    running = [view for view in nodes if view.alive and _runs(view, fleet.serving_version, fleet.serving_digest)]
    for view in running:
        if (failed := _dropped(view, settings)) is not None:
            return failed
    if led.stage_s < settings.watch_s:
        return _STILL
    held = f"version {fleet.serving_version} held for {led.stage_s:.0f} s"
    # A draft that showed nothing on its canary had nothing to show; another leader does not know that.
    needed = settings.watch_min_steps if fleet.proven or led.taken_over else 0
    if any(view.num_seen >= needed for view in running):
        return _PASS, held, {}
    if not is_late(fleet, led, settings):
        return _STILL
    if not running:
        return _nobody(fleet, led)
    return _PASS, f"{held} and showed nothing: no traffic, or it is not speculated with", {}


def _to_rest(fleet: FleetState, at: float) -> FleetState:
    return replace(
        fleet,
        stage=REST,
        since=at,
        previous_version=fleet.serving_version,
        previous_digest=fleet.serving_digest,
        serving_version=fleet.candidate_version,
        serving_digest=fleet.candidate_digest,
        candidate_version=NO_DRAFT,
        candidate_digest="",
        canary="",
    )


def _to_watch(fleet: FleetState, at: float) -> FleetState:
    return replace(fleet, stage=WATCH, since=at)


def _to_steady(fleet: FleetState, at: float) -> FleetState:
    return replace(fleet, stage=STEADY, since=at)


def drop_candidate(fleet: FleetState, at: float) -> FleetState:
    """The state after a canary failed, or was ended."""
    return replace(
        fleet,
        stage=STEADY,
        since=at,
        candidate_version=NO_DRAFT,
        candidate_digest="",
        canary="",
        refused=(*fleet.refused, fleet.candidate_version)[-KEPT_VERSIONS:],
    )


def roll_back(fleet: FleetState, at: float) -> FleetState:
    """The state after what is served was given up for what was served before."""
    return replace(
        fleet,
        stage=STEADY,
        since=at,
        serving_version=fleet.previous_version,
        serving_digest=fleet.previous_digest,
        refused=(*fleet.refused, fleet.serving_version)[-KEPT_VERSIONS:],
    )


_CHECKS = {CANARY: _check_canary, REST: _check_rest, WATCH: _check_watch}
_TRANSITIONS = {
    (CANARY, _PASS): _to_rest,
    (CANARY, _FAIL): drop_candidate,
    (REST, _PASS): _to_watch,
    (REST, _FAIL): roll_back,
    (WATCH, _PASS): _to_steady,
    (WATCH, _FAIL): roll_back,
}


def _runs(view: NodeView, version: int, digest: str) -> bool:
    # Digest as read back from the engine: the version number alone is only a claim.
    return view.running_version == version and view.running_digest == digest


def _not_yet(view: NodeView, draft: DraftName, led: Reign, settings: PolicySettings) -> _Outcome:
    """What to make of a node that does not run the draft of the rollout: wait, unless it cannot or is late."""
    failed = view.draft_failed
    if failed is not None and (failed.version, failed.digest) == draft and failed.num_tries >= settings.draft_max_tries:
        numbers = {"num_tries": float(failed.num_tries)}
        return _FAIL, f"{view.name} cannot run version {failed.version}: {failed.reason}", numbers
    # What was decided may have reached the node with the takeover only.
    if led.seen_s < settings.rollout_deadline_s:
        return _STILL
    return _FAIL, f"{view.name} still runs version {view.running_version} after {led.seen_s:.0f} s", {}


def _nobody(fleet: FleetState, led: Reign) -> _Outcome:
    # It may be the draft that silenced them; and when unsure, roll back.
    return _FAIL, f"no node was seen to run version {fleet.serving_version} in {led.seen_s:.0f} s", {}


def _dropped(view: NodeView, settings: PolicySettings) -> _Outcome | None:
    """A failure if live accept length is surely below what the draft before had on this node."""
    if view.baseline is None or view.num_seen < settings.watch_min_steps:
        return None
    if view.live + _ONE_SIDED_Z * view.live_error >= view.baseline * (1.0 - settings.watch_max_drop):
        return None
    reason = f"{view.name}: live accept length fell from {view.baseline:.2f} to {view.live:.2f}"
    return _FAIL, reason, _live_numbers(view)


def _live_numbers(view: NodeView) -> dict[str, float]:
    numbers = {"num_seen": float(view.num_seen)}
    if view.num_seen > 0:
        numbers |= {"accept_length": round(view.live, 4), "standard_error": round(view.live_error, 4)}
    if view.baseline is not None:
        numbers["baseline"] = round(view.baseline, 4)
    return numbers
