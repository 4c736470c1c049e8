"""The bus within one process: JetStream's rules without a server, for tests and modelled fleets.

Several MemoryBus objects share one MemoryBroker. `broker.down = True` takes the broker away from all
of them until it is set to False again. Held to the same contract suite as jetstream.py.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

from tide_daemon.bus.lease import CasLease
from tide_daemon.bus.memory_stream import MemoryConsumer, MemoryStream
from tide_daemon.bus.port import StoredMessage, StreamDepth
from tide_daemon.bus.topology import Topology
from tide_daemon.errors import BusClosedError, BusError, BusSetupError, BusUnavailableError, MessageTooLargeError

_SINCE = ("new", "all", "last", "sequence")
_HEADROOM_BYTES = 16 * 1024
_READ_TIMEOUT_S = 5.0


class MemoryBroker:
    """What the buses share: the streams, the consumers, and whether it can be reached.

    Args:
        max_payload: as in a server's configuration; the buses take head-room off.
        clock: unix seconds.
    """

    def __init__(
        self, topology: Topology, *, max_payload: int = 1 << 20, clock: Callable[[], float] = time.time
    ) -> None:
        self.topology = topology
        self.max_payload = max_payload
        self.streams = {spec.name: MemoryStream(spec, clock) for spec in topology.streams}
        self.consumers = {
            spec.name: MemoryConsumer(spec, self.streams[spec.stream], clock, self._advise(spec.stream, spec.name))
            for spec in topology.consumers
        }
        self._down = False
        self.num_losses = 0
        self._changed = asyncio.Event()

    @property
    def down(self) -> bool:
        """True while nobody can reach the broker."""
        return self._down

    @down.setter
    def down(self, value: bool) -> None:
        self.num_losses += value and not self._down
        self._down = value
        self.notify()

    def lose_disk(self) -> None:
        """Streams and consumers are made anew, as after a start of the broker with an empty disk."""
        for stream in self.streams.values():
            stream.make_anew()
        for consumer in self.consumers.values():
            consumer.make_anew()
        self.notify()

    def stream(self, subject: str) -> MemoryStream:
        """The stream of a subject, with what is too old deleted; ValueError if no stream stores it."""
        stream = self.streams[self.topology.stream_of(subject).name]
        stream.expire()
        return stream

    def notify(self) -> None:
        """Wake everybody who waits in `changed`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout_s: float) -> None:
        """Returns at the next change of anything, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    def _advise(self, stream: str, consumer: str) -> Callable[[int, int], None]:
        def gave_up(sequence: int, num_delivered: int) -> None:
            subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{consumer}"
            advisory = {"stream": stream, "consumer": consumer, "stream_seq": sequence, "deliveries": num_delivered}
            self.stream(subject).publish(subject, json.dumps(advisory).encode(), None, None, None)
            self.notify()

        return gave_up


class MemoryDelivery:
    """See port.Delivery."""

    def __init__(self, broker: MemoryBroker, consumer: MemoryConsumer, message: StoredMessage, num: int) -> None:
        self.message = message
        self.num_delivered = num
        self._broker = broker
        self._consumer = consumer
        self._ended = False

    async def ack(self) -> None:
        """See port.Delivery.ack."""
        self._end()
        self._consumer.end(self.message.sequence)

    async def nak(self, delay_s: float = 0.0) -> None:
        """See port.Delivery.nak."""
        self._end()
        self._consumer.delay(self.message.sequence, delay_s)
        self._broker.notify()

    async def term(self) -> None:
        """See port.Delivery.term."""
        self._end()
        self._consumer.end(self.message.sequence)

    async def in_progress(self) -> None:
        """See port.Delivery.in_progress."""
        self._consumer.delay(self.message.sequence, self._consumer.spec.ack_wait_s)

    def _end(self) -> None:
        if self._ended:
            raise BusError(f"message {self.message.sequence} was acknowledged, refused or ended before")
        self._ended = True


class MemoryPuller:
    """See port.Puller."""

    def __init__(self, bus: "MemoryBus", broker: MemoryBroker, consumer: MemoryConsumer) -> None:
        self._bus = bus
        self._broker = broker
        self._consumer = consumer
        self._closed = False

    async def fetch(self, max_messages: int, max_bytes: int, timeout_s: float) -> list[MemoryDelivery]:
        """See port.Puller.fetch."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        while not self._closed:
            self._bus.check_open()
            taken = [] if self._broker.down else self._take(max_messages, max_bytes)
            left_s = give_up_at - loop.time()
            if taken or left_s <= 0:
                return taken
            due_s = self._consumer.next_due_in_s()
            # A message that is due but cannot be taken (down) is announced by a change.
            await self._broker.changed(left_s if not due_s else min(left_s, due_s))
        return []

    def _take(self, max_messages: int, max_bytes: int) -> list[MemoryDelivery]:
        self._consumer.stream.expire()
        taken: list[MemoryDelivery] = []
        num_bytes = 0
        while len(taken) < max_messages:
            found = self._consumer.take()
            if found is None:
                break
            message, num_delivered = found
            num_bytes += len(message.data)
            if taken and num_bytes > max_bytes:
                self._consumer.untake(message.sequence)
                break
            taken.append(MemoryDelivery(self._broker, self._consumer, message, num_delivered))
        return taken

    async def close(self) -> None:
        """See port.Puller.close."""
        self._closed = True
        self._broker.notify()


