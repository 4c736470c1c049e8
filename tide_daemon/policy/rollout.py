"""From a promoted candidate to a served draft: canary, rest, watch; back on failure, drop or deadline.

    steady --promoted--> canary --pass--> rest --pass--> watch --pass--> steady
                           |               |               |
                           +----fail-------+-----fail------+--> steady with the draft served before

    canary   one node runs the candidate; every other node and the trainers keep the serving draft
    rest     the candidate is the serving draft; every node that is there has to report it
    watch    live accept lengths are still compared; a new canary may begin meanwhile

With one node the canary is that node. A node that comes back later takes the serving draft: desired
state is level-triggered, nothing is replayed to it. Pure: a function of FleetState and node views.

An engine that goes down. On the canary it is the draft's fault: it is new, and nothing speaks for it. After
that it may be: a draft that passed its canary on live figures (proven) is not condemned by one engine that
goes down once, because engines go down for other reasons too. It is rolled back when one goes down again, or
when more than watch_max_downs of them did, while it is rolled out or watched. A draft that is not proven is
rolled back at once. An engine that was down before is nobody's fault; whoever is not up is not waited for.

A canary among several passes only on live figures. A single one may pass without them (traffic is
gone, or speculation is off because it does not pay): there is no second node to protect, and the
next round can start from the better draft.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tide_daemon.policy.events import NO_DRAFT, CandidatePublished, FleetState
from tide_daemon.policy.node import NodeState
from tide_daemon.policy.settings import PolicySettings

STEADY, CANARY, REST, WATCH = "steady", "canary", "rest", "watch"
_WAIT, _PASS, _FAIL = "wait", "pass", "fail"
_KEPT_VERSIONS = 256
_ONE_SIDED_Z = 1.645
_BASELINE_MAX_AGE_S = 120.0
"""What was seen of the draft before so long ago says nothing about today's traffic."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One server node as a rollout sees it.

    Attributes:
        alive: heard of lately.
        down_since: when its engine went down, None while it is not; -inf if it was so when first heard of.
        running_since: when it first reported what it runs.
        settled: nothing is under way on it that would bring live evidence soon.
        busy: it had traffic lately.
        busy_running_s: busy seconds since running_since.
        num_seen: chains verified under what it runs.
        live, live_error: accept length under it and standard error, on chains as long as the baseline's.
        baseline: accept length of what it ran before, None if that is not known well or too old.
    """

    name: str
    alive: bool
    engine: str
    running_version: int
    running_digest: str
    running_since: float
    settled: bool
    busy: bool
    busy_running_s: float
    num_seen: int
    live: float
    live_error: float
    baseline: float | None
    down_since: float | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A change of the fleet's state, and why."""

    fleet: FleetState
    reason: str
    numbers: dict[str, float]


def view(node: NodeState, alive: bool, settled: bool) -> NodeView:
    """How a rollout sees a node.

    Args:
        alive: heard of lately.
        settled: nothing is under way on it that would bring live evidence soon.
    """
    known = node.baseline
    num_steps = 1 if known is None else known.num_steps
    comparable = (
        known is not None
        and known.evidence >= node.settings.min_proposals
        and node.running_since - known.at <= _BASELINE_MAX_AGE_S
    )
    return NodeView(
        name=node.name,
        alive=alive,
        engine=node.engine,
        running_version=node.running_version,
        running_digest=node.running_digest,
        running_since=node.running_since,
        settled=settled,
        busy=node.busiest() is not None,
        busy_running_s=node.busy_s - node.running_since_busy_s,
        num_seen=node.trial.num_seen,
        live=node.trial.accept_length(num_steps),
        live_error=node.trial.standard_error(num_steps),
        baseline=known.accept_length if known is not None and comparable else None,
        down_since=node.down_since,
    )


def begin(
    fleet: FleetState, candidate: CandidatePublished, accept_length: float, gain: float, canary: str, at: float
) -> FleetState:
    """The state when a promoted candidate goes to its canary. `accept_length` and `gain` are the gate's."""
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
        proven=False,
        downs=(),
    )


def with_judged(fleet: FleetState, version: int) -> FleetState:
    """The state after the gate answered for a version."""
    return replace(fleet, judged=(*fleet.judged, version)[-_KEPT_VERSIONS:])


