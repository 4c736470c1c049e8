"""Finds messages of a stream by their ids, without their payloads, and erases single ones.

A purge goes by subject, and one subject holds the chunks of many requests. What tells them apart stands in the
message id, a header; so a consumer that delivers headers alone finds them without a state leaving the broker.
"""

import contextlib

import nats.errors

from tide_daemon.bus.connection import Connection
from tide_daemon.bus.pull import HEARTBEAT_S, PullInbox, parse_ack_subject
from tide_daemon.bus.reader import create_reader
from tide_daemon.errors import BusError, BusUnavailableError

_BATCH = 512
_BATCH_BYTES = 4 << 20
_EXPIRES_S = 30.0
_INACTIVE_S = 30.0
_NOT_FOUND = 10043
"""JetStream's error code for a sequence that holds no message (nats-server server/errors.json)."""
_PAST_THE_END = "stream store EOF"
"""What it says of a sequence that the stream has not reached (2.15.1)."""


async def message_ids(connection: Connection, stream: str, subject: str, reader: str) -> list[tuple[int, str]]:
    """See port.Bus.message_ids."""
    inbox = PullInbox(connection)
    try:
        await inbox.open()
        # One that an earlier scan left behind would go on where that one ended.
        await connection.api(f"CONSUMER.DELETE.{stream}.{reader}")
        doing = "read the message ids of"
        created = await create_reader(
            connection, stream, reader, subject, _INACTIVE_S, doing, deliver_policy="all", headers_only=True
        )
        return await _read(inbox, connection, stream, reader) if created.get("num_pending") else []
    except (nats.errors.Error, OSError) as error:
        connection.check_open()
        raise BusUnavailableError(f"reading the message ids of {subject} was interrupted: {error}") from error
    finally:
        await inbox.close()
        if connection.connected:
            with contextlib.suppress(BusError):
                await connection.api(f"CONSUMER.DELETE.{stream}.{reader}")


async def _read(inbox: PullInbox, connection: Connection, stream: str, reader: str) -> list[tuple[int, str]]:
    changes = inbox.changes
    found: list[tuple[int, str]] = []
    while True:
        while inbox.buffer:
            message = inbox.buffer.popleft()
            info = parse_ack_subject(message.reply)
            found.append((info.stream_sequence, (message.headers or {}).get("Nats-Msg-Id", "")))
            if info.num_pending == 0:
                return found
        if inbox.changes != changes or inbox.failure:
            raise BusUnavailableError(f"reading message ids of {stream} was interrupted {inbox.failure}".rstrip())
        await inbox.ask(stream, reader, batch=_BATCH, max_bytes=_BATCH_BYTES, expires_s=_EXPIRES_S, heartbeat=True)
        if not inbox.buffer:
            await inbox.wait(2 * HEARTBEAT_S)
            if not inbox.buffer:
                raise BusUnavailableError(f"reading message ids of {stream} stopped before its end")


async def erase(connection: Connection, stream: str, sequence: int) -> bool:
    """See port.Bus.erase."""
    # Without "no_erase" the server writes random bytes over the message before it lets it go.
    answer = await connection.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence})
    error = answer.get("error")
    if error is None:
        return True
    text = str(error.get("description"))
    if error.get("err_code") == _NOT_FOUND or text == _PAST_THE_END:
        return False
    raise BusError(f"message {sequence} of {stream} was not erased: {text}")
