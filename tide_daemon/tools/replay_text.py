"""The first difference of a replay in plain words. Pure; used by tools/replay.py."""

import json
from datetime import UTC, datetime
from typing import Any

from tide_daemon.policy.replay import Difference, Replayed

_MISSING = object()
_MAX_VALUE = 200


def outcome_text(outcome: Replayed, num_refused: int) -> str:
    """What was compared, and the first difference or that there is none."""
    lines = []
    if num_refused:
        lines.append(f"{num_refused} entries of controllers that no longer led were left out.")
    if outcome.num_skipped:
        lines.append(
            f"{outcome.num_skipped} entries before the first beginning of a reign were left out: the journal has "
            f"lost what came before them."
        )
    if outcome.difference is not None:
        lines.append(f"After {outcome.num_compared - 1} equal entries, the next one differs:")
        lines += difference_lines(outcome.difference)
    elif outcome.num_compared:
        lines.append(f"Same: {outcome.num_compared} entries give the instructions that were journalled.")
    else:
        lines.append("Nothing could be compared: no beginning of a reign was found.")
    return "\n".join(lines)


def difference_lines(difference: Difference) -> list[str]:
    """Which event, which instruction, which field."""
    lines = [f"  event: {event_words(difference.event)}"]
    journalled, replayed = difference.journalled, difference.replayed
    for index, (old, new) in enumerate(zip(journalled, replayed, strict=False), start=1):
        if old == new:
            continue
        path, was, is_now = first_difference(old, new)
        if path in ("instruction", ""):
            lines.append(f"  instruction {index}: journalled {_name(old)}, now {_name(new)}")
        else:
            lines.append(f"  instruction {index}: {_name(old)}, field {path}")
            lines.append(f"    journalled: {_short(was)}")
            lines.append(f"    now:        {_short(is_now)}")
        return lines
    longer, words = (journalled, "not given now") if len(journalled) > len(replayed) else (replayed, "not journalled")
    for index, item in enumerate(
        longer[min(len(journalled), len(replayed)) :], start=min(len(journalled), len(replayed))
    ):
        lines.append(f"  instruction {index + 1}: {_name(item)} is {words}: {item.get('reason', '')}")
    return lines


def event_words(event: dict[str, Any]) -> str:
    """An event by its kind, whom it is about and its time."""
    whom = next((f" of {event[key]}" for key in ("node", "trainer") if event.get(key)), "")
    if event.get("event") == "candidate_published":
        whom = f", version {event.get('version')}{whom and ' ' + whom.strip()}"
    number = f", number {event['sequence']}" if "sequence" in event else ""
    return f"{event.get('event')}{whom}{number} at {_time(event.get('at'))}"


def first_difference(old: Any, new: Any) -> tuple[str, Any, Any]:
    """(path of the first field that differs, its old value, its new value); "" for the whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            was, is_now = old.get(key, _MISSING), new.get(key, _MISSING)
            if was is _MISSING or is_now is _MISSING or was != is_now:
                inner, was, is_now = first_difference(was, is_now)
                return f"{key}.{inner}" if inner else key, was, is_now
    return "", old, new


def _name(instruction: dict[str, Any]) -> str:
    whom = next((str(instruction[key]) for key in ("node", "trainer", "version") if instruction.get(key)), "")
    return f"{instruction.get('instruction')}{' for ' + whom if whom else ''}"


def _short(value: Any) -> str:
    if value is _MISSING:
        return "(not there)"
    text = json.dumps(value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _time(at: Any) -> str:
    if not isinstance(at, int | float):
        return "an unknown time"
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
