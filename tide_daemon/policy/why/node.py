"""Why a node speculates or not, with how many steps, and what would have to change."""

import math
from dataclasses import dataclass

from tide_daemon.policy.events import NO_DRAFT, ServerFound, ServerReported, StepCount
from tide_daemon.policy.instructions import SetServer
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.steps import read_table
from tide_daemon.policy.why.history import History, NodePast
from tide_daemon.policy.why.version import newest_verdict
from tide_daemon.policy.why.words import ago, clock, num_steps_words, steps_words

_LIVE_WINDOW_S = 60.0
_PROBES = ("trying ", "measuring ")


@dataclass(frozen=True, slots=True)
class Live:
    """What reports of the last minute showed at the busiest batch size and its most used number of steps."""

    batch_size: int
    num_steps: int
    num_proposals: int
    accept_length: float


def why_node(
    history: History, name: str, now: float, desired: ServerFound | None = None, report: ServerReported | None = None
) -> list[str]:
    """Sentences about one server node.

    Args:
        now: unix seconds, of the reader.
        desired, report: what stands on the bus for it; None for the journal's newest.
    """
    past = history.nodes.get(name, NodePast())
    report = report or (past.reports[-1] if past.reports else None)
    wanted = desired or _found(past)
    if wanted is None and report is None:
        return [f"{name}: this journal knows no such server node."]
    lines = [_state(name, wanted, report, now, history.settings)]
    if wanted is None:
        return [*lines, "Nothing was asked of it yet: it is asked when the leader hears of it."]
    lines.append(f"It is asked for {steps_words(wanted.steps_table)}.")
    lines += _steps(history, past, wanted, report, now)
    if past.collect_since is not None:
        at, asked = past.collect_since
        share = f"{asked.sample_rate:.0%} of requests" if asked.collect else "nothing"
        if asked.preferred:
            names = ", ".join(name or "those without a label" for name in asked.preferred)
            share += f" and {asked.preferred_rate:.0%} of {names}"
        lines.append(f"It captures {share} since {clock(at)}{_part(asked.reason, 'collect ')}.")
    return lines


def live(reports: list[ServerReported]) -> Live | None:
    """The newest minute of reports at the busiest batch size; None without plausible steps."""
    if not reports:
        return None
    running = (reports[-1].running_version, reports[-1].running_digest)
    recent = [
        step
        for report in reports
        if report.at > reports[-1].at - _LIVE_WINDOW_S and (report.running_version, report.running_digest) == running
        for step in report.steps
        if step.is_plausible
    ]
    if not recent:
        return None
    key = _busiest(recent)
    same = [step for step in recent if (step.batch_size, step.num_steps) == key]
    proposals = sum(step.num_proposals for step in same)
    accepted = sum(sum(step.accepted_at) for step in same)
    return Live(*key, proposals, 1.0 + accepted / proposals)


def _busiest(steps: list[StepCount]) -> tuple[int, int]:
    busy: dict[tuple[int, int], float] = {}
    for step in steps:
        key = (step.batch_size, step.num_steps)
        busy[key] = busy.get(key, 0.0) + step.step_s
    return max(sorted(busy), key=lambda key: busy[key])


def _found(past: NodePast) -> ServerFound | None:
    """What the journal last asked of it, in the form of desired state."""
    if past.asked is None:
        return past.found
    at, a = past.asked
    return ServerFound(
        at, a.node, a.generation, a.draft_version, a.draft_digest, a.steps_table, a.collect, a.sample_rate,
        a.preferred, a.preferred_rate,
    )  # fmt: skip


def _state(
    name: str, wanted: ServerFound | None, report: ServerReported | None, now: float, settings: PolicySettings
) -> str:
    if report is None:
        return f"{name}: not heard of in this journal."
    heard = f"heard of {ago(report.at, now)}" if now - report.at >= 2.0 else "heard of just now"
    if now - report.at > settings.lost_after_s:
        heard += f", so it is left out of every decision (limit {settings.lost_after_s:g} s)"
    runs = "no draft" if report.running_version == NO_DRAFT else f"version {report.running_version}"
    asked = ""
    if wanted is not None and wanted.draft_version != report.running_version:
        failed = report.draft_failed
        cannot = failed is not None and (failed.version, failed.digest) == (wanted.draft_version, wanted.draft_digest)
        how = f"it cannot, {failed.reason}" if failed is not None and cannot else "it has not swapped yet"
        asked = f" and is asked to run version {wanted.draft_version}: {how}"
    return f"{name}: engine {report.engine}, {heard}, runs {runs}{asked}."