def was_judged(fleet: FleetState, version: int) -> bool:
    """Whether the gate has answered for it, now or so long ago that it is forgotten."""
    forgotten = len(fleet.judged) == _KEPT_VERSIONS and version < min(fleet.judged)
    return forgotten or version in fleet.judged


def draft_for(fleet: FleetState, node: str) -> tuple[int, str]:
    """(version, digest) that a node shall run."""
    if fleet.stage == CANARY and node == fleet.canary:
        return fleet.candidate_version, fleet.candidate_digest
    return fleet.serving_version, fleet.serving_digest


def is_outstanding(fleet: FleetState, node: NodeState) -> bool:
    """Whether the stage "rest" waits for this node, given that it is there."""
    runs = (node.running_version, node.running_digest) == (fleet.serving_version, fleet.serving_digest)
    return node.engine == "ready" and not runs


def advance(fleet: FleetState, nodes: Sequence[NodeView], at: float, settings: PolicySettings) -> Move | None:
    """The next state of a rollout, None to wait.

    Args:
        nodes: in "canary" all of them, or the canary alone once it is lost; in "rest" those that may have failed and
            one that is outstanding, all of them once none is or the deadline is over; in "watch" those that may have
            failed. Any larger set gives the same answer.
    """
    check = _CHECKS.get(fleet.stage)
    if check is None:
        return None
    outcome, reason, numbers = check(fleet, nodes, at, settings)
    if outcome == _WAIT:
        return _note_downs(fleet, nodes)
    moved = _TRANSITIONS[fleet.stage, outcome](fleet, at)
    if fleet.stage == CANARY:
        moved = replace(moved, proven=outcome == _PASS and numbers["num_seen"] >= settings.watch_min_steps)
    return Move(moved, reason, numbers)


_Outcome = tuple[str, str, dict[str, float]]
_STILL: _Outcome = (_WAIT, "", {})


def _check_canary(fleet: FleetState, nodes: Sequence[NodeView], at: float, settings: PolicySettings) -> _Outcome:
    view = next((node for node in nodes if node.name == fleet.canary), None)
    if view is None or not view.alive:
        if at - fleet.since >= settings.rollout_deadline_s:
            return _FAIL, f"canary {fleet.canary} was lost", {}
        return _STILL
    if view.engine == "down":
        return _FAIL, f"the engine of canary {view.name} went down", {}
    if not _runs(view, fleet.candidate_version, fleet.candidate_digest):
        return _late(view, fleet, at, settings)
    if (failed := _dropped(view, settings)) is not None:
        return failed
    if view.num_seen >= settings.watch_min_steps:
        reason = f"canary {view.name}: accept length {view.live:.2f} over {view.num_seen} chains"
        return _PASS, reason, _live_numbers(view)
    running_s = at - view.running_since
    if not any(node.alive and node.name != view.name for node in nodes):
        if view.settled or running_s >= settings.rollout_deadline_s:
            return _PASS, f"{view.name} runs it and is the only node", _live_numbers(view)
        return _STILL
    if view.busy_running_s >= settings.canary_busy_s:
        return _FAIL, f"canary {view.name} showed no live figures in {view.busy_running_s:.0f} busy seconds", {}
    others_busy = any(node.busy for node in nodes if node.alive and node.name != view.name)
    if not view.busy and others_busy and running_s >= settings.rollout_deadline_s:
        return _FAIL, f"canary {view.name} got no traffic for {running_s:.0f} s", {}
    return _STILL


def _check_rest(fleet: FleetState, nodes: Sequence[NodeView], at: float, settings: PolicySettings) -> _Outcome:
    waiting = False
    if (failed := _went_down(fleet, nodes, settings)) is not None:
        return failed
    for view in nodes:
        if not view.alive or view.engine != "ready":
            continue
        if not _runs(view, fleet.serving_version, fleet.serving_digest):
            late = _late(view, fleet, at, settings)
            if late[0] == _FAIL:
                return late
            waiting = True
        elif (failed := _dropped(view, settings)) is not None:
            return failed
    if waiting:
        return _STILL
    alive = sum(view.alive for view in nodes)
    return _PASS, f"{alive} node(s) run version {fleet.serving_version}", {"num_nodes": float(alive)}


