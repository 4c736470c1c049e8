"""Asks the leading controller for something and waits for its answer in the journal."""

import asyncio
import contextlib
import getpass
import re
import secrets
import time
from dataclasses import dataclass

from tide_daemon.bus.port import Bus
from tide_daemon.errors import BusUnavailableError
from tide_daemon.roles.controller_journal import read_record
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import NO_DRAFT, Decision, DraftManifest, OperatorRequest

ANSWER_LIMIT_S = 20.0
"""A leader answers at once; a change of leader takes a time to live of the lease."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the controller said. `granted` False: nothing was changed."""

    granted: bool
    reason: str
    controller: str


async def ask(
    bus: Bus,
    model: str,
    action: str,
    draft: DraftManifest | None = None,
    reason: str = "",
    limit_s: float = ANSWER_LIMIT_S,
) -> Answer:
    """Send a request and wait for the answer.

    Raises:
        BusUnavailableError: nobody answered in time. It may still be done, for ten minutes after it was asked.
        BusError: the broker does not take it.
    """
    request = OperatorRequest(
        request_id=secrets.token_hex(16),
        at=time.time(),
        operator=operator_name(),
        action=action,
        version=NO_DRAFT if draft is None else draft.version,
        digest="" if draft is None else draft.content_digest,
        reason=reason,
    )
    newest = await bus.last(subjects.journal(model))
    first = 1 if newest is None else newest.sequence + 1
    subject, message_id = subjects.subject_of(model, request), subjects.message_id(model, request)
    await bus.publish(subject, envelope.encode(request), message_id=message_id)
    try:
        async with asyncio.timeout(limit_s):
            return await _answer(bus, model, request.request_id, first)
    except TimeoutError:
        raise BusUnavailableError(
            f"no controller answered within {limit_s:g} s: does one lead? (tide-daemon status). "
            "One that begins to lead within 10 minutes will still do it"
        ) from None


def operator_name() -> str:
    """Who asks, as a word of the journal."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", getpass.getuser())[:64] or "operator"


async def _answer(bus: Bus, model: str, request_id: str, first: int) -> Answer:
    messages = bus.tail(subjects.journal(model), since="sequence", sequence=first)
    async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
        async for message in messages:
            record = read_record(message)
            for item in record.instructions if isinstance(record, Decision) else ():
                if item.get("instruction") == "answered" and item.get("request") == request_id:
                    assert isinstance(record, Decision)
                    return Answer(bool(item.get("granted")), str(item.get("reason")), record.controller)
    raise AssertionError("a tail does not end")
