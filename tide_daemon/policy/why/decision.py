"""One decision in plain words: what caused it, what was asked, and the numbers."""

from tide_daemon.policy.events import (
    CandidatePublished,
    ControllerStarted,
    Event,
    OperatorRequested,
    ServerFound,
    ServerReported,
    Tick,
    TrainerFound,
    TrainerReported,
)
from tide_daemon.policy.instructions import Answered, FleetMoved, Instruction, Judged, SetServer, SetTrainer
from tide_daemon.policy.why.history import Decided, is_copy
from tide_daemon.policy.why.words import VERDICTS, clock, steps_words


def why_decision(entry: Decided) -> list[str]:
    """The decision's time and cause, then a line for each thing that was decided."""
    lines = [f"{clock(entry.at)}, when {cause_words(entry.event)}:"]
    for instruction in told(entry):
        lines.append(f"  {decided_words(instruction)}")
        if instruction.numbers:
            lines.append(f"    {', '.join(f'{key} {value:.6g}' for key, value in instruction.numbers.items())}")
    return lines


def told(entry: Decided) -> list[Instruction]:
    """The instructions that say something new: no copies of the state, no move that repeats a verdict's reason."""
    judged = {item.reason for item in entry.instructions if isinstance(item, Judged | Answered)}
    return [
        item
        for item in entry.instructions
        if not isinstance(item, FleetMoved) or not (is_copy(item) or any(reason in item.reason for reason in judged))
    ]


def cause_words(event: Event) -> str:
    """The event as a clause."""
    match event:
        case ServerReported():
            return f"server {event.node} reported (engine {event.engine}, version {event.running_version})"
        case TrainerReported():
            return f"trainer {event.trainer} reported ({event.state}, {event.new_tokens:,} new tokens)"
        case CandidatePublished():
            return f"version {event.version} was published by {event.trainer}"
        case ControllerStarted():
            return "a controller began to lead, or renewed its reign"
        case ServerFound():
            return f"the leader read what server {event.node} had been asked for"
        case TrainerFound():
            return f"the leader read what trainer {event.trainer} had been asked for"
        case OperatorRequested():
            why = f" ({event.reason})" if event.reason else ""
            which = f" version {event.version}" if event.version else ""
            return f"operator {event.operator} asked to {event.action.replace('_', ' ')}{which}{why}"
        case Tick():
            return "time went by"


def decided_words(instruction: Instruction) -> str:
    """What was asked of whom or answered, and the reason."""
    match instruction:
        case SetServer():
            draft = f"version {instruction.draft_version}" if instruction.draft_version else "no draft"
            what = f"{instruction.node} is asked for {draft} and {steps_words(instruction.steps_table)}, because:"
        case SetTrainer(pool_scoring=scoring) if scoring:
            versions = ", ".join(str(version) for version, _ in instruction.pool)
            what = (
                f"{instruction.trainer} is asked to score earlier drafts ({versions}) against version "
                f"{instruction.serving_version}, because:"
            )
        case SetTrainer():
            what = (
                f"{instruction.trainer} is asked for round {instruction.round} against version "
                f"{instruction.serving_version}, because:"
            )
        case Judged():
            before = ", served before," if instruction.from_pool else ""
            what = f"version {instruction.version}{before} was {VERDICTS[instruction.verdict]}:"
        case Answered():
            return f"{instruction.reason[0].upper()}{instruction.reason[1:]}."
        case FleetMoved():
            fleet = instruction.fleet
            where = f" on {fleet.canary}" if fleet.canary else ""
            what = f"the fleet serves version {fleet.serving_version}, stage {fleet.stage}{where}:"
    return f"{what} {instruction.reason}."
