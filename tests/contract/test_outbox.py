"""Outbox: bounded, retried, each message stored once. On both brokers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.contract.conftest import Broker
from tide_daemon.bus.outbox import Outbox
from tide_daemon.bus.port import Bus, StoredMessage
from tide_daemon.errors import BusError

JOURNAL = "tide.v1.journal.m"


async def stored(bus: Bus, count: int) -> list[StoredMessage]:
    stream: AsyncIterator[StoredMessage] = bus.tail(JOURNAL, since="all")
    async with asyncio.timeout(15):
        return [await anext(stream) for _ in range(count)]


async def test_stores_everything_once_through_outages(broker: Broker, bus: Bus) -> None:
    """The broker goes away and comes back while messages are on their way: each is stored exactly once."""
    async with Outbox(bus, timeout_s=0.5, min_wait_s=0.02, max_wait_s=0.1) as outbox:
        for index in range(300):
            await outbox.put(JOURNAL, b"%d" % index, f"id-{index}")
            if index in (100, 200):
                broker.take_away()
                await asyncio.sleep(0.1)
                broker.bring_back()
        assert await outbox.flush(20)
        stats = outbox.stats
    got = [int(message.data) for message in await stored(bus, 300)]
    assert sorted(got) == list(range(300))
    newest = await bus.last(JOURNAL)
    assert newest is not None
    assert newest.sequence == 300
    assert (stats.num_stored, stats.num_dropped, stats.num_failed, stats.in_flight) == (300, 0, 0, 0)


async def test_drops_the_oldest_when_the_budget_is_spent(broker: Broker, bus: Bus) -> None:
    """During an outage new samples push out old ones; the count says how many."""
    broker.take_away()
    await asyncio.sleep(0.1)
    async with Outbox(bus, num_tasks=1, max_bytes=10, when_full="drop_oldest", timeout_s=0.2) as outbox:
        for index in range(20):
            assert await outbox.offer(JOURNAL, b"%02d" % index, f"id-{index}")
            await asyncio.sleep(0)
        assert outbox.stats.num_dropped == 15
        broker.bring_back()
        assert await outbox.flush(20)
    got = [int(message.data) for message in await stored(bus, 5)]
    assert {16, 17, 18, 19} <= set(got)


async def test_refuses_when_the_budget_is_spent(broker: Broker, bus: Bus) -> None:
    """With "refuse" what was taken first stays."""
    broker.take_away()
    await asyncio.sleep(0.1)
    async with Outbox(bus, num_tasks=1, max_bytes=10, when_full="refuse", timeout_s=0.2) as outbox:
        taken = [await outbox.offer(JOURNAL, b"%02d" % index, f"id-{index}") for index in range(7)]
        assert taken == [True] * 5 + [False] * 2
        assert outbox.stats.num_dropped == 2
        assert not await outbox.flush(0.1)
        broker.bring_back()
        assert await outbox.flush(20)
    assert sorted(int(message.data) for message in await stored(bus, 5)) == [0, 1, 2, 3, 4]


async def test_put_waits_for_room(bus: Bus) -> None:
    """put() is back-pressure: nothing is dropped with a budget for two."""
    async with Outbox(bus, num_tasks=2, max_bytes=200) as outbox:
        for index in range(50):
            await outbox.put(JOURNAL, b"%03d" % index * 30, f"id-{index}")
        assert await outbox.flush(20)
        assert (outbox.stats.num_stored, outbox.stats.num_dropped) == (50, 0)
        with pytest.raises(BusError, match="budget"):
            await outbox.put(JOURNAL, b"x" * 201, "large")


async def test_counts_what_the_broker_refuses_for_good(bus: Bus) -> None:
    """A message that no retry can help fails at once, with its reason, and the next one goes on."""
    async with Outbox(bus) as outbox:
        await outbox.put(JOURNAL, b"x" * (bus.max_payload + 1), "large")
        await outbox.put(JOURNAL, b"1", "small")
        assert await outbox.flush(10)
        assert (outbox.stats.num_stored, outbox.stats.num_failed) == (1, 1)
        assert "over the limit" in outbox.stats.last_error


async def test_gives_up_before_the_duplicate_window_ends(broker: Broker, bus: Bus) -> None:
    """After give_up_s a message is counted as failed rather than perhaps stored twice."""
    broker.take_away()
    await asyncio.sleep(0.1)
    async with Outbox(bus, timeout_s=0.1, give_up_s=0.5, min_wait_s=0.05, max_wait_s=0.1) as outbox:
        await outbox.put(JOURNAL, b"1", "id")
        assert await outbox.flush(5)
        assert (outbox.stats.num_stored, outbox.stats.num_failed) == (0, 1)
        assert outbox.stats.num_retried >= 1
    broker.bring_back()


async def test_leaving_does_not_wait(broker: Broker, bus: Bus) -> None:
    """With the broker away, the end of the block is immediate."""
    broker.take_away()
    await asyncio.sleep(0.1)
    async with asyncio.timeout(2):
        async with Outbox(bus, timeout_s=60) as outbox:
            await outbox.put(JOURNAL, b"1", "id")
            await asyncio.sleep(0.05)
    broker.bring_back()
