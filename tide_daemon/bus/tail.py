"""Follows a subject on JetStream across reconnects, restarts of the server and loss of the consumer.

A short-lived pull consumer without acknowledgement feeds it; the position is kept here. Whenever
anything is in doubt (the connection was lost, the consumer is gone, its numbering has a hole), the
consumer is left behind and a new one starts at the last seen sequence + 1. The ordered push
consumer of nats-py is avoided (nats.py issue 510).
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from typing import Any

import nats.errors

from tide_daemon.bus.connection import Connection
from tide_daemon.bus.port import StoredMessage
from tide_daemon.bus.pull import HEARTBEAT_S, PullInbox, parse_ack_subject, stored_message
from tide_daemon.bus.reader import create_reader
from tide_daemon.errors import BusSetupError, BusUnavailableError

SINCE = ("new", "all", "last", "sequence")
_BATCH = 256
_BATCH_BYTES = 8 << 20
_EXPIRES_S = 30.0
_INACTIVE_S = 60.0
_RETRY_S = 0.2
_MAX_RETRY_S = 2.0


class Position:
    """Where one reader stands: what to ask a new consumer for. It outlives consumers and connections.

    Attributes:
        next: first stream sequence wanted, 0 while nothing is pinned yet ("last" before its first message).
        created: the stream's time of creation; another one means that the stream was made anew.
    """

    def __init__(self, since: str, sequence: int) -> None:
        if since not in SINCE:
            raise ValueError(f"since must be one of {', '.join(SINCE)}; got {since!r}")
        self.since = since
        self.next = {"new": 0, "all": 1, "last": 0, "sequence": max(sequence, 1)}[since]
        self.created = ""

    def update(self, created: str, last_sequence: int) -> None:
        """Pin "new", and follow a stream that was made anew or lost its newest messages (an older copy of a disk).

        What is the newest of a subject then is so again: "last" asks for it, the others for what follows.
        """
        if self.created and created != self.created:
            self.next = 0 if self.since == "last" else 1
        elif self.created:
            if self.next > last_sequence + 1:
                self.next = 0 if self.since == "last" else last_sequence + 1
        elif self.since == "new":
            self.next = last_sequence + 1
        self.created = created

    def consumer(self) -> dict[str, Any]:
        """How a consumer that begins here is asked for."""
        if not self.next:
            return {"deliver_policy": "last_per_subject"}
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": self.next}


async def tail(connection: Connection, stream: str, subject: str, position: Position) -> AsyncGenerator[StoredMessage]:
    """See port.Bus.tail. `position` is moved along."""
    retry_s = _RETRY_S
    while True:
        await connection.wait_connected()
        inbox = PullInbox(connection)
        consumer = f"tail-{secrets.token_hex(8)}"
        try:
            await inbox.open()
            await _create(connection, stream, consumer, subject, position)
            async for message in _read(inbox, connection, stream, consumer, position.created):
                retry_s = _RETRY_S
                position.next = message.sequence + 1
                yield message
        except (BusUnavailableError, nats.errors.Error, OSError):
            connection.check_open()
        finally:
            await inbox.close()
            if connection.connected:
                with contextlib.suppress(nats.errors.Error, OSError):
                    # Not waited for: the server deletes an unused one after _INACTIVE_S anyway.
                    await connection.client.publish(connection.api_subject(f"CONSUMER.DELETE.{stream}.{consumer}"))
        await asyncio.sleep(retry_s)
        retry_s = min(2 * retry_s, _MAX_RETRY_S)


async def _create(connection: Connection, stream: str, consumer: str, subject: str, position: Position) -> None:
    info = await connection.api(f"STREAM.INFO.{stream}")
    if "error" in info:
        if info["error"].get("code") == 404:
            raise BusSetupError(f"stream {stream} does not exist: the streams and consumers must be set up first")
        raise BusUnavailableError(f"stream {stream}: {info['error'].get('description')}")
    position.update(info["created"], info["state"]["last_seq"])
    await create_reader(connection, stream, consumer, subject, _INACTIVE_S, "follow", **position.consumer())


async def _read(
    inbox: PullInbox, connection: Connection, stream: str, consumer: str, stream_made: str
) -> AsyncGenerator[StoredMessage]:
    """What the consumer delivers, until anything is in doubt."""
    changes = inbox.changes
    expected = 1
    while True:
        if inbox.changes != changes or inbox.failure:
            return
        while inbox.buffer:
            message = inbox.buffer.popleft()
            if parse_ack_subject(message.reply).consumer_sequence != expected:
                return
            expected += 1
            yield stored_message(message, stream_made)
        if inbox.changes != changes:
            return
        await inbox.ask(
            stream,
            consumer,
            batch=_BATCH,
            max_bytes=max(_BATCH_BYTES, 2 * int(connection.client.max_payload)),
            expires_s=_EXPIRES_S,
            heartbeat=True,
        )
        if not inbox.buffer:
            await inbox.wait(2 * HEARTBEAT_S)
