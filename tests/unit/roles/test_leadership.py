"""How a node knows whether anybody leads: by the lease, where it can be read, otherwise by the connection."""

import pytest

from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.port import StoredMessage
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import BusUnavailableError
from tide_daemon.roles.leadership import Leadership, lease_name

MODEL = "target"


class Clock:
    """Both kinds of seconds; a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bus(clock: Clock) -> MemoryBus:
    return MemoryBus(MemoryBroker(build_topology(TopologyLimits()), clock=clock))


async def test_the_time_counts_from_the_last_look_that_found_a_leader(bus: MemoryBus, clock: Clock) -> None:
    """Its lease ran out, or it gave it back: from then on nobody leads, though the broker answers."""
    seen = Leadership(bus, clock)
    assert await bus.lease(lease_name(MODEL), "first", 5).acquire() is not None
    await seen.look(MODEL)
    clock.now += 4.0
    await seen.look(MODEL)
    assert seen.away_s() == 0.0
    for _ in range(5):
        clock.now += 4.0
        await seen.look(MODEL)
    assert seen.away_s() == 20.0
    assert await bus.lease(lease_name(MODEL), "second", 5).acquire() is not None
    await seen.look(MODEL)
    assert seen.away_s() == 0.0


async def test_nobody_leads_yet(bus: MemoryBus, clock: Clock) -> None:
    """The first answer begins the time; before it the connection has to do."""
    seen = Leadership(bus, clock)
    clock.now += 100.0
    assert seen.away_s() == 0.0
    await seen.look(MODEL)
    clock.now += 10.0
    await seen.look(MODEL)
    assert seen.away_s() == 10.0


async def test_without_a_broker_nobody_can_be_heard(
    bus: MemoryBus, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the lease was ever read or not."""

    async def no_answer(subject: str, *, timeout_s: float = 5.0) -> StoredMessage | None:
        raise BusUnavailableError("away")

    never, once = Leadership(bus, clock), Leadership(bus, clock)
    assert await bus.lease(lease_name(MODEL), "first", 5).acquire() is not None
    await once.look(MODEL)
    bus._broker.down = True
    monkeypatch.setattr(bus, "last", no_answer)
    for _ in range(3):
        clock.now += 10.0
        await never.look(MODEL)
        await once.look(MODEL)
    assert (never.away_s(), once.away_s()) == (30.0, 30.0)


async def test_a_lease_that_may_not_be_read_is_no_lost_leader(
    bus: MemoryBus, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No look was ever answered, but the broker is there."""

    async def no_answer(subject: str, *, timeout_s: float = 5.0) -> StoredMessage | None:
        raise BusUnavailableError("permissions violation")

    monkeypatch.setattr(bus, "last", no_answer)
    seen = Leadership(bus, clock)
    clock.now += 100.0
    await seen.look(MODEL)
    assert seen.away_s() == 0.0
