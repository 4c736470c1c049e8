"""What a new leader reads back: the end of the journal, and single messages of the bus."""

import contextlib
from dataclasses import dataclass

import structlog

from tide_daemon.bus.port import Bus, StoredMessage, StreamDepth
from tide_daemon.errors import WireError
from tide_daemon.policy.collection import CollectionState
from tide_daemon.policy.events import FleetState
from tide_daemon.policy.instructions import FleetMoved, Instruction, instruction_from_map
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import Decision, Record

log = structlog.get_logger()

STREAM = "TIDE_JOURNAL"
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


@dataclass(frozen=True, slots=True)
class JournalEnd:
    """Where a new leader goes on.

    Attributes:
        sequence: stream sequence of the newest entry, 0 for an empty journal.
        fleet: newest FleetState, None if the journal holds none.
        collection: Algorithm 1's memory as it stood with it.
        last: newest entry of a controller that led when it wrote it.
        unfinished: the newest of those that is not the beginning of a reign: the one whose instructions may not all
            have been carried out. A leader that dies while it begins leaves it as it was.
    """

    sequence: int
    fleet: FleetState | None
    collection: CollectionState | None
    last: Decision | None
    unfinished: Decision | None


async def read_end(bus: Bus, model: str) -> JournalEnd:
    """The end of a model's journal.

    Reads in windows that grow until one holds both: a leader writes a copy of the fleet's state at least every
    keep_state_s, but other models' entries lie in between. An entry with a lower fencing token than one before
    it was written by a controller that no longer led, and is left out.
    """
    subject = subjects.journal(model)
    newest = await bus.last(subject)
    if newest is None:
        return JournalEnd(0, None, None, None, None)
    window = _FIRST_WINDOW
    while True:
        first = max(1, newest.sequence - window)
        move: FleetMoved | None = None
        last: Decision | None = None
        unfinished: Decision | None = None
        messages = bus.tail(subject, since="sequence", sequence=first)
        async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
            async for message in messages:
                record = read_record(message)
                if isinstance(record, Decision) and (last is None or record.fencing_token >= last.fencing_token):
                    move, last = _move_in(record) or move, record
                    unfinished = unfinished if _is_beginning(record) else record
                if message.sequence >= newest.sequence:
                    break
        if first == 1 or (move is not None and unfinished is not None):
            fleet, collection = (None, None) if move is None else (move.fleet, move.collection)
            return JournalEnd(newest.sequence, fleet, collection, last, unfinished)
        window *= 8


def share_written(depth: StreamDepth, began: int, end: int) -> float:
    """Share of a full journal that was written between two stream sequences, taking all entries in it as equally long.

    Other models' entries count: theirs push out ours. A journal that has lost its oldest ones, by bytes or by age, is
    as full as it gets.
    """
    if depth.num_messages == 0:
        return 0.0
    is_full = depth.num_messages < end
    full = 1.0 if is_full or depth.max_bytes == 0 else depth.num_bytes / depth.max_bytes
    return full * (end - began) / depth.num_messages


def read_instructions(decision: Decision) -> list[Instruction]:
    """The instructions of an entry; those that another version of the policy wrote are left out, with a warning."""
    instructions = []
    for entry in decision.instructions:
        try:
            instructions.append(instruction_from_map(dict(entry)))
        except ValueError as error:
            log.warning("journal_entry_refused", sequence=decision.sequence, error=str(error))
    return instructions


def _is_beginning(decision: Decision) -> bool:
    return decision.event.get("event") == "controller_started"


def _move_in(decision: Decision) -> FleetMoved | None:
    moves = [item for item in read_instructions(decision) if isinstance(item, FleetMoved)]
    return moves[-1] if moves else None
