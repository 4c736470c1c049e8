"""A demand to forget stands until the stream has been looked at, whatever goes wrong meanwhile."""

import asyncio
from types import SimpleNamespace

import pytest

from tests.trainer_samples import chunks
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.permissions import forget_reader
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import BusUnavailableError
from tide_daemon.roles import trainer_forget as module
from tide_daemon.roles.trainer_forget import Forgetter
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import ForgetSamples, HiddenChunk, Record

MODEL = "tiny"


class FailingBus(MemoryBus):
    """Fails to read message ids as often as it is told to."""

    num_scan_failures = 0

    async def message_ids(self, subject: str, reader: str) -> list[tuple[int, str]]:
        if self.num_scan_failures:
            self.num_scan_failures -= 1
            raise BusUnavailableError("reading the message ids was interrupted")
        return await super().message_ids(subject, reader)


async def until_settled(forgetter: Forgetter) -> None:
    for _ in range(1000):
        await asyncio.sleep(0.01)
        if not forgetter._due:
            return
    raise AssertionError("not done within 10 s")


async def test_a_late_chunk_is_erased_though_the_first_look_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was answered before: the answer must not stand for what came after it."""
    monkeypatch.setattr(module, "_TOGETHER_S", 0.01)
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    bus = FailingBus(MemoryBroker(build_topology(TopologyLimits())))

    async def put(record: Record) -> None:
        subject = subjects.subject_of(MODEL, record)
        await bus.publish(subject, envelope.encode(record), message_id=subjects.message_id(MODEL, record))

    async def nothing(request_id: str) -> int:
        return 0

    late: HiddenChunk = next(iter(chunks(3)))
    ingest = SimpleNamespace(delete=nothing, forgotten=set(), came_late=None)
    forgetter = Forgetter(bus, MODEL, "t1", ingest)  # type: ignore[arg-type]
    loops = [asyncio.create_task(forgetter.follow()), asyncio.create_task(forgetter.work())]
    try:
        await put(ForgetSamples(late.request_id, 1e9, "anna", "asked for"))
        await asyncio.wait_for(forgetter._changed.wait(), 10)
        await until_settled(forgetter)
        assert await bus.last(subjects.forgotten(MODEL, late.request_id, "t1"))

        await put(late)
        bus.num_scan_failures = 1
        ingest.came_late(late.request_id)
        await until_settled(forgetter)
        assert bus.num_scan_failures == 0
        assert await bus.message_ids(subjects.all_hidden(MODEL), forget_reader("t1")) == []
        assert forgetter.num_forgotten == 1 and not forgetter.problem
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
