"""Why a trainer trains or waits, and what would have to change."""

from tide_daemon.policy import rollout
from tide_daemon.policy.events import NO_DRAFT, FleetState
from tide_daemon.policy.rounds import TrainerView
from tide_daemon.policy.why.history import History, TrainerPast
from tide_daemon.policy.why.words import ago, clock


def why_trainer(history: History, name: str, now: float) -> list[str]:
    """Sentences about one trainer, as the journal has it."""
    past = history.trainers.get(name, TrainerPast())
    report, settings = past.report, history.settings
    if report is None:
        return [f"{name}: this journal knows no such trainer."]
    late = f", so it is left out (limit {settings.lost_after_s:g} s)" if now - report.at > settings.lost_after_s else ""
    lines = [
        f"{name}: {report.state} in round {report.round}, {report.new_tokens:,} new response tokens, heard of "
        f"{ago(report.at, now)}{late}."
    ]
    if report.workloads:
        held = ", ".join(
            f"{item.workload or 'unlabelled'} {item.num_requests:,} requests ({item.new_tokens:,} new tokens)"
            for item in report.workloads
        )
        lines.append(f"It holds {held}.")
    if past.round_since is not None:
        at, asked = past.round_since
        lines.append(f"It was asked for round {asked.round} at {clock(at)}: {asked.reason}.")
    if past.asked is None or report.state != "waiting" or past.asked[1].round > report.round:
        return lines
    return [*lines, _next_round(history, name, now)]


def _next_round(history: History, name: str, now: float) -> str:
    """What it takes for a trainer that waits to begin a round."""
    settings, fleet, collection = history.settings, history.fleet or FleetState(), history.collection
    there = {
        other: past
        for other, past in sorted(history.trainers.items())
        if past.report is not None and now - past.report.at <= settings.lost_after_s
    }
    if fleet.stage in (rollout.CANARY, rollout.REST):
        return f"No round begins while a draft is being rolled out (the stage is {fleet.stage})."
    if any(past.asked is not None and past.asked[1].pool_scoring for past in there.values()):
        return f"No round begins before earlier drafts are scored, {settings.pool_deadline_s:g} s at most."
    for version, candidate in history.versions.items():
        if candidate.published is not None and not rollout.was_judged(fleet, version):
            return f"No round begins while version {version} waits for the gate."
    busy = next((other for other, past in there.items() if other != name and _is_at_work(past)), None)
    if busy is not None:
        return f"No round begins while {busy} is in one, {settings.train_late_s:g} s at most."
    at_most = settings.train_min_tokens
    if fleet.serving_version == NO_DRAFT:
        return (
            f"The next round begins at {min(settings.train_first_tokens, at_most):,} new tokens: there is no draft yet."
        )
    after_shift = min(settings.train_shift_tokens, at_most)
    if collection is not None and collection.shifted:
        return f"The next round begins at {after_shift:,} new tokens: the traffic has shifted."
    return f"The next round begins at {at_most:,} new tokens, at {after_shift:,} when a shift of the traffic is seen."


def _is_at_work(past: TrainerPast) -> bool:
    report = past.report
    if report is None:
        return False
    wanted = report.round if past.asked is None else past.asked[1].round
    return TrainerView("", report.state, report.round, wanted, report.new_tokens, None).is_at_work
