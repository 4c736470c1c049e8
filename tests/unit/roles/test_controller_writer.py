"""Fenced writes: behind what is there, never behind a successor's, and once."""

import asyncio
from typing import Any

import pytest

from tests.unit.roles.test_controller import MODEL, TOPOLOGY
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.port import StoredMessage
from tide_daemon.clock import SystemClock
from tide_daemon.roles.controller_writer import FencedWriter, ReignOverError
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import Decision, DesiredServer

JOURNAL = subjects.journal(MODEL)
CONTROL = subjects.control_server(MODEL, "node-a")


def entry(token: int, sequence: int = 1) -> Decision:
    return Decision(sequence, token, f"controller-{token}", 1.0, {"event": "tick", "at": 1.0}, (), "", {})


def desired(token: int, generation: int) -> DesiredServer:
    return DesiredServer("node-a", generation, token, 1.0, 0, "", (), True, 1.0, "because")


class LaggingBus:
    """Answers `last` once as it was before the newest write, as a replica may. `num_lagging` such answers are left."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self.num_lagging = 0
        self.num_asked = 0
        self._old: StoredMessage | None = None

    async def remember(self, subject: str) -> None:
        self._old = await self._bus.last(subject)

    async def last(self, subject: str, **more: Any) -> StoredMessage | None:
        self.num_asked += 1
        if self.num_lagging > 0:
            self.num_lagging -= 1
            return self._old
        return await self._bus.last(subject, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(MemoryBroker(TOPOLOGY))


async def writer(bus: Any, token: int) -> FencedWriter:
    lease = bus.lease(f"of-{token}", f"controller-{token}", 30)
    assert await lease.acquire() is not None
    return FencedWriter(bus, lease, SystemClock(), MODEL, token, 1.0)


async def newest(bus: MemoryBus, subject: str) -> Any:
    message = await bus.last(subject)
    return None if message is None else envelope.decode(message.data)


async def test_entries_follow_one_another(bus: MemoryBus) -> None:
    """Each behind the last one; a retry of what is stored is no second entry."""
    one = await writer(bus, 1)
    for sequence in (1, 2, 3):
        await one.entry(entry(1, sequence))
    one.journal_end -= 1
    await one.entry(entry(1, 3))
    assert await newest(bus, JOURNAL) == entry(1, 3)
    assert one.journal_end == 3


async def test_a_successors_entry_ends_the_reign(bus: MemoryBus) -> None:
    one, two = await writer(bus, 1), await writer(bus, 2)
    await one.entry(entry(1))
    two.journal_end = one.journal_end
    await two.entry(entry(2))
    with pytest.raises(ReignOverError, match="token 2"):
        await one.entry(entry(1, 2))
    assert await newest(bus, JOURNAL) == entry(2)


async def test_a_predecessors_late_entry_makes_the_successor_begin_again(bus: MemoryBus) -> None:
    """Before its first entry only: what it read was not the end."""
    one, two = await writer(bus, 1), await writer(bus, 2)
    await one.entry(entry(1))
    with pytest.raises(ReignOverError, match="beginning again"):
        await two.entry(entry(2))
    two.journal_end = one.journal_end
    await two.entry(entry(2))
    await bus.publish(JOURNAL, envelope.encode(entry(1, 9)))  # by a controller that does not compare
    await two.entry(entry(2, 2))
    assert await newest(bus, JOURNAL) == entry(2, 2)


async def test_a_purged_journal_is_written_on(bus: MemoryBus) -> None:
    one = await writer(bus, 1)
    await one.entry(entry(1))
    await bus.purge(JOURNAL)
    await one.entry(entry(1, 2))
    assert await newest(bus, JOURNAL) == entry(1, 2)


async def test_desired_state_goes_over_a_predecessors_and_not_over_a_successors(bus: MemoryBus) -> None:
    one, two = await writer(bus, 1), await writer(bus, 2)
    await one.desired(desired(1, 1))
    await two.desired(desired(2, 1))
    assert await newest(bus, CONTROL) == desired(2, 1)
    with pytest.raises(ReignOverError, match="token 2"):
        await one.desired(desired(1, 2))
    assert await newest(bus, CONTROL) == desired(2, 1)


async def test_only_what_has_not_arrived_is_carried_on(bus: MemoryBus) -> None:
    """Same or newer generation there: nothing is written."""
    one, two = await writer(bus, 1), await writer(bus, 2)
    await one.desired(desired(1, 4))
    await two.carry_on(desired(2, 4))
    assert await newest(bus, CONTROL) == desired(1, 4)
    await two.carry_on(desired(2, 5))
    assert await newest(bus, CONTROL) == desired(2, 5)


@pytest.mark.parametrize("kind", ["entry", "desired"])
async def test_a_replica_that_lags_behind_is_asked_again_after_a_pause(bus: MemoryBus, kind: str) -> None:
    """Its old answer leads to the same conflict; the writer does not spin."""
    lagging = LaggingBus(bus)
    one = await writer(lagging, 2)
    subject = JOURNAL if kind == "entry" else CONTROL

    async def write(number: int) -> None:
        await (one.entry(entry(2, number)) if kind == "entry" else one.desired(desired(2, number)))

    await write(1)
    await lagging.remember(subject)
    late = entry(1, 9) if kind == "entry" else desired(1, 9)
    await bus.publish(subject, envelope.encode(late))
    lagging.num_lagging, lagging.num_asked = 2, 0
    began = asyncio.get_running_loop().time()
    await write(2)
    assert lagging.num_asked == 3
    assert asyncio.get_running_loop().time() - began >= 0.35
    assert await newest(bus, subject) == (entry(2, 2) if kind == "entry" else desired(2, 2))


async def test_nothing_is_written_without_the_lease(bus: MemoryBus) -> None:
    one = await writer(bus, 1)
    await one.lease.release()
    with pytest.raises(ReignOverError, match="lease ran out"):
        await one.entry(entry(1))
    assert await bus.last(JOURNAL) is None


async def test_nodes_that_left_are_forgotten(bus: MemoryBus) -> None:
    """Where the desired state of others ends is kept no longer; one that returns is written over all the same."""
    ours = await writer(bus, 2)
    await ours.desired(desired(2, 1))
    assert len(ours._desired_ends) == 1
    ours.keep(())
    assert not ours._desired_ends
    await ours.desired(desired(2, 2))
    message = await bus.last(CONTROL)
    assert message is not None and envelope.decode(message.data) == desired(2, 2)
