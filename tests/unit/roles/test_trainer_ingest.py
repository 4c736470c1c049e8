"""A batch is fetched, another checked and a third written at the same time; nothing is lost or counted late for it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_samples import chunks, request_id
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TRAINERS, TopologyLimits, build_topology
from tide_daemon.roles.target_spec import SpecKeeper
from tide_daemon.roles.trainer_ingest import FORGOTTEN, Ingest
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire import envelope, subjects


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(MemoryBroker(build_topology(TopologyLimits())))


class Running:
    """An ingest at work that fetches one chunk at a time; `gate` shut, its store writes nothing."""

    def __init__(self, bus: MemoryBus, folder: Path) -> None:
        settings = TrainerSettings("t1", "tiny", fetch_max_messages=1)
        self.bus = bus
        self.ingest = Ingest(bus, settings, folder / "store", SpecKeeper(folder, "tiny", ""), lambda: 1e9)
        self.gate = threading.Event()
        self.gate.set()
        self.checked: list[int] = []
        append, check = self.ingest._store.append, self.ingest._check

        def gated(records: Sequence[Any]) -> int:
            if records:
                self.gate.wait(20)
            return append(records)

        def noted(batch: Sequence[Any]) -> list[Any]:
            self.checked.append(len(batch))
            return check(batch)

        self.ingest._store.append = gated  # type: ignore[method-assign]
        self.ingest._check = noted  # type: ignore[method-assign]
        self.task = asyncio.create_task(self.ingest.run())

    async def publish(self, number: int) -> None:
        for chunk in chunks(number, num_chunks=2, captured_at=1e9):
            message_id = subjects.message_id("tiny", chunk)
            await self.bus.publish(subjects.hidden("tiny", chunk.node), envelope.encode(chunk), message_id=message_id)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def running(bus: MemoryBus, tmp_path: Path) -> AsyncIterator[Running]:
    running = Running(bus, tmp_path)
    yield running
    running.gate.set()
    await running.stop()
    running.ingest.close()


async def test_the_last_chunks_are_counted_at_once(running: Running) -> None:
    """Also those that were still being written when the figures were last made."""
    running.gate.clear()
    await running.publish(1)
    await running.until(lambda: len(running.checked) == 2)
    await asyncio.sleep(0.6)  # the figures are due as soon as the first chunk is written
    running.gate.set()
    await running.until(lambda: running.ingest.stats.num_tokens == 24)


async def test_one_is_checked_while_another_is_written(running: Running) -> None:
    """A disk that takes its time does not stop the checking; what waits for it is held, not forgotten."""
    running.gate.clear()
    await running.publish(1)
    await running.until(lambda: len(running.checked) == 2)
    assert len(running.ingest._held) == 2 and running.ingest.stats.num_requests == 0
    running.gate.set()
    await running.until(lambda: running.ingest.stats.num_requests == 1)
    assert running.ingest._held == []


async def test_what_was_not_stored_is_given_back(running: Running, bus: MemoryBus) -> None:
    """Long before its time is up, the next trainer has what this one had checked."""
    running.gate.clear()
    await running.publish(1)
    await running.until(lambda: len(running.checked) == 2)
    stopping = asyncio.create_task(running.stop())
    other = await bus.puller(TRAINERS)
    found = await other.fetch(1, 1 << 20, 10.0)
    assert [delivery.num_delivered for delivery in found] == [2]
    running.gate.set()
    await stopping


async def test_a_request_forgotten_while_its_chunk_waits_for_the_disk(running: Running) -> None:
    """Checked before, deleted meanwhile: it must not be stored behind the deletion's back."""
    late: list[str] = []
    running.ingest.came_late = late.append
    running.gate.clear()
    await running.publish(1)
    await running.until(lambda: len(running.checked) == 2)
    running.ingest.forgotten.add(request_id(1))
    deleting = asyncio.create_task(running.ingest.delete(request_id(1)))
    running.gate.set()
    assert await deleting == 1  # the chunk that was being written
    await running.until(lambda: bool(late))
    assert running.ingest.refused == {FORGOTTEN: 1}
    assert running.ingest.stats.num_requests == 0