class MemoryBus:
    """See port.Bus."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._closed = False

    @property
    def max_payload(self) -> int:
        """See port.Bus.max_payload."""
        return self._broker.max_payload - _HEADROOM_BYTES

    @property
    def connected(self) -> bool:
        """See port.Bus.connected."""
        return not self._closed and not self._broker.down

    @property
    def problem(self) -> str:
        """See port.Bus.problem."""
        return "" if self.connected else "not connected to the broker"

    @property
    def num_losses(self) -> int:
        """See port.Bus.num_losses."""
        return self._broker.num_losses

    def check_open(self) -> None:
        """Raise BusClosedError after close()."""
        if self._closed:
            raise BusClosedError("the connection to the broker is closed: closed by us")

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        expected_last: int | None = None,
        ttl_s: int | None = None,
        timeout_s: float = 5.0,
    ) -> int:
        """See port.Bus.publish."""
        if len(data) > self.max_payload:
            raise MessageTooLargeError(subject, len(data), self.max_payload)
        await self._reach(subject, timeout_s)
        try:
            stream = self._broker.stream(subject)
        except ValueError as error:
            raise BusUnavailableError(f"no stream takes {subject}: it is not set up") from error
        sequence, is_new = stream.publish(subject, data, message_id, expected_last, ttl_s)
        if is_new:
            self._broker.notify()
        return sequence

    async def last(self, subject: str, *, timeout_s: float = 5.0) -> StoredMessage | None:
        """See port.Bus.last."""
        if "*" in subject or ">" in subject:
            raise ValueError(f"last() takes one subject, not a wildcard: {subject}")
        await self._reach(subject, timeout_s)
        return self._broker.stream(subject).last(subject)

    async def get(self, stream: str, sequence: int) -> StoredMessage | None:
        """See port.Bus.get."""
        await self._reach(stream, _READ_TIMEOUT_S)
        self._broker.streams[stream].expire()
        return self._broker.streams[stream].get(sequence)

    async def depth(self, stream: str) -> StreamDepth:
        """See port.Bus.depth."""
        await self._reach(stream, _READ_TIMEOUT_S)
        held = self._broker.streams.get(stream)
        if held is None:
            raise BusSetupError(f"stream {stream} does not exist")
        held.expire()
        waiting = [item.num_waiting() for item in self._broker.consumers.values() if item.spec.stream == stream]
        return StreamDepth(stream, *held.size(), held.spec.max_bytes, waiting[0] if waiting else None)

    async def tail(self, subject: str, *, since: str = "new", sequence: int = 0) -> AsyncIterator[StoredMessage]:
        """See port.Bus.tail."""
        if since not in _SINCE:
            raise ValueError(f"since must be one of {', '.join(_SINCE)}; got {since!r}")
        await self._reach(subject, None)
        stream = self._broker.stream(subject)
        first = {"new": stream.last_sequence + 1, "all": 1, "last": stream.last_sequence + 1, "sequence": sequence}[
            since
        ]
        made = ""
        while True:
            await self._reach(subject, None)
            stream.expire()
            if stream.made != made:
                begins, made = not made, stream.made
                if since == "last":
                    first = stream.last_sequence + 1
                    for message in stream.last_per_subject(subject):
                        yield message
                    continue
                first = first if begins else 1
            found = stream.since(subject, first)
            if found is None:
                await self._broker.changed(60.0)
            else:
                first = found.sequence + 1
                yield found

    async def puller(self, durable: str) -> MemoryPuller:
        """See port.Bus.puller."""
        self._broker.topology.consumer(durable)
        await self._reach(durable, _READ_TIMEOUT_S)
        consumer = self._broker.consumers.get(durable)
        if consumer is None:
            raise BusSetupError(f"consumer {durable} does not exist")
        return MemoryPuller(self, self._broker, consumer)

    async def purge(self, subject: str) -> int:
        """See port.Bus.purge."""
        await self._reach(subject, _READ_TIMEOUT_S)
        return self._broker.stream(subject).purge(subject)

    async def message_ids(self, subject: str, reader: str) -> list[tuple[int, str]]:
        """See port.Bus.message_ids."""
        await self._reach(subject, _READ_TIMEOUT_S)
        return self._broker.stream(subject).message_ids(subject)

    async def erase(self, stream: str, sequence: int) -> bool:
        """See port.Bus.erase."""
        await self._reach(stream, _READ_TIMEOUT_S)
        return self._broker.streams[stream].erase(sequence)

    def lease(self, name: str, holder: str, ttl_s: int) -> CasLease:
        """See port.Bus.lease."""
        return CasLease(self, name, holder, ttl_s)

    async def wait_closed(self) -> str:
        """See port.Bus.wait_closed."""
        while not self._closed:
            await self._broker.changed(60.0)
        return "closed by us"

    async def close(self) -> None:
        """See port.Bus.close."""
        self._closed = True
        self._broker.notify()

    async def _reach(self, what: str, timeout_s: float | None) -> None:
        """Returns once the broker can be reached."""
        await asyncio.sleep(0)  # as with a real broker, others run in between
        loop = asyncio.get_running_loop()
        give_up_at = None if timeout_s is None else loop.time() + timeout_s
        self.check_open()
        while self._broker.down:
            left_s = 60.0 if give_up_at is None else give_up_at - loop.time()
            if left_s <= 0:
                raise BusUnavailableError(f"not connected to the broker within {timeout_s:g} s for {what}")
            await self._broker.changed(left_s)
            self.check_open()
