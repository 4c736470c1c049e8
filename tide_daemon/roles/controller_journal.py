"""What a new leader reads back: the newest FleetState of the journal, and single messages of the bus."""

import contextlib

import structlog

from tide_daemon.bus.port import Bus, StoredMessage
from tide_daemon.errors import WireError
from tide_daemon.policy.events import FleetState
from tide_daemon.policy.instructions import FleetMoved, instruction_from_map
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import Decision, Record

log = structlog.get_logger()

_FIRST_WINDOW = 1024


def read_record(message: StoredMessage) -> Record | None:
    """The record of a message; None, with a warning, when it is not one that may stand there."""
    try:
        record = envelope.decode(message.data)
        subjects.verify(message.subject, record)
    except WireError as error:
        log.warning("message_refused", subject=message.subject, error=str(error))
        return None
    return record


async def newest_fleet(bus: Bus, model: str) -> FleetState | None:
    """The newest FleetState of a model's journal, None if it holds none.

    Reads from the journal's end, in windows that grow until one holds a copy: a leader writes one at least
    every keep_state_s, but other models' entries lie in between.
    """
    subject = subjects.journal(model)
    newest = await bus.last(subject)
    if newest is None:
        return None
    window = _FIRST_WINDOW
    while True:
        first = max(1, newest.sequence - window)
        found = None
        messages = bus.tail(subject, since="sequence", sequence=first)
        async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
            async for message in messages:
                found = _fleet_in(message) or found
                if message.sequence >= newest.sequence:
                    break
        if found is not None or first == 1:
            return found
        window *= 8


def _fleet_in(message: StoredMessage) -> FleetState | None:
    record = read_record(message)
    if not isinstance(record, Decision):
        return None
    found = None
    for entry in record.instructions:
        if entry.get("instruction") != "fleet_moved":
            continue
        try:
            instruction = instruction_from_map(dict(entry))
        except ValueError as error:
            log.warning("journal_entry_refused", sequence=record.sequence, error=str(error))
            continue
        if isinstance(instruction, FleetMoved):
            found = instruction.fleet
    return found
