"""A bus that is there from the start: it connects in the background, and again after a connection closed for good.

For daemons whose work must not wait for the broker: a server serves first. nats-py itself reconnects
after a connection was lost, but gives it up for good on most of the errors that a server sends (a
login that expired, too many connections, a user that is being replaced; `Client._process_err`). Then
a new connection is made here and every reader goes on at its position. Streams and consumers are
made or verified on each connection and after each reconnect: a broker may come back with an empty disk.

Until the first connection `max_payload` is 0 and operations wait within their time limit, then raise
BusUnavailableError. Why nobody answers, or refuses us, stands in `problem`. What belongs to one
connection goes with it: a delivery that was not acknowledged is delivered again.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.lease import CasLease
from tide_daemon.bus.port import Delivery, StoredMessage, StreamDepth
from tide_daemon.bus.puller import JetStreamPuller
from tide_daemon.bus.tail import Position
from tide_daemon.bus.topology import Topology
from tide_daemon.errors import BusClosedError, BusError, BusUnavailableError

_READ_TIMEOUT_S = 5.0
_RETRY_S = 0.2
T = TypeVar("T")


class ReopeningBus:
    """See port.Bus. Use as `async with ReopeningBus(...) as bus`.

    Args:
        connect: one attempt, bounded in time; raises BusError.
        prepare: makes or verifies streams and consumers; raises BusError.
        first: a connection that is open and prepared already.
        told: called with "" when the broker can be used, and with the reason when it cannot, at each change.
        min_wait_s, max_wait_s: pause between two attempts, doubled each time.
    """

    def __init__(
        self,
        topology: Topology,
        connect: Callable[[], Awaitable[JetStreamBus]],
        prepare: Callable[[JetStreamBus], Awaitable[None]],
        *,
        first: JetStreamBus | None = None,
        told: Callable[[str], None],
        min_wait_s: float = 0.5,
        max_wait_s: float = 10.0,
    ) -> None:
        self._topology = topology
        self._connect = connect
        self._prepare = prepare
        self._first = first
        self._told = told
        self._wait_s = (min_wait_s, max_wait_s)
        self._bus: JetStreamBus | None = None
        self._max_payload = 0
        self._reason = "not connected to the broker yet"
        self._num_losses = 0
        self._fault = ""
        self._came_back = asyncio.Event()
        self._last_told: str | None = None
        self._changed = asyncio.Event()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_open(), name="broker-connection")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def max_payload(self) -> int:
        """See port.Bus.max_payload; what the newest connection said."""
        if self._bus is not None:
            self._max_payload = self._bus.max_payload
        return self._max_payload

    @property
    def connected(self) -> bool:
        """See port.Bus.connected; True only once streams and consumers are as needed."""
        return self._bus is not None and self._bus.connected and not self._fault

    @property
    def problem(self) -> str:
        """See port.Bus.problem."""
        return self._reason if self._bus is None else self._bus.problem or self._fault

    @property
    def num_losses(self) -> int:
        """See port.Bus.num_losses; streams or consumers that are not as needed count too."""
        return self._num_losses

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

        async def publish(bus: JetStreamBus, left_s: float) -> int:
            return await bus.publish(
                subject, data, message_id=message_id, expected_last=expected_last, ttl_s=ttl_s, timeout_s=left_s
            )

        return await self._use(publish, timeout_s)

    async def last(self, subject: str, *, timeout_s: float = 5.0) -> StoredMessage | None:
        """See port.Bus.last."""
        return await self._use(lambda bus, left_s: bus.last(subject, timeout_s=left_s), timeout_s)

    async def get(self, stream: str, sequence: int) -> StoredMessage | None:
        """See port.Bus.get."""
        return await self._use(lambda bus, left_s: bus.get(stream, sequence), _READ_TIMEOUT_S)

    async def purge(self, subject: str) -> int:
        """See port.Bus.purge."""
        return await self._use(lambda bus, left_s: bus.purge(subject), _READ_TIMEOUT_S)

    async def depth(self, stream: str) -> StreamDepth:
        """See port.Bus.depth."""
        return await self._use(lambda bus, left_s: bus.depth(stream), _READ_TIMEOUT_S)

    async def message_ids(self, subject: str, reader: str) -> list[tuple[int, str]]:
        """See port.Bus.message_ids."""
        return await self._use(lambda bus, left_s: bus.message_ids(subject, reader), _READ_TIMEOUT_S)

    async def erase(self, stream: str, sequence: int) -> bool:
        """See port.Bus.erase."""
        return await self._use(lambda bus, left_s: bus.erase(stream, sequence), _READ_TIMEOUT_S)

    async def tail(self, subject: str, *, since: str = "new", sequence: int = 0) -> AsyncGenerator[StoredMessage]:
        """See port.Bus.tail."""
        position = Position(since, sequence)
        while True:
            bus = await self.opened()
            try:
                async with contextlib.aclosing(bus.follow(subject, position)) as messages:
                    async for message in messages:
                        yield message
            except BusClosedError as error:
                self.leave(bus, error)

    async def puller(self, durable: str) -> "ReopeningPuller":
        """See port.Bus.puller. It binds to the consumer at the first fetch."""
        self._topology.consumer(durable)
        return ReopeningPuller(self, durable)

    def lease(self, name: str, holder: str, ttl_s: int) -> CasLease:
        """See port.Bus.lease."""
        return CasLease(self, name, holder, ttl_s)

    async def wait_closed(self) -> str:
        """See port.Bus.wait_closed: only close() ends it."""
        return await asyncio.shield(self._closed)

    async def close(self) -> None:
        """See port.Bus.close."""
        if not self._closed.done():
            self._closed.set_result("closed by us")
        self._changed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def opened(self) -> JetStreamBus:
        """The newest connection, once there is one. Raises BusClosedError after close(). Bound it with a timeout."""
        while True:
            if self._closed.done():
                raise BusClosedError("the connection to the broker is closed: closed by us")
            if self._bus is not None:
                return self._bus
            await self._changed.wait()

    def leave(self, bus: JetStreamBus, error: BusClosedError) -> None:
        """Have nobody use a connection any more that was found closed; the next one is on its way."""
        if self._closed.done():
            raise error
        if self._bus is bus:
            self._bus, self._reason = None, str(error)
            self._changed.clear()
            self._tell()

    async def _use(self, call: Callable[[JetStreamBus, float], Awaitable[T]], timeout_s: float) -> T:
        give_up_at = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(give_up_at):
                bus = await self.opened()
        except TimeoutError:
            raise BusUnavailableError(f"{self._reason}; waited for {timeout_s:g} s") from None
        try:
            return await call(bus, give_up_at - asyncio.get_running_loop().time())
        except BusClosedError as error:
            self.leave(bus, error)
            raise BusUnavailableError(str(error)) from error

    async def _keep_open(self) -> None:
        bus, self._first = self._first, None
        while True:
            bus = bus or await self._open()
            self._fault = ""
            preparing = asyncio.create_task(self._keep_prepared(bus))
            try:
                bus.connection.on_change.add(self._on_change)
                self._bus = bus
                self._changed.set()
                self._tell()
                reason = await bus.wait_closed()
                self.leave(bus, BusClosedError(f"the connection to the broker was closed: {reason}"))
            finally:
                bus.connection.on_change.discard(self._on_change)
                preparing.cancel()
                await asyncio.gather(preparing, return_exceptions=True)
                await bus.close()
                self._bus = None
            bus = None
            await asyncio.sleep(self._wait_s[0])

    async def _open(self) -> JetStreamBus:
        wait_s, max_wait_s = self._wait_s
        while True:
            try:
                bus = await self._connect()
                try:
                    await self._prepare(bus)
                except BaseException:
                    await bus.close()
                    raise
                return bus
            except BusError as error:
                self._reason = str(error)
            except Exception as error:  # a bug here must not leave a server without its bus for ever
                self._reason = f"{type(error).__name__}: {error}"
            self._tell()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, max_wait_s)

    async def _keep_prepared(self, bus: JetStreamBus) -> None:
        """Look at streams and consumers again whenever nats-py has reconnected."""
        while True:
            await self._came_back.wait()
            self._came_back.clear()
            try:
                await self._prepare(bus)
                self._fault = ""
            except BusClosedError:
                return
            except Exception as error:  # with a bug too: else nobody looks again while this connection lasts
                self._fault = str(error) if isinstance(error, BusError) else f"{type(error).__name__}: {error}"
                self._came_back.set()
            self._tell()
            if self._fault:
                await asyncio.sleep(self._wait_s[1])

    def _on_change(self) -> None:
        if self._bus is not None and self._bus.connected:
            self._came_back.set()
        self._tell()

    def _tell(self) -> None:
        problem = self.problem
        if problem != self._last_told:
            self._num_losses += self._last_told == ""
            self._last_told = problem
            self._told(problem)


class ReopeningPuller:
    """See port.Puller: bound again to each new connection."""

    def __init__(self, bus: ReopeningBus, durable: str) -> None:
        self._bus = bus
        self._durable = durable
        self._bound_to: JetStreamBus | None = None
        self._puller: JetStreamPuller | None = None
        self._closed = asyncio.Event()

    async def fetch(self, max_messages: int, max_bytes: int, timeout_s: float) -> Sequence[Delivery]:
        """See port.Puller.fetch."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        while not self._closed.is_set():
            try:
                async with asyncio.timeout_at(give_up_at):
                    bus = await self._bus.opened()
            except TimeoutError:
                return []
            try:
                puller = await self._bind(bus)
                return await puller.fetch(max_messages, max_bytes, max(0.0, give_up_at - loop.time()))
            except BusClosedError as error:
                self._bus.leave(bus, error)
            except BusUnavailableError:
                await asyncio.sleep(min(_RETRY_S, max(0.0, give_up_at - loop.time())))
                if loop.time() >= give_up_at:
                    break
        return []

    async def close(self) -> None:
        """See port.Puller.close."""
        self._closed.set()
        if self._puller is not None:
            with contextlib.suppress(BusError):
                await self._puller.close()

    async def _bind(self, bus: JetStreamBus) -> JetStreamPuller:
        if self._puller is None or self._bound_to is not bus:
            self._puller = await bus.puller(self._durable)
            self._bound_to = bus
        return self._puller
