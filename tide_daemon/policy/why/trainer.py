"""Why a trainer trains or waits, and what would have to change."""

from tide_daemon.policy.events import NO_DRAFT
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
    stage = "steady" if history.fleet is None else history.fleet.stage
    if stage in ("canary", "rest"):
        lines.append(f"No round begins while a draft is being rolled out (the stage is {stage}).")
    elif past.asked[1].serving_version == NO_DRAFT:
        lines.append(f"The next round begins at {settings.train_first_tokens:,} new tokens: there is no draft yet.")
    else:
        lines.append(
            f"The next round begins at {settings.train_min_tokens:,} new tokens, at {settings.train_shift_tokens:,} "
            f"when a shift of the traffic is seen."
        )
    return lines
