"""What the fleet serves, how far a rollout is, and a line for each node."""

from tide_daemon.policy.events import NO_DRAFT
from tide_daemon.policy.why.history import History
from tide_daemon.policy.why.words import ago, clock, steps_words

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
