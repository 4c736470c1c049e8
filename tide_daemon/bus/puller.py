"""The durable, shared pull consumer on JetStream. See port.Puller and pull.py."""

import asyncio
import contextlib

import nats.errors
from nats.aio.msg import Msg

from tide_daemon.bus.connection import Connection
from tide_daemon.bus.port import StoredMessage
from tide_daemon.bus.pull import PullInbox, parse_ack_subject, stored_message
from tide_daemon.bus.topology import ConsumerSpec
from tide_daemon.errors import BusError, BusSetupError, BusUnavailableError

_RETRY_S = 0.2
_PER_MESSAGE_BYTES = 1024
"""Allowance for subject, reply and headers, which the server counts against max_bytes."""


class JetStreamDelivery:
    """One message handed out; see port.Delivery. What is sent while the connection is down is sent later."""

    def __init__(self, connection: Connection, message: Msg) -> None:
        self.message: StoredMessage = stored_message(message)
        self.num_delivered: int = parse_ack_subject(message.reply).num_delivered
        self._connection = connection
        self._reply = message.reply
        self._ended = False

    async def ack(self) -> None:
        """See port.Delivery.ack."""
        await self._end(b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        """See port.Delivery.nak."""
        await self._end(b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    async def term(self) -> None:
        """See port.Delivery.term."""
        await self._end(b"+TERM")

    async def in_progress(self) -> None:
        """Start ack_wait anew. Call it every third of ack_wait during long work."""
        await self._send(b"+WPI")

    async def _end(self, how: bytes) -> None:
        if self._ended:
            raise BusError(f"message {self.message.sequence} was acknowledged, refused or ended before")
        self._ended = True
        await self._send(how)

    async def _send(self, data: bytes) -> None:
        self._connection.check_open()
        try:
            await self._connection.client.publish(self._reply, data)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailableError(f"cannot acknowledge message {self.message.sequence}: {error}") from error


class JetStreamPuller:
    """See port.Puller. Make one with `await JetStreamPuller.bind(...)`."""

    def __init__(self, connection: Connection, spec: ConsumerSpec) -> None:
        self._connection = connection
        self._spec = spec
        self._inbox = PullInbox(connection)

    @classmethod
    async def bind(cls, connection: Connection, spec: ConsumerSpec) -> "JetStreamPuller":
        """Raises BusSetupError if the consumer does not exist."""
        puller = cls(connection, spec)
        await puller._check_exists(timeout_s=5.0)
        await puller._inbox.open()
        return puller

    async def fetch(self, max_messages: int, max_bytes: int, timeout_s: float) -> list[JetStreamDelivery]:
        """See port.Puller.fetch."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        while not self._inbox.buffer and not self._inbox.closed:
            left_s = give_up_at - loop.time()
            if left_s <= 0:
                return []
            try:
                async with asyncio.timeout(left_s):
                    await self._ask(max_messages, max_bytes, left_s)
            except (TimeoutError, BusUnavailableError):
                continue
            await self._inbox.wait(max(0.0, give_up_at - loop.time()))
        return self._take(max_messages, max_bytes)

    async def close(self) -> None:
        """See port.Puller.close."""
        if self._inbox.closed:
            return
        await self._inbox.close()
        while self._inbox.buffer:
            with contextlib.suppress(BusError):
                await JetStreamDelivery(self._connection, self._inbox.buffer.popleft()).nak()

    async def _ask(self, max_messages: int, max_bytes: int, expires_s: float) -> None:
        await self._connection.wait_connected()
        if self._inbox.failure:
            await self._check_exists(timeout_s=expires_s)
            await asyncio.sleep(_RETRY_S)
        try:
            await self._inbox.ask(
                self._spec.stream,
                self._spec.name,
                batch=max_messages,
                # Below one message's size the server would answer with an error for ever.
                max_bytes=max(max_bytes, int(self._connection.client.max_payload)) + _PER_MESSAGE_BYTES,
                expires_s=max(expires_s, 0.1),
                heartbeat=False,
            )
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailableError(str(error)) from error

    def _take(self, max_messages: int, max_bytes: int) -> list[JetStreamDelivery]:
        taken: list[JetStreamDelivery] = []
        num_bytes = 0
        buffer = self._inbox.buffer
        while buffer and len(taken) < max_messages:
            num_bytes += len(buffer[0].data)
            if taken and num_bytes > max_bytes:
                break
            taken.append(JetStreamDelivery(self._connection, buffer.popleft()))
        return taken

    async def _check_exists(self, timeout_s: float) -> None:
        spec = self._spec
        answer = await self._connection.api(f"CONSUMER.INFO.{spec.stream}.{spec.name}", timeout_s=timeout_s)
        error = answer.get("error")
        if error is not None and error.get("code") == 404:
            raise BusSetupError(
                f"consumer {spec.name} of stream {spec.stream} does not exist ({error.get('description')}): "
                "the streams and consumers must be set up first"
            )
