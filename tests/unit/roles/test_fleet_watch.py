"""The page's view of a fleet, as it follows the bus."""

import asyncio

from tests.unit.roles.test_controller import MODEL, TOPOLOGY, until
from tests.unit.tools.journals import decisions_of, learning_fleet
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.roles.fleet_watch import FleetWatch
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import Decision


async def test_the_journal_of_a_broker_that_lost_its_disk_is_read_from_its_beginning() -> None:
    """By its own tokens, which are lower; what the lost one told is shown no more."""
    broker = MemoryBroker(TOPOLOGY)
    bus = MemoryBus(broker)
    for decision in decisions_of(learning_fleet().entries):
        await bus.publish(subjects.journal(MODEL), envelope.encode(decision))
    now = 0.0
    watch = FleetWatch(bus, MODEL, wall=lambda: now)
    watching = asyncio.create_task(watch.run())

    async def led_by(name: str) -> bool:
        nonlocal now
        now += 1.0
        return watch.status().leader == name

    await until(lambda: led_by("first"))
    last = Decision(1, 400_000, "before", 1e9, {"event": "tick", "at": 1e9}, (), "", {})
    await bus.publish(subjects.journal(MODEL), envelope.encode(last))
    await until(lambda: led_by("before"))
    assert watch.status().decisions
    broker.lose_disk()
    await bus.publish(subjects.journal("another-model"), b"first")
    first = Decision(1, 3, "after", 1e9 + 1, {"event": "tick", "at": 1e9 + 1}, (), "", {})
    await bus.publish(subjects.journal(MODEL), envelope.encode(first))
    await until(lambda: led_by("after"))
    assert watch.status().fencing_token == 3 and not watch.status().decisions
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
