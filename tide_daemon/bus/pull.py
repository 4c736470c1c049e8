"""Pull requests to a JetStream consumer, shared by puller.py and tail.py.

One inbox for the life of the object, so that a message that arrives after its asker gave up is
still there for the next one. At most one request is outstanding; its `max_bytes` and `batch` bound
what can wait here. The reply subject of each request is its own, so that a late status of an old
request cannot end a new one. Statuses: 408 and "Batch Completed" end a request as it should be;
409 with other words and 503 say that the consumer may be gone (ADR-13 of the NATS architecture).
"""

import asyncio
import json
from collections import deque
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tide_daemon.bus.connection import Connection, status
from tide_daemon.bus.port import StoredMessage
from tide_daemon.errors import BusError, BusSetupError

HEARTBEAT_S = 5.0
_EXPIRY_SLACK_S = 1.0
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class AckInfo:
    """What a delivered message's reply subject says."""

    num_delivered: int
    stream_sequence: int
    consumer_sequence: int
    stored_at: float
    num_pending: int


def parse_ack_subject(reply: str) -> AckInfo:
    """$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>[.<random>].

    Raises:
        BusError: it is not of that form.
    """
    tokens = reply.split(".")
    first = 4 if len(tokens) == 9 else 6
    try:
        numbers = [int(token) for token in tokens[first : first + 5]]
        delivered, stream_sequence, consumer_sequence, time_ns, num_pending = numbers
    except ValueError as error:
        raise BusError(f"not an acknowledgement subject: {reply!r}") from error
    return AckInfo(delivered, stream_sequence, consumer_sequence, time_ns / _NANO, num_pending)


def stored_message(message: Msg, stream_made: str = "") -> StoredMessage:
    """The delivered message as the port has it."""
    info = parse_ack_subject(message.reply)
    return StoredMessage(message.subject, message.data, info.stream_sequence, info.stored_at, stream_made)


@dataclass(slots=True)
class _Request:
    reply: str
    left: int
    dead_at: float


class PullInbox:
    """Messages pulled from one consumer at a time; `buffer` holds those nobody took yet.

    Attributes:
        failure: why the newest request ended, if that puts the consumer itself in doubt.
        changes: grows when the connection was lost or came back.
    """

    def __init__(self, connection: Connection) -> None:
        self.buffer: deque[Msg] = deque()
        self.failure = ""
        self.changes = 0
        self.closed = False
        self._connection = connection
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._request: _Request | None = None
        self._num_requests = 0
        self._denied = ""

    async def open(self) -> None:
        """Subscribe the inbox. nats-py subscribes again by itself after a reconnect."""
        self._inbox = self._connection.client.new_inbox()
        self._connection.watch_denied(f"{self._inbox}.*", self._on_denied)
        self._subscription = await self._connection.client.subscribe(
            # The requests bound what arrives; nats-py must not drop any of it.
            f"{self._inbox}.*",
            cb=self._on_message,
            pending_msgs_limit=0,
            pending_bytes_limit=0,
        )
        self._connection.on_change.add(self._on_change)

    async def close(self) -> None:
        """Unsubscribe; whoever waits is woken. What is in the buffer stays there."""
        self.closed = True
        self._connection.on_change.discard(self._on_change)
        self._connection.unwatch_denied(f"{self._inbox}.*")
        self._wake.set()
        if self._subscription is not None and not self._connection.client.is_closed:
            subscription, self._subscription = self._subscription, None
            if not self._connection.client.is_closed:
                await subscription.unsubscribe()

    def forget_request(self) -> None:
        """Late messages and statuses of the outstanding request no longer count."""
        self._request = None

    async def ask(
        self, stream: str, consumer: str, *, batch: int, max_bytes: int, expires_s: float, heartbeat: bool
    ) -> None:
        """Send a request unless one is outstanding.

        Raises:
            BusError: the connection is closed, or we may not pull from this consumer.
        """
        self._connection.check_open()
        now = asyncio.get_running_loop().time()
        if self._request is not None and now < self._request.dead_at:
            return
        if self._denied:
            raise BusSetupError(self._denied)
        self._num_requests += 1
        body = {"batch": batch, "max_bytes": max_bytes, "expires": int(expires_s * _NANO)}
        dead_after_s = expires_s + _EXPIRY_SLACK_S
        if heartbeat:
            body["idle_heartbeat"] = int(HEARTBEAT_S * _NANO)
            dead_after_s = 2 * HEARTBEAT_S + _EXPIRY_SLACK_S
        self.failure = ""
        self._request = _Request(f"{self._inbox}.{self._num_requests}", batch, now + dead_after_s)
        subject = self._connection.api_subject(f"CONSUMER.MSG.NEXT.{stream}.{consumer}")
        self._connection.watch_denied(subject, self._on_denied)
        await self._connection.client.publish(subject, json.dumps(body).encode(), reply=self._request.reply)

    async def wait(self, timeout_s: float) -> None:
        """Returns when a message, a status, a change of connection or close() came, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _on_message(self, message: Msg) -> None:
        code = status(message)
        request = self._request
        if not code:
            self.buffer.append(message)
            if request is not None:
                request.left -= 1
                request.dead_at = max(request.dead_at, asyncio.get_running_loop().time() + 2 * HEARTBEAT_S)
                if request.left <= 0:
                    self._request = None
            self._wake.set()
            return
        if request is None or message.subject != request.reply:
            return
        if code == "100":
            request.dead_at = asyncio.get_running_loop().time() + 2 * HEARTBEAT_S + _EXPIRY_SLACK_S
            return
        text = str((message.headers or {}).get("Description", ""))
        self._request = None
        expected = code in ("404", "408") or text.lower().startswith(("batch completed", "message size exceeds"))
        self.failure = "" if expected else f"{code} {text}".strip()
        self._wake.set()

    def _on_change(self) -> None:
        self.changes += 1
        self._request = None  # it went with the connection
        self._wake.set()

    def _on_denied(self, reason: str) -> None:
        self._denied = reason
        self._request = None
        self._wake.set()
