"""A server node as a rollout sees it: what rollout.py and outages.py decide by."""

from dataclasses import dataclass

from tide_daemon.policy.events import DraftFailed, FleetState
from tide_daemon.policy.node import NodeState


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
        draft_failed: the draft that it cannot fetch or load, None if it says of none.
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
    draft_failed: DraftFailed | None = None


def view(node: NodeState, alive: bool, settled: bool) -> NodeView:
    """How a rollout sees a node.

    Args:
        alive: heard of lately.
        settled: nothing is under way on it that would bring live evidence soon.
    """
    before = node.comparable
    num_steps = 1 if before is None else before.num_steps
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
        baseline=None if before is None else before.accept_length,
        down_since=node.down_since,
        draft_failed=node.draft_failed,
    )


def is_outstanding(fleet: FleetState, node: NodeState) -> bool:
    """Whether the stage "rest" waits for this node, given that it is there."""
    return node.engine == "ready" and not _holds_served(fleet, node)


def runs_served(fleet: FleetState, node: NodeState) -> bool:
    """Whether this node counts as one that runs what is served, given that it is there."""
    return node.engine == "ready" and _holds_served(fleet, node)


def _holds_served(fleet: FleetState, node: NodeState) -> bool:
    return (node.running_version, node.running_digest) == (fleet.serving_version, fleet.serving_digest)
