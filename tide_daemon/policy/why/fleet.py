"""What the fleet serves, how far a rollout is, and a line for each node."""

from tide_daemon.policy.events import NO_DRAFT, FleetState, PastDraft
from tide_daemon.policy.why.history import History
from tide_daemon.policy.why.words import ago, clock, steps_words
from tide_daemon.policy.workloads import Figure

_STAGES = {
    "steady": "nothing is being rolled out",
    "rest": "every node is being brought to it",
    "watch": "it is new and still watched",
}


def why_fleet(history: History, now: float) -> list[str]:
    """Sentences about the fleet as the journal has it."""
    fleet = history.fleet
    if fleet is None:
        return ["This journal holds no state of the fleet."]
    served = "No draft is served" if fleet.serving_version == NO_DRAFT else f"Version {fleet.serving_version} is served"
    stage = _STAGES.get(fleet.stage, f"version {fleet.candidate_version} is on its canary {fleet.canary}")
    lines = [f"{served}; {stage} since {clock(fleet.since)}." if fleet.since else f"{served}; {stage}."]
    lines += [_kept(past) for past in fleet.pool]
    lines += why_workloads(history, fleet)
    if fleet.pinned:
        lines.append("An operator pinned it: no candidate is tried until it is unpinned.")
    for name in sorted(history.nodes):
        past = history.nodes[name]
        if past.asked is None:
            continue
        heard = f"heard of {ago(past.reports[-1].at, now)}" if past.reports else "not heard of in this part"
        asked = past.asked[1]
        lines.append(f"{name}: version {asked.draft_version}, {steps_words(asked.steps_table)}; {heard}.")
    return lines


def why_workloads(history: History, fleet: FleetState) -> list[str]:
    """A line for each workload that trainers scored the serving draft on, most of the traffic first."""
    known = history.workloads
    if known.version != fleet.serving_version:
        return []
    figures = sorted(known.figures.items(), key=lambda item: (-item[1].share, item[0]))
    return [_workload(name, figure, fleet) for name, figure in figures]


def _kept(past: PastDraft) -> str:
    lengths = ", ".join(f"{workload or 'unlabelled'} {length:.2f}" for workload, length in past.lengths)
    knows = f"; held-out accept length {lengths}" if lengths else ""
    return f"Version {past.version} is kept to be tried again, served until {clock(past.served_until)}{knows}."


def _workload(name: str, figure: Figure, fleet: FleetState) -> str:
    label = name or "Requests without a label"
    known = []
    if figure.num_scores:
        known.append(
            f"{figure.share:.0%} of what was scored lately, held-out accept length {figure.accept_length:.2f} "
            f"({figure.num_requests} requests so far)"
        )
    live = figure.live_accept_length
    if live is not None:
        known.append(f"live accept length {live:.2f} over {figure.live_chains:.0f} chains")
    line = f"{label}: {', '.join(known)}"
    others = [(length, past.version) for past in fleet.pool for workload, length in past.lengths if workload == name]
    if not others:
        return f"{line}."
    length, version = max(others)
    return f"{line}; version {version} had {length:.2f}."
