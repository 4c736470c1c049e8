"""Decisions of a journal, oldest first, from the bus or from a file; what `replay` and `why` read.

A file holds one JSON object a line, the fields of one Decision. JSON keeps every number of a journal
exactly (Python writes the shortest text that reads back the same), so a file replays as the bus does.

Entries are read in the order of the stream. One with a lower fencing token than an entry before it was
written by a controller that no longer led; `led` leaves it out, as every reader of desired state does.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from tide_daemon.bus.port import Bus
from tide_daemon.errors import ConfigError
from tide_daemon.roles.controller_journal import STREAM, read_record
from tide_daemon.wire import subjects
from tide_daemon.wire.records import Decision

_FIRST_WINDOW = 1024
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def write_line(decision: Decision, out: TextIO) -> None:
    """One decision as one line."""
    values = {field.name: getattr(decision, field.name) for field in fields(decision)}
    out.write(json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n")


def read_file(path: Path) -> Iterator[Decision]:
    """The decisions of a file.

    Raises:
        ConfigError: it cannot be read, or a line is not a decision; the message names the line.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _decision(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _decision(line: str, where: str) -> Decision:
    try:
        value: Any = json.loads(line)
        decision = Decision(
            int(value["sequence"]),
            int(value["fencing_token"]),
            str(value["controller"]),
            float(value["at"]),
            dict(value["event"]),
            tuple(dict(item) for item in value["instructions"]),
            str(value["reason"]),
            {str(key): float(number) for key, number in value["numbers"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where} is not a decision of a journal: {error!r}") from None
    return decision


async def read_bus(bus: Bus, model: str, *, first: int = 1) -> AsyncIterator[Decision]:
    """The decisions of a model from stream sequence `first` to the newest there is now.

    Raises:
        BusError: the broker cannot be reached or has no journal.
    """
    subject = subjects.journal(model)
    newest = await bus.last(subject)
    if newest is None or newest.sequence < first:
        return
    messages = bus.tail(subject, since="sequence", sequence=first)
    async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
        async for message in messages:
            record = read_record(message)
            if isinstance(record, Decision):
                yield record
            if message.sequence >= newest.sequence:
                return


async def sequence_at(bus: Bus, model: str, at: float) -> int:
    """First stream sequence stored at or after `at` (unix seconds, the broker's clock), by bisection; 1 if all are."""
    newest = await bus.last(subjects.journal(model))
    low, high = 1, 1 if newest is None else newest.sequence
    while low < high:
        middle = (low + high) // 2
        message = await bus.get(STREAM, middle)
        # A message that is gone was older than those that are held.
        if message is None or message.stored_at < at:
            low = middle + 1
        else:
            high = middle
    return low


async def reign_start(bus: Bus, model: str, sequence: int) -> int:
    """A stream sequence at or before `sequence` from which a whole reign is read; 1 when no beginning is held."""
    window = _FIRST_WINDOW
    first = sequence
    while first > 1:
        first = max(1, sequence - window)
        messages = bus.tail(subjects.journal(model), since="sequence", sequence=first)
        found = None
        async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
            async for message in messages:
                if message.sequence > sequence:
                    break
                record = read_record(message)
                if isinstance(record, Decision) and record.event.get("event") == "controller_started":
                    found = message.sequence
                if message.sequence == sequence:
                    break
        if found is not None:
            return found
        window *= 8
    return first


class Fence:
    """Tells entries of the controller that led at their place in the journal from late ones of its predecessors."""

    def __init__(self) -> None:
        self._highest = 0

    def admits(self, decision: Decision) -> bool:
        """Whether the next entry counts."""
        if decision.fencing_token < self._highest:
            return False
        self._highest = decision.fencing_token
        return True


def led(decisions: Iterable[Decision]) -> Iterator[Decision]:
    """Those that were written by the controller that led at their place in the journal."""
    fence = Fence()
    return (decision for decision in decisions if fence.admits(decision))


def parse_since(text: str, now: float) -> float:
    """Unix seconds from "90s", "30m", "2h", "7d" (ago), unix seconds, or an ISO date and time (local without a zone).

    Raises:
        ConfigError: none of them.
    """
    number, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS_S:
            return now - float(number) * _UNITS_S[unit]
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ConfigError(f"{text!r} is no time: say 30m, 2h, 7d, unix seconds, or 2026-11-25T03:12") from None
