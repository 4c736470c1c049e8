"""What the bus holds of many subjects now: the newest record of each."""

import asyncio
import contextlib

from tide_daemon.bus.port import Bus, StoredMessage
from tide_daemon.roles.controller_journal import read_record
from tide_daemon.wire.records import Record

_FIRST_S = 2.0
_QUIET_S = 0.4
"""A tail has no end; when nothing came for so long, all that was there has come. Likewise when a subject comes again:
they come in the order of their sequence."""


async def newest_of(bus: Bus, filter_subject: str) -> dict[str, tuple[StoredMessage, Record]]:
    """By subject, the newest message that the filter matches, with its record; undecodable ones are left out.

    Raises:
        BusError: the broker cannot be reached, or the stream may not be read.
    """
    found: dict[str, tuple[StoredMessage, Record]] = {}
    seen: set[str] = set()
    messages = bus.tail(filter_subject, since="last")
    async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
        wait_s = _FIRST_S
        while True:
            try:
                message = await asyncio.wait_for(anext(messages), wait_s)
            except TimeoutError:
                return found
            wait_s = _QUIET_S
            if message.subject in seen:
                return found
            seen.add(message.subject)
            record = read_record(message)
            if record is not None:
                found[message.subject] = (message, record)
