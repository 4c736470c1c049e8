"""Publishing that survives an outage: a bounded queue, a few tasks, and retries with the same message id.

The budget in bytes covers what waits and what is on its way. When it is spent, one stated rule
applies: "drop_oldest" drops what has waited longest (for samples, where new is better than old),
"refuse" refuses the new one. Both are counted. `put` waits for room instead.

A retry carries the same id, so the broker stores each message once, provided that it still
remembers the id; `give_up_s` therefore stays below the stream's duplicate window. With several
tasks the order is not kept. nats-py's publish_async is not used (nats.md, pitfall 2).
"""

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import structlog

from tide_daemon.bus.port import Bus
from tide_daemon.errors import BusError, BusFullError, BusUnavailableError

log = structlog.get_logger()

WhenFull = Literal["drop_oldest", "refuse"]


@dataclass(slots=True)
class OutboxStats:
    """Counts since the start; `waiting_*` and `in_flight` are of now.

    Attributes:
        num_dropped: not stored because the budget was spent ("drop_oldest" and "refuse" alike).
        num_failed: not stored because the broker refused for good, or for longer than give_up_s, or for a bug of ours.
        num_retried: attempts after the first.
        last_error: why the newest failed attempt did, "" if none did.
        problem: the same until a message is stored again.
    """

    num_stored: int = 0
    bytes_stored: int = 0
    num_dropped: int = 0
    num_failed: int = 0
    num_retried: int = 0
    waiting_messages: int = 0
    waiting_bytes: int = 0
    in_flight: int = 0
    last_error: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Message:
    subject: str
    data: bytes
    message_id: str


class Outbox:
    """Use as `async with Outbox(bus, ...) as outbox`. Leaving the block gives up on what is left; `flush` first.

    Args:
        num_tasks: messages on their way at a time.
        max_bytes: budget of payload bytes, waiting and on their way.
        when_full: what `offer` does when the budget is spent.
        timeout_s: limit of one attempt.
        give_up_s: limit of all attempts for one message; below the stream's duplicate window.
        min_wait_s, max_wait_s: pause before a retry, doubled each time, with jitter.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        num_tasks: int = 8,
        max_bytes: int = 64 << 20,
        when_full: WhenFull = "drop_oldest",
        timeout_s: float = 5.0,
        give_up_s: float = 500.0,
        min_wait_s: float = 0.1,
        max_wait_s: float = 5.0,
    ) -> None:
        self.stats = OutboxStats()
        self._bus = bus
        self._num_tasks = num_tasks
        self._max_bytes = max_bytes
        self._when_full = when_full
        self._timeout_s = timeout_s
        self._give_up_s = give_up_s
        self._wait_s = (min_wait_s, max_wait_s)
        self._queue: deque[_Message] = deque()
        self._in_flight_bytes = 0
        self._arrived = asyncio.Condition()
        self._jitter = random.Random()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._work(), name=f"outbox-{index}") for index in range(self._num_tasks)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def offer(self, subject: str, data: bytes, message_id: str) -> bool:
        """Take a message without waiting for room; False if it was refused (and counted)."""
        async with self._arrived:
            while self._when_full == "drop_oldest" and self._queue and not self._has_room(len(data)):
                self._forget(self._queue.popleft())
            if not self._has_room(len(data)):
                self.stats.num_dropped += 1
                return False
            self._take(_Message(subject, data, message_id))
            return True

    async def put(self, subject: str, data: bytes, message_id: str) -> None:
        """Take a message as soon as there is room.

        Raises:
            BusError: it alone is over the budget.
        """
        if len(data) > self._max_bytes:
            raise BusError(f"a message of {len(data)} bytes is over the outbox's budget of {self._max_bytes} bytes")
        async with self._arrived:
            await self._arrived.wait_for(lambda: self._has_room(len(data)))
            self._take(_Message(subject, data, message_id))

    async def flush(self, timeout_s: float) -> bool:
        """True once everything taken so far is stored or given up, False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self._arrived:
                await self._arrived.wait_for(lambda: not self._queue and not self.stats.in_flight)
        except TimeoutError:
            return False
        return True

    def _has_room(self, num_bytes: int) -> bool:
        return self.stats.waiting_bytes + self._in_flight_bytes + num_bytes <= self._max_bytes

    def _take(self, message: _Message) -> None:
        self._queue.append(message)
        self.stats.waiting_messages += 1
        self.stats.waiting_bytes += len(message.data)
        self._arrived.notify_all()

    def _forget(self, message: _Message) -> None:
        self.stats.waiting_messages -= 1
        self.stats.waiting_bytes -= len(message.data)
        self.stats.num_dropped += 1

    async def _work(self) -> None:
        while True:
            async with self._arrived:
                await self._arrived.wait_for(lambda: bool(self._queue))
                message = self._queue.popleft()
                self.stats.waiting_messages -= 1
                self.stats.waiting_bytes -= len(message.data)
                self.stats.in_flight += 1
                self._in_flight_bytes += len(message.data)
            try:
                await self._deliver(message)
            finally:
                self.stats.in_flight -= 1
                self._in_flight_bytes -= len(message.data)
            async with self._arrived:
                self._arrived.notify_all()

    async def _deliver(self, message: _Message) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._give_up_s
        wait_s, max_wait_s = self._wait_s
        while True:
            try:
                await self._bus.publish(
                    message.subject, message.data, message_id=message.message_id, timeout_s=self._timeout_s
                )
            except (BusUnavailableError, BusFullError) as error:
                self.stats.last_error = self.stats.problem = str(error)
                if loop.time() + wait_s >= give_up_at:
                    self.stats.num_failed += 1
                    return
            except BusError as error:
                # Too large, not permitted, closed: the next attempt would end the same way.
                self.stats.last_error = self.stats.problem = str(error)
                self.stats.num_failed += 1
                return
            except Exception as error:  # a bug must not end the task: with one task it would be the end of all messages
                log.exception("message_not_published", subject=message.subject)
                self.stats.last_error = self.stats.problem = f"{type(error).__name__}: {error}"
                self.stats.num_failed += 1
                return
            else:
                self.stats.problem = ""
                self.stats.num_stored += 1
                self.stats.bytes_stored += len(message.data)
                return
            await asyncio.sleep(wait_s * self._jitter.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, max_wait_s)
            self.stats.num_retried += 1
