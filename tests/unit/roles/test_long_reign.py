"""A leader that leads for longer than the journal reaches back: what is left of the journal replays."""

import random

import pytest

from tests.nats_fixture import NatsServer
from tests.unit.roles.test_controller import MODEL, World, leads, until
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.port import Bus, StreamDepth
from tide_daemon.bus.topology import MIB, TopologyLimits, build_topology
from tide_daemon.policy.replay import replay
from tide_daemon.roles import controller
from tide_daemon.roles.controller import ControllerRole
from tide_daemon.roles.controller_journal import STREAM, share_written
from tide_daemon.wire import subjects
from tide_daemon.wire.records import Decision, NodeReport, StepStats, WorkloadSteps

SMALL = build_topology(
    TopologyLimits(hidden_max_bytes=MIB, draft_max_bytes=MIB, target_max_bytes=MIB, journal_max_bytes=MIB)
)


class SmallJournal(World):
    """A journal of 1 MiB, and reports of some 3 kB that do not compress."""

    def __init__(self, bus: Bus | None = None) -> None:
        super().__init__(bus)
        self.broker = MemoryBroker(SMALL)
        self.bus = bus or MemoryBus(self.broker)
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


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "_LOOK_S", 0.05)


async def test_a_journal_without_its_head_replays() -> None:
    """The reign is renewed, nobody is asked anew for it, and a node that left is forgotten."""
    world = SmallJournal()
    await leads_for_long(world, world.role())


async def test_on_a_real_server(nats_server: NatsServer) -> None:
    """The same against JetStream."""
    buses = [
        await JetStreamBus.connect(ConnectSettings(urls=(nats_server.url,), name=name), SMALL)
        for name in ("nodes", "first")
    ]
    await buses[0].ensure()
    world = SmallJournal(buses[0])
    try:
        await leads_for_long(world, world.role(bus=buses[1]))
    finally:
        for bus in buses:
            await bus.close()


async def leads_for_long(world: SmallJournal, role: ControllerRole) -> None:
    async with world.running(role):
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