def _check_watch(fleet: FleetState, nodes: Sequence[NodeView], at: float, settings: PolicySettings) -> _Outcome:
    if (failed := _went_down(fleet, nodes, settings)) is not None:
        return failed
    for view in nodes:
        if not view.alive:
            continue
        if _runs(view, fleet.serving_version, fleet.serving_digest):
            failed = _dropped(view, settings)
            if failed is not None:
                return failed
    if at - fleet.since >= settings.watch_s:
        return _PASS, f"version {fleet.serving_version} held for {at - fleet.since:.0f} s", {}
    return _STILL


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


def _drop_candidate(fleet: FleetState, at: float) -> FleetState:
    return replace(
        fleet,
        stage=STEADY,
        since=at,
        candidate_version=NO_DRAFT,
        candidate_digest="",
        canary="",
        refused=(*fleet.refused, fleet.candidate_version)[-_KEPT_VERSIONS:],
    )


def _roll_back(fleet: FleetState, at: float) -> FleetState:
    return replace(
        fleet,
        stage=STEADY,
        since=at,
        serving_version=fleet.previous_version,
        serving_digest=fleet.previous_digest,
        refused=(*fleet.refused, fleet.serving_version)[-_KEPT_VERSIONS:],
    )


_CHECKS = {CANARY: _check_canary, REST: _check_rest, WATCH: _check_watch}
_TRANSITIONS = {
    (CANARY, _PASS): _to_rest,
    (CANARY, _FAIL): _drop_candidate,
    (REST, _PASS): _to_watch,
    (REST, _FAIL): _roll_back,
    (WATCH, _PASS): _to_steady,
    (WATCH, _FAIL): _roll_back,
}


def _new_downs(fleet: FleetState, nodes: Sequence[NodeView]) -> list[NodeView]:
    """Nodes whose engine went down in this stage and that are not noted yet, or not for this outage."""
    return [
        view
        for view in nodes
        if view.alive
        and view.down_since is not None
        and view.down_since >= fleet.since
        and (view.name, view.down_since) not in fleet.downs
    ]


def _went_down(fleet: FleetState, nodes: Sequence[NodeView], settings: PolicySettings) -> _Outcome | None:
    """A failure if engines went down in a way that speaks against the draft; see the module docstring."""
    new = _new_downs(fleet, nodes)
    if not new:
        return None
    before = {name for name, _ in fleet.downs}
    first, version = new[0].name, fleet.serving_version
    numbers = {"num_downs": float(len(fleet.downs) + len(new))}
    if not fleet.proven:
        return _FAIL, f"the engine of {first} went down under version {version}, which is not proven", numbers
    again = [view.name for view in new if view.name in before]
    if again:
        return _FAIL, f"the engine of {again[0]} went down again under version {version}", numbers
    if len(before) + len(new) > settings.watch_max_downs:
        return _FAIL, f"{len(before) + len(new)} engines went down under version {version}", numbers
    return None


def _note_downs(fleet: FleetState, nodes: Sequence[NodeView]) -> Move | None:
    """The same stage with the engines that went down noted; None when there is nothing to note."""
    new = _new_downs(fleet, nodes) if fleet.stage in (REST, WATCH) else []
    if not new:
        return None
    downs = tuple((view.name, view.down_since) for view in new if view.down_since is not None)
    names = ", ".join(view.name for view in new)
    reason = f"the engine of {names} went down under version {fleet.serving_version}: once is no reason to roll back"
    return Move(replace(fleet, downs=(*fleet.downs, *downs)), reason, {"num_downs": float(len(fleet.downs) + len(new))})


def _runs(view: NodeView, version: int, digest: str) -> bool:
    # Digest as read back from the engine: the version number alone is only a claim.
    return view.running_version == version and view.running_digest == digest


def _late(view: NodeView, fleet: FleetState, at: float, settings: PolicySettings) -> _Outcome:
    if at - fleet.since < settings.rollout_deadline_s:
        return _STILL
    return _FAIL, f"{view.name} still runs version {view.running_version} after {at - fleet.since:.0f} s", {}


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
