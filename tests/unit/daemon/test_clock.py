"""The steerable clock wakes sleepers at their own moments, in order."""

import asyncio

from tide_daemon.clock import ManualClock


async def test_sleepers_wake_in_order_at_their_time() -> None:
    """Two sleepers and one that sleeps again."""
    clock, woken = ManualClock(start=100.0), []

    async def sleeper(name: str, *pauses: float) -> None:
        for pause in pauses:
            await clock.sleep(pause)
            woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("slow", 3.0))
        group.create_task(sleeper("twice", 1.0, 1.5))
        await clock.advance(2.0)
        assert woken == [("twice", 1.0)]
        await clock.advance(10.0)
    assert woken == [("twice", 1.0), ("twice", 2.5), ("slow", 3.0)]
    assert clock.time() == 112.0


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    """It neither wakes nor breaks the others."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0)
    task.cancel()
    await clock.advance(2.0)
    assert task.cancelled()
