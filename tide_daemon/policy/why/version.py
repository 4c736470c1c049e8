"""Why a draft was deployed or refused, and what would have to change."""

from tide_daemon.policy import pool
from tide_daemon.policy.events import CandidatePublished, FleetState
from tide_daemon.policy.instructions import FleetMoved, Judged
from tide_daemon.policy.why.history import History, VersionPast
from tide_daemon.policy.why.words import VERDICTS, clock

_REFUSED = {True: "rolled back", False: "forgotten by an operator", None: "rolled back or forgotten"}


def why_version(history: History, version: int, now: float) -> list[str]:
    """Sentences about one draft version, in the order of time."""
    past = history.versions.get(version)
    fleet = history.fleet or FleetState()
    if past is None and version not in (fleet.serving_version, fleet.previous_version, *fleet.judged, *fleet.refused):
        return [f"Version {version}: this journal knows no such version."]
    past = past or VersionPast()
    lines = [f"Version {version}: {_status(history, fleet, version, past)}."]
    if past.published is not None:
        lines.append(_published(past.published))
    if past.judged is not None:
        lines.append(_judged(*past.judged))
    lines += [f"Tried again, {_judged(at, answer)}" for at, answer in past.tried_again]
    for at, move in past.moves:
        if not _repeats(move, past):
            lines.append(f"{clock(at)}: {move.reason}{_numbers(move.numbers)}.")
    lines += _what_would_change(history, fleet, version, past, now)
    return lines


def newest_verdict(history: History) -> str:
    """The gate's newest answer in a sentence, "" when it gave none."""
    judged = [(past.judged, version) for version, past in history.versions.items() if past.judged is not None]
    if not judged:
        return ""
    (at, answer), version = max(judged, key=lambda item: (item[0][0], item[1]))
    return f"The newest candidate, version {version}, was {VERDICTS[answer.verdict]} at {clock(at)}: {answer.reason}."


def _status(history: History, fleet: FleetState, version: int, past: VersionPast) -> str:
    if version == fleet.candidate_version:
        return f"on its canary {fleet.canary} since {clock(fleet.since)}"
    if version == fleet.serving_version:
        # One that an operator pinned comes without a canary.
        passed = "passed its canary; " if past.moves and past.moves[-1][1].reason.startswith("canary of ") else ""
        return {
            "rest": f"{passed}every node is being brought to it since {clock(fleet.since)}",
            "watch": f"served, and watched since {clock(fleet.since)}",
        }.get(fleet.stage, "served")
    if version in fleet.refused:
        return f"{_REFUSED[past.rolled_back]}, and not tried again"
    if pool.find(fleet, version) is not None:
        return "served before, and kept to be tried again when its traffic comes back"
    verdict = past.judged[1].verdict if past.judged is not None else ""
    if verdict in ("reject", "need_more_data"):
        return VERDICTS[verdict]
    if version in fleet.judged:
        if verdict != "promote":
            return "judged before this part of the journal"
        if any(move.fleet.serving_version == version for _, move in past.moves):
            return "served before, and replaced"
        return "promoted by the gate, and taken off its canary before it was served"
    return "published, and waiting for the gate"


def _published(event: CandidatePublished) -> str:
    against = f"version {event.parent_version}" if event.parent_version else "no draft"
    return (
        f"{clock(event.at)}: seen from {event.trainer}, trained on {event.num_train_tokens:,} tokens, scored "
        f"against {against} on {len(event.scores)} held-out requests."
    )


def _judged(at: float, answer: Judged) -> str:
    return f"{clock(at)}: {VERDICTS[answer.verdict]} by the gate: {answer.reason}{_numbers(answer.numbers)}."


def _repeats(move: FleetMoved, past: VersionPast) -> bool:
    """Whether a move only says what the gate's answer said."""
    answers = [answer for _, answer in past.tried_again]
    if past.judged is not None:
        answers.append(past.judged[1])
    return any(answer.reason in move.reason for answer in answers)


def _numbers(numbers: dict[str, float]) -> str:
    """Numbers in brackets."""
    return f" ({', '.join(f'{key} {value:.6g}' for key, value in numbers.items())})" if numbers else ""


def _what_would_change(history: History, fleet: FleetState, version: int, past: VersionPast, now: float) -> list[str]:
    settings = history.settings
    if version == fleet.candidate_version:
        return [
            f"It goes to the other nodes when {fleet.canary} has shown {settings.watch_min_steps} chains with an "
            f"accept length at most {settings.watch_max_drop:.0%} below that of the draft before. It is dropped when "
            f"it has not been swapped in within {settings.rollout_deadline_s:g} s, or when {fleet.canary} says "
            f"{settings.draft_max_tries} times in a row why it cannot run it."
        ]
    if version == fleet.serving_version and fleet.stage == "watch":
        left = max(0.0, settings.watch_s - (now - fleet.since))
        return [f"It is kept if nothing drops or fails in another {left:.0f} s."]
    if version in fleet.refused:
        return ["A version is tried once. The next round begins from the draft that is served."]
    if past.judged is None:
        if past.published is not None and version not in fleet.judged:
            pinned = "an operator has unpinned what is served, " if fleet.pinned else ""
            return [
                f"The gate answers when {pinned}no draft is on its canary or being brought to the other nodes (the "
                f"stage is {fleet.stage}) and a node is ready to be a canary."
            ]
        return []
    answer = past.judged[1]
    if answer.verdict == "promote":
        return []
    once = "A version is judged once; the next round makes another one."
    if "lower_bound" not in answer.numbers:
        if answer.verdict == "need_more_data":
            return [
                f"It takes {settings.gate_min_requests} held-out requests with {settings.gate_min_positions} "
                f"positions; there were {answer.numbers.get('num_requests', 0):.0f} with "
                f"{answer.numbers.get('num_positions', 0):.0f}. {once}"
            ]
        return [f"A candidate has to be scored against the draft that is served. {once}"]
    # The gate writes down the bound of the part that would lose, and of no other part.
    worst = next((key.partition(", ")[2] for key in answer.numbers if key.startswith("upper_bound, ")), "")
    if worst:
        allowed = f"{settings.gate_max_loss:.0%} of its accept length"
        return [f"Its gain was enough, but {worst} may lose at most {allowed}. {once}"]
    return [
        f"Its gain had to be above 0, and at least {settings.gate_min_gain:+.4f} at the lower end of "
        f"{settings.gate_confidence:.0%} confidence; that was {answer.numbers['lower_bound']:+.4f}. {once}"
    ]