def _steps(
    history: History, past: NodePast, wanted: ServerFound, report: ServerReported | None, now: float
) -> list[str]:
    if wanted.draft_version == NO_DRAFT:
        return [
            "There is no draft to speculate with: none is served.",
            newest_verdict(history) or "No candidate was published yet.",
            "It will speculate when a candidate has passed the gate and this node runs it.",
        ]
    lines = []
    if report is not None and report.engine != "ready":
        lines.append(f"Its engine is {report.engine}; steps are not chosen anew until it is ready.")
    if past.steps_since is not None:
        at, asked = past.steps_since
        lines.append(f"Why, since {clock(at)} ({ago(at, now)}): {asked.reason}.")
        if _is_probe(asked):
            lines.append(
                "That was a probe, and the steps chosen after it are the same."
                if _is_over(past, history.settings)
                else "That is a probe: a few busy seconds to find out, then the choice is made again."
            )
    seen = live(list(past.reports))
    if seen is not None and seen.num_steps > 0:
        lines.append(
            f"In the last minute: accept length {seen.accept_length:.2f} with "
            f"{num_steps_words(seen.num_steps)} at batch {seen.batch_size} over {seen.num_proposals} chains."
        )
    return [*lines, *_what_would_change(history.settings, past, wanted, now)]


def _is_probe(asked: SetServer) -> bool:
    return any(part.startswith(_PROBES) for part in asked.reason.split("; "))


def _is_over(past: NodePast, settings: PolicySettings) -> bool:
    """Whether reports show as much as any probe measures since the steps of one were asked for.

    A probe that ends with the steps that it tried asks for nothing anew, so no decision of the journal says so.
    """
    assert past.steps_since is not None
    at, asked = past.steps_since
    after = [step for report in past.reports if report.at > at for step in report.steps]
    plain = not any(num_steps for _, num_steps in asked.steps_table)
    measured = [step for step in after if (step.num_steps == 0) == plain]
    busy_s = math.fsum(step.step_s for step in measured)
    if plain:
        enough = busy_s >= settings.plain_probe_s
    else:
        num_chains = sum(step.num_proposals for step in measured)
        enough = num_chains >= settings.watch_min_steps and (
            busy_s >= settings.probe_s or num_chains >= settings.probe_proposals
        )
    return enough or math.fsum(step.step_s for step in after) >= settings.probe_timeout_s


def _what_would_change(settings: PolicySettings, past: NodePast, wanted: ServerFound, now: float) -> list[str]:
    """The thresholds in accept length, from the newest prediction that was written down."""
    if past.figures is None:
        return ["Its costs are not known yet: it has to serve some requests, plainly and with the draft."]
    at, numbers = past.figures
    ratio, length = numbers["ratio_to_plain"], numbers.get("accept_length", 0.0)
    if ratio <= 0.0 or length <= 0.0:
        return []
    batch, steps = int(numbers.get("batch_size", 0)), int(numbers.get("ratio_steps", 0))
    even = length / ratio
    lines = [
        f"At batch {batch} with {num_steps_words(steps)}, as of {ago(at, now)}: accept length {length:.2f} is "
        f"{ratio:.3f} of plain; it pays from {even:.2f}."
    ]
    evidence, needed = numbers.get("evidence", 0.0), settings.min_proposals
    on = read_table(wanted.steps_table, (batch,))[batch] > 0
    if past.steps_since is not None and _is_probe(past.steps_since[1]) and not _is_over(past, settings):
        on = numbers.get("num_steps", 0.0) > 0.0  # by choice; a probe does not count
    if evidence < needed:
        apart = f"{settings.probe_interval_s:g} to {settings.probe_interval_max_s:g} busy s apart"
        bring = "serving will bring them" if on else f"the next probe will ({apart})"
        lines.append(
            f"That is a guess: {evidence:.0f} chains were seen lately, {needed} are needed to choose anew; {bring}."
        )
    if on:
        lines.append(f"It is switched off when the accept length falls below {settings.speculate_off * even:.2f}.")
    else:
        lines.append(
            f"It is switched on from {settings.speculate_on * even:.2f} ({settings.speculate_on:g} of plain); "
            f"a better draft, a rise of its held-out score or the next probe can show that."
        )
    return lines


def _part(reason: str, begins: str) -> str:
    """The part of a reason that begins so, as an addition to a sentence."""
    part = next((part for part in reason.split("; ") if part.startswith(begins)), "")
    return f": {part.partition(': ')[2]}" if ": " in part else ""
