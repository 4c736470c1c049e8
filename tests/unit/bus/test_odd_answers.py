"""A broker, or whoever answers in its place, that says something else than JetStream does."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.outbox import Outbox
from tide_daemon.bus.reopening import ReopeningBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import BusError

JOURNAL = "tide.v1.journal.m"
TOPOLOGY = build_topology(TopologyLimits())
ODD = [
    *(b"", b"nonsense", b"\xff", b"[" * 10_000),
    *(b"[]", b"7", b"{}", b'{"seq": null}', b'{"seq": "x"}', b'{"error": "no"}'),
]


class OddBus(JetStreamBus):
    """Is always answered the same."""

    def __init__(self, answer: bytes) -> None:
        async def request(*args: object, **more: object) -> Any:
            return SimpleNamespace(data=answer, headers=None, subject="_INBOX.1")

        connection = SimpleNamespace(request=request)
        super().__init__(connection, TOPOLOGY)  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ODD, ids=lambda answer: answer[:20].decode(errors="replace"))
async def test_an_odd_answer_to_a_publish_is_an_error_of_the_bus(answer: bytes) -> None:
    """Callers handle that one, and no other."""
    with pytest.raises(BusError):
        await OddBus(answer).publish(JOURNAL, b"x")


class BrokenBus(MemoryBus):
    """Has a bug that shows now and then."""

    num_raised = 0

    async def publish(self, subject: str, data: bytes, **more: Any) -> int:  # type: ignore[override]
        if data == b"bad":
            self.num_raised += 1
            raise RuntimeError("a bug")
        return await super().publish(subject, data, **more)


async def test_an_outbox_goes_on_after_an_error_of_ours() -> None:
    """With one task, as for reports, it would be the end of them all."""
    bus = BrokenBus(MemoryBroker(TOPOLOGY))
    async with Outbox(bus, num_tasks=1) as outbox:
        for number, data in enumerate((b"1", b"bad", b"2")):
            await outbox.put(JOURNAL, data, f"id-{number}")
        assert await outbox.flush(5)
    assert (outbox.stats.num_stored, outbox.stats.num_failed, bus.num_raised) == (2, 1, 1)
    assert "a bug" in outbox.stats.last_error


class Opened:
    """A connection that stays."""

    def __init__(self) -> None:
        self.connected, self.problem, self.max_payload = True, "", 1 << 20
        self.connection = SimpleNamespace(on_change=set())

    async def wait_closed(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def close(self) -> None:
        pass


async def test_streams_are_looked_at_again_after_an_error_of_ours() -> None:
    """Nobody would know what became of them for as long as the connection lasts."""
    opened, prepared = Opened(), list[int]()

    async def connect() -> Any:
        return opened

    async def prepare(bus: object) -> None:
        prepared.append(1)
        if len(prepared) == 2:
            raise KeyError("config")

    told: list[str] = []
    async with ReopeningBus(TOPOLOGY, connect, prepare, told=told.append, min_wait_s=0.01, max_wait_s=0.02) as bus:
        await bus.opened()
        bus._on_change()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if len(prepared) == 3 and bus.connected:
                break
        assert len(prepared) == 3 and bus.connected
    assert any("KeyError" in text for text in told)
