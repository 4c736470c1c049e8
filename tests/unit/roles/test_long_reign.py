"""A leader that leads for longer than the journal reaches back: what is left of the journal replays."""

import random
from dataclasses import replace

import pytest

from tests.unit.roles.test_controller import MODEL, TOPOLOGY, World, leads, until
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.port import StreamDepth
from tide_daemon.bus.topology import MIB
from tide_daemon.policy.replay import replay
from tide_daemon.roles import controller
from tide_daemon.roles.controller_journal import STREAM, share_written
from tide_daemon.wire import subjects
from tide_daemon.wire.records import Decision, NodeReport, StepStats, WorkloadSteps


class SmallJournal(World):
    """A journal of 1 MiB, and reports of some 3 kB that do not compress."""

    def __init__(self) -> None:
        super().__init__()
        streams = tuple(
            replace(each, max_bytes=MIB) if each.name == "TIDE_JOURNAL" else each for each in TOPOLOGY.streams
        )
        self.broker = MemoryBroker(replace(TOPOLOGY, streams=streams))
        self.bus = MemoryBus(self.broker)
        self.random = random.Random(1)

    async def reports_much(self, node: str) -> None:
        self._sequence += 1
        workloads = tuple(WorkloadSteps(f"{self.random.getrandbits(250):064x}", 4, 8) for _ in range(64))
        step = StepStats(4, 0, 20, 80, (), 1.0, 1.0, 0.05)
        await self.send(
            NodeReport(node, 1.0, self._sequence, "ready", 0, "", 0, 4, 1.0, (step,),
                       True, 0, 0, 0, 0, 0, 0, 1, workloads=workloads)
        )  # fmt: skip


def began(journal: list[Decision]) -> list[Decision]:
    return [entry for entry in journal if entry.event["event"] == "controller_started"]


async def test_a_journal_without_its_head_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reign is renewed, nobody is asked anew for it, and a node that left is forgotten."""
    monkeypatch.setattr(controller, "_LOOK_S", 0.05)
    world = SmallJournal()
    async with world.running(world.role()) as role:
        await leads(role)
        await world.reports_much("node-gone")

        async def lost_its_head() -> bool:
            for node in ("node-a", "node-b"):
                await world.reports_much(node)
            last = await world.bus.last(subjects.journal(MODEL))
            return last is not None and last.sequence > 300 and await world.bus.get(STREAM, 300) is None

        await until(lost_its_head, 60.0)
        token = role.snapshot()["fencing_token"]
        nodes = role.snapshot()["nodes"]
        server = await world.desired_server("node-a")
    journal = await world.journal()
    outcome = replay((entry.event, entry.instructions) for entry in journal)
    assert outcome.difference is None
    assert journal[0].sequence > 300 and outcome.num_compared > len(journal) / 2
    assert {entry.fencing_token for entry in journal} == {token}
    assert [entry.sequence for entry in journal] == list(range(journal[0].sequence, journal[-1].sequence + 1))
    assert all(entry.event["model"] == MODEL for entry in began(journal)) and len(began(journal)) >= 2
    assert server is not None and server.generation == 1
    assert set(nodes) == {"node-a", "node-b"}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("depth", "began", "end", "share"),
    [
        (StreamDepth("", 0, 0, 1000), 0, 0, 0.0),
        (StreamDepth("", 100, 500, 1000), 50, 100, 0.25),
        (StreamDepth("", 100, 990, 1000), 450, 500, 0.5),
        (StreamDepth("", 100, 10, 1000), 400, 500, 1.0),
        (StreamDepth("", 100, 500, 0), 50, 100, 0.5),
    ],
)
def test_share_of_a_full_journal(depth: StreamDepth, began: int, end: int, share: float) -> None:
    """By bytes while it fills; once its oldest entries go, by bytes or by age, it is full."""
    assert share_written(depth, began, end) == pytest.approx(share)
