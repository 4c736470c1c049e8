"""The controller's shell on the in-memory bus: what stands on the subjects, and who may write it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.nats_fixture import NatsServer
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.lease import CasLease
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.port import Bus, Lease, StoredMessage
from tide_daemon.bus.topology import MIB, TopologyLimits, build_topology
from tide_daemon.errors import BusError, BusSetupError, BusUnavailableError, MessageTooLargeError
from tide_daemon.policy.replay import replay
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.roles import controller
from tide_daemon.roles.controller import ControllerRole
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import (
    Decision,
    DesiredServer,
    DesiredTrainer,
    DraftManifest,
    NodeReport,
    PartEntry,
    Record,
    RequestScore,
    StepStats,
    TargetSpec,
    TensorEntry,
    TrainerReport,
)

MODEL = "target"


class FrozenBus:
    """A connection of a process that is stopped (SIGSTOP) just before one of its writes, with that write under way.

    Attributes:
        freeze_at: the next publish on a subject that begins so freezes everything that is written here.
        freeze_reason: only a journal entry whose reason holds this does.
        frozen: it has come to that.
        fail_next: raised once by the next publish.
        fail_last: raised once by the next look at a newest message.
        refused: raised whenever something is published on, or read from, a subject that begins so.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._thawed = asyncio.Event()
        self.freeze_at = ""
        self.freeze_reason = ""
        self.frozen = asyncio.Event()
        self.fail_next: Exception | None = None
        self.fail_last: Exception | None = None
        self.fail_always = False
        self.refused: dict[str, BusError] = {}

    def thaw(self) -> None:
        self._thawed.set()

    def kill(self) -> None:
        """Nothing is written any more, what is under way included."""
        self.fail_always = True
        self._thawed.set()

    def _refuse(self, subject: str) -> None:
        for prefix, error in self.refused.items():
            if subject.startswith(prefix):
                raise error

    async def publish(self, subject: str, data: bytes, **more: Any) -> int:
        self._refuse(subject)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        if self.freeze_at and subject.startswith(self.freeze_at) and self._is_wanted(data):
            self.frozen.set()
        if self.frozen.is_set():
            await self._thawed.wait()
        if self.fail_always:
            raise BusError("this process was killed")
        return await self._bus.publish(subject, data, **more)

    async def last(self, subject: str, **more: Any) -> StoredMessage | None:
        if self.fail_last is not None:
            error, self.fail_last = self.fail_last, None
            raise error
        return await self._bus.last(subject, **more)

    async def tail(self, subject: str, **more: Any) -> AsyncIterator[StoredMessage]:
        self._refuse(subject)
        async for message in self._bus.tail(subject, **more):
            yield message

    def _is_wanted(self, data: bytes) -> bool:
        record = envelope.decode(data) if self.freeze_reason else None
        return record is None or (isinstance(record, Decision) and self.freeze_reason in record.reason)

    def lease(self, name: str, holder: str, ttl_s: int) -> Lease:
        return CasLease(self, name, holder, ttl_s)  # type: ignore[arg-type]  # publishes here, so it freezes as well

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


TOPOLOGY = build_topology(
    TopologyLimits(hidden_max_bytes=MIB, draft_max_bytes=MIB, target_max_bytes=MIB, journal_max_bytes=4 * MIB)
)
SETTINGS = PolicySettings(max_batch_size=8, settle_s=0.0, lost_after_s=2.0)
SPEC = TargetSpec(MODEL, "a" * 64, "b" * 64, (1, 5, 9), 16, 100)


class World:
    """A broker, and nodes that speak when told to."""

    def __init__(self, bus: Bus | None = None) -> None:
        self.broker = MemoryBroker(TOPOLOGY)
        self.bus: Bus = bus or MemoryBus(self.broker)
        self._sequence = 0

    def role(self, name: str = "first", bus: Bus | None = None, settings: PolicySettings = SETTINGS) -> ControllerRole:
        own = bus or MemoryBus(self.broker)
        return ControllerRole(own, settings, MODEL, name, lease_ttl_s=1, tick_s=0.02)

    @asynccontextmanager
    async def running(self, role: ControllerRole) -> AsyncIterator[ControllerRole]:
        stop = asyncio.Event()
        task = asyncio.create_task(role.run(stop))
        try:
            yield role
        finally:
            stop.set()
            await asyncio.wait_for(task, 5.0)

    async def send(self, record: Record) -> None:
        data, message_id = envelope.encode(record), subjects.message_id(MODEL, record)
        await self.bus.publish(subjects.subject_of(MODEL, record), data, message_id=message_id)

    async def server_reports(self, node: str = "node-a", version: int = 0) -> None:
        self._sequence += 1
        step = StepStats(4, 0, 20, 80, (), 1.0, 1.0, 0.05)
        digest = f"{version:064x}" if version else ""
        await self.send(
            NodeReport(node, 1.0, self._sequence, "ready", version, digest, 0, 4, 1.0, (step,),
                       True, 0, 0, 0, 0, 0, 0, 1)
        )  # fmt: skip

    async def trainer_reports(self, new_tokens: int, round_: int = 0) -> None:
        self._sequence += 1
        await self.send(
            TrainerReport("trainer-a", 1.0, self._sequence, "waiting", 0, 0, 9, new_tokens, 3, new_tokens, 0, round_,
                          0, 0, 0.0)
        )  # fmt: skip

    async def publishes(self, version: int, parent: int = 0, gain: float = 0.4) -> None:
        scores = tuple(
            RequestScore(f"{index:016x}", "", 0, 100, 100.0, 100.0 * (1.0 + gain) + index % 3) for index in range(12)
        )
        await self.send(
            DraftManifest(SPEC, version, parent, None, "", f"{version:064x}", 50, "c" * 64, "{}",
                          (TensorEntry("fc.weight", "BF16", (1,), "d" * 64),), (PartEntry(0, 2, "e" * 64),),
                          "trainer-a", 1.0, 1000, 0.0, 0.0, 3, scores)
        )  # fmt: skip

    async def desired_server(self, node: str = "node-a") -> DesiredServer | None:
        record = await self._last(subjects.control_server(MODEL, node))
        assert record is None or isinstance(record, DesiredServer)
        return record

    async def desired_trainer(self) -> DesiredTrainer | None:
        record = await self._last(subjects.control_trainer(MODEL, "trainer-a"))
        assert record is None or isinstance(record, DesiredTrainer)
        return record

    async def journal(self) -> list[Decision]:
        decisions: list[Decision] = []
        last = await self.bus.last(subjects.journal(MODEL))
        if last is None:
            return []
        async for message in self.bus.tail(subjects.journal(MODEL), since="all"):
            record = envelope.decode(message.data)
            assert isinstance(record, Decision)
            decisions.append(record)
            if message.sequence >= last.sequence:
                break
        return decisions

    async def _last(self, subject: str) -> Record | None:
        message = await self.bus.last(subject)
        return None if message is None else envelope.decode(message.data)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 5.0) -> None:
    """Wait until an async condition holds."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110  # what is waited for stands on the bus
            await asyncio.sleep(0.01)


async def leads(role: ControllerRole) -> None:
    async def leading() -> bool:
        return bool(role.snapshot()["leading"])

    await until(leading)


async def test_reports_become_desired_state_and_a_journal() -> None:
    """A node and a trainer speak; both are told what to do, and the journal says why."""
    world = World()
    async with world.running(world.role()) as role:
        await leads(role)
        await world.server_reports()
        await world.trainer_reports(3000)

        async def asked() -> bool:
            trainer = await world.desired_trainer()
            return await world.desired_server() is not None and trainer is not None and trainer.round == 1

        await until(asked)
        server = await world.desired_server()
        assert server is not None
        assert (server.draft_version, server.steps_table, server.collect) == (0, (), True)
        assert server.fencing_token == role.snapshot()["fencing_token"]
        snapshot = role.snapshot()
        assert (snapshot["num_nodes"], snapshot["num_trainers"], snapshot["serving_version"]) == (1, 1, 0)
        assert any("node-a" in str(decision["reason"]) for decision in snapshot["decisions"])  # type: ignore[union-attr]
    reasons = [entry.reason for entry in await world.journal()]
    assert any("no draft" in reason for reason in reasons)
    assert not role.snapshot()["leading"]


async def test_the_journal_of_a_run_replays() -> None:
    """What was journalled, read back from the bus, leads to the same instructions."""
    world = World()
    async with world.running(world.role()) as role:
        await leads(role)
        await world.server_reports()
        await world.publishes(1)

        async def in_canary() -> bool:
            server = await world.desired_server()
            return server is not None and server.draft_version == 1

        await until(in_canary)
        await world.server_reports(version=1)
        await asyncio.sleep(0.1)
    entries = await world.journal()
    outcome = replay((entry.event, entry.instructions) for entry in entries)
    assert outcome.difference is None
    assert outcome.num_compared == len(entries) > 5


async def test_a_restart_goes_on_where_it_was() -> None:
    """The next leader knows the rollout from the journal; generations and tokens grow, nothing is judged twice."""
    world = World()
    async with world.running(world.role()) as role:
        await leads(role)
        await world.server_reports()
        await world.publishes(1)

        async def in_canary() -> bool:
            server = await world.desired_server()
            return server is not None and server.draft_version == 1

        await until(in_canary)
    before = await world.desired_server()
    async with world.running(world.role("second")) as role:
        await leads(role)

        async def rolled_out() -> bool:
            await world.server_reports(version=1)
            return role.snapshot().get("serving_version") == 1

        await until(rolled_out)
        await world.server_reports("node-b")

        async def joined() -> bool:
            return await world.desired_server("node-b") is not None

        await until(joined)
        other = await world.desired_server("node-b")
        assert other is not None and before is not None
        assert other.draft_version == 1
        assert other.fencing_token > before.fencing_token
    entries = await world.journal()
    judged = [each for entry in entries for each in entry.instructions if each["instruction"] == "judged"]
    assert [each["version"] for each in judged] == [1]
    first, second = (entry.event for entry in entries if entry.event["event"] == "controller_started")
    assert first["collection"] is None and "gained" in second["collection"]["reason"]


async def test_a_node_that_was_forgotten_goes_on_where_it_was() -> None:
    """Under the same token a node refuses generations that it has seen, so they must not begin again."""
    world = World()
    settings = replace(SETTINGS, lost_after_s=0.1, forget_after_s=0.2)
    async with world.running(world.role(settings=settings)) as role:
        await leads(role)
        await world.server_reports()

        async def asked() -> bool:
            return await world.desired_server() is not None

        async def forgotten() -> bool:
            return role.snapshot().get("nodes") == {}

        async def known() -> bool:
            return bool(role.snapshot().get("nodes"))

        await until(asked)
        first = await world.desired_server()
        await until(forgotten)
        await world.server_reports()
        await until(known)
    events = [entry.event["event"] for entry in await world.journal()]
    assert events.count("server_found") == 1
    assert await world.desired_server() == first


async def test_only_one_leads_and_the_other_takes_over() -> None:
    """Two controllers: one writes; when it stops, the other goes on within a lease or so."""
    world = World()
    async with world.running(world.role("second")) as second:
        await leads(second)
        async with world.running(world.role("third")) as third:
            await asyncio.sleep(0.3)
            assert not third.snapshot()["leading"]
            assert third.ready()
    async with world.running(world.role("fourth")) as fourth:
        await leads(fourth)


async def test_a_stale_leader_stops_at_a_successors_desired_state() -> None:
    """Somebody with a higher token has written: this one's reign is over and its write does not happen."""
    world = World()
    async with world.running(world.role()) as role:
        await leads(role)
        await world.server_reports()

        async def asked() -> bool:
            return await world.desired_server() is not None

        await until(asked)
        theirs = DesiredServer("node-a", 9, 10**6, 1.0, 0, "", (), False, 0.0, "a successor says so")
        await world.send(theirs)
        await world.publishes(1)
        await asyncio.sleep(0.3)
        assert await world.desired_server() == theirs


async def test_the_broker_away_for_long_ends_the_reign_and_back_begins_another() -> None:
    """No decision is taken blindly while the lease cannot be renewed; afterwards all goes on."""
    world = World()
    async with world.running(world.role()) as role:
        await leads(role)
        world.broker.down = True

        async def stopped() -> bool:
            return not role.snapshot()["leading"]

        await until(stopped, 10.0)
        assert not role.ready()
        world.broker.down = False
        await leads(role)
        await world.server_reports()

        async def asked() -> bool:
            return await world.desired_server() is not None

        await until(asked)


async def test_hostile_messages_are_refused() -> None:
    """Random bytes, and a report that speaks for another node, change nothing."""
    world = World()
    async with world.running(world.role()) as role:
        await leads(role)
        await world.bus.publish(subjects.report(MODEL, "node-a", "server"), b"not an envelope")
        forged = NodeReport("node-b", 1.0, 1, "ready", 0, "", 0, 0, 1.0, (), False, 0, 0, 0, 0, 0, 0, 1)
        await world.bus.publish(subjects.report(MODEL, "node-a", "server"), envelope.encode(forged))
        await asyncio.sleep(0.1)
        assert role.snapshot()["num_nodes"] == 0
        await world.server_reports("node-c")

        async def known() -> bool:
            return role.snapshot()["num_nodes"] == 1

        await until(known)


async def test_killed_between_journal_and_desired_state() -> None:
    """The decision stands in the journal only; the next leader carries it out as it stands there, whether or not the
    node is heard of again, and once."""
    world = World()
    frozen = FrozenBus(MemoryBus(world.broker))
    role = world.role(bus=frozen)
    task = asyncio.create_task(role.run(asyncio.Event()))
    await leads(role)
    frozen.freeze_at = f"tide.v1.control.{MODEL}."
    await world.server_reports()
    await asyncio.wait_for(frozen.frozen.wait(), 5.0)
    frozen.kill()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert await world.desired_server() is None
    async with world.running(world.role("second")) as second:
        await leads(second)

        async def asked() -> bool:
            return await world.desired_server() is not None

        await until(asked)
        carried_out = await world.desired_server()
        assert carried_out is not None and carried_out.generation == 1
        assert carried_out.fencing_token == second.snapshot()["fencing_token"]
        (journalled,) = [
            item
            for entry in await world.journal()
            for item in entry.instructions
            if item["instruction"] == "set_server"
        ]
        assert (journalled["generation"], journalled["reason"]) == (1, carried_out.reason)
        await world.server_reports()
        await asyncio.sleep(0.1)
        assert await world.desired_server() == carried_out


async def test_a_successor_that_dies_while_it_begins_leaves_the_rest_to_the_next() -> None:
    """Its first entry stands, the predecessor's decision has not arrived yet: a third leader carries it out."""
    world = World()
    for name in ("first", "second"):
        frozen = FrozenBus(MemoryBus(world.broker))
        frozen.freeze_at = f"tide.v1.control.{MODEL}."
        role = world.role(name, bus=frozen)
        task = asyncio.create_task(role.run(asyncio.Event()))
        if name == "first":
            await leads(role)
            await world.server_reports()
        await asyncio.wait_for(frozen.frozen.wait(), 5.0)
        frozen.kill()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert await world.desired_server() is None
    async with world.running(world.role("third")) as third:
        await leads(third)

        async def asked() -> bool:
            return await world.desired_server() is not None

        await until(asked)
        server = await world.desired_server()
        assert server is not None and (server.generation, server.fencing_token) == (
            1,
            third.snapshot()["fencing_token"],
        )


@pytest.mark.parametrize("late", ["journal", "control"])
async def test_late_writes_of_a_frozen_leader_are_refused(late: str) -> None:
    """Frozen with a write under way that comes out when its successor leads: the broker refuses it, the journal is of
    one leader at a time, and the frozen one stands by again."""
    world = World()
    frozen = FrozenBus(MemoryBus(world.broker))
    first = world.role("first", bus=frozen)
    async with world.running(first):
        await leads(first)
        await world.server_reports()

        async def asked() -> bool:
            return await world.desired_server() is not None

        await until(asked)
        frozen.freeze_at = f"tide.v1.{late}.{MODEL}"
        await world.publishes(1)  # a verdict, a canary: an entry and a desired state
        await asyncio.wait_for(frozen.frozen.wait(), 5.0)
        async with world.running(world.role("second")) as second:
            await leads(second)
            await world.server_reports()

            async def canary() -> bool:
                server = await world.desired_server()
                return server is not None and server.draft_version == 1

            await until(canary)
            theirs = await world.desired_server()
            frozen.thaw()

            async def noticed() -> bool:
                return not first.snapshot()["leading"]

            await until(noticed)
            await asyncio.sleep(0.1)
            assert await world.desired_server() == theirs
            assert theirs is not None and theirs.fencing_token == second.snapshot()["fencing_token"]
    journal = await world.journal()
    tokens = [entry.fencing_token for entry in journal]
    assert tokens == sorted(tokens) and len(set(tokens)) == 2
    judged = [each for entry in journal for each in entry.instructions if each["instruction"] == "judged"]
    assert [each["version"] for each in judged] == [1]


async def test_a_late_entry_before_the_successors_first_is_taken_in() -> None:
    """The predecessor's last write lands between the successor's reading and its first entry: it begins again behind
    it, and what that entry asked for is carried out."""
    world = World()
    frozen = FrozenBus(MemoryBus(world.broker))
    first = world.role("first", bus=frozen)
    held = FrozenBus(MemoryBus(world.broker))
    second = world.role("second", bus=held)
    async with world.running(first):
        await leads(first)
        await world.server_reports()

        async def asked() -> bool:
            return await world.desired_server() is not None

        await until(asked)
        frozen.freeze_reason = "version 1"
        frozen.freeze_at = f"tide.v1.journal.{MODEL}"
        await world.publishes(1)
        await asyncio.wait_for(frozen.frozen.wait(), 5.0)
        held.freeze_at = f"tide.v1.journal.{MODEL}"
        async with world.running(second):
            await asyncio.wait_for(held.frozen.wait(), 5.0)  # it has read the journal's end
            frozen.thaw()

            async def landed() -> bool:
                return any("version 1" in entry.reason for entry in await world.journal())

            await until(landed)
            held.thaw()
            await leads(second)

            async def canary() -> bool:
                server = await world.desired_server()
                return server is not None and server.draft_version == 1

            await until(canary)
    journal = await world.journal()
    began = [entry for entry in journal if entry.event["event"] == "controller_started"]
    assert len(began) == 2
    fleet = began[1].event["fleet"]
    assert isinstance(fleet, dict) and fleet["candidate_version"] == 1
    judged = [each for entry in journal for each in entry.instructions if each["instruction"] == "judged"]
    assert [each["version"] for each in judged] == [1]


async def test_places_in_the_journal_are_never_used_twice() -> None:
    """A reign that ends while the lease is kept (the broker was away) is followed by one that counts on."""
    world = World()
    bus = FrozenBus(MemoryBus(world.broker))
    role = world.role(bus=bus)
    async with world.running(role):
        await leads(role)
        await world.server_reports()
        bus.fail_last = BusUnavailableError("the broker was away")
        await world.server_reports("node-b")

        async def again() -> bool:
            return sum(entry.event["event"] == "controller_started" for entry in await world.journal()) == 2

        await until(again)
    journal = await world.journal()
    assert len({entry.fencing_token for entry in journal}) == 1
    assert [entry.sequence for entry in journal] == list(range(1, len(journal) + 1))


@pytest.mark.parametrize(
    ("prefix", "error"),
    [
        ("tide.v1.operator.", BusSetupError("permission denied")),
        ("tide.v1.journal.", MessageTooLargeError("a journal entry", 2, 1)),
    ],
)
async def test_one_that_cannot_work_lets_another_lead(
    prefix: str, error: BusError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why and is not ready; once it can, it leads when the other is gone, and is well after a while of it."""
    monkeypatch.setattr(controller, "_WELL_AFTER_S", 0.3)
    world = World()
    bus = FrozenBus(MemoryBus(world.broker))
    bus.refused[prefix] = error
    async with world.running(world.role("first", bus=bus)) as first:

        async def gave_up() -> bool:
            return str(error) in first.health()["lease"] and not first.ready()

        await until(gave_up)
        async with world.running(world.role("second")) as second:
            await leads(second)
            token = second.snapshot()["fencing_token"]
            await asyncio.sleep(2.5)  # for longer than the first one stands back
            assert second.snapshot()["leading"] and second.snapshot()["fencing_token"] == token
            assert await gave_up()
            bus.refused.clear()
        await leads(first)
        assert await gave_up(), "not before it has led for a while"

        async def is_well() -> bool:
            return first.health()["lease"] == "ok" and first.ready()

        await until(is_well)


async def test_on_a_real_server(nats_server: NatsServer) -> None:
    """The same against JetStream: decide, stop, take over from journal and desired state, replay."""
    connections = [
        await JetStreamBus.connect(ConnectSettings(urls=(nats_server.url,), name=name), TOPOLOGY)
        for name in ("nodes", "first", "second")
    ]
    await connections[0].ensure()
    world = World(connections[0])
    try:
        async with world.running(world.role("first", connections[1])) as role:
            await leads(role)
            await world.server_reports()
            await world.publishes(1)

            async def in_canary() -> bool:
                server = await world.desired_server()
                return server is not None and server.draft_version == 1

            await until(in_canary)
        async with world.running(world.role("second", connections[2])) as role:
            await leads(role)

            async def rolled_out() -> bool:
                await world.server_reports(version=1)
                return role.snapshot().get("serving_version") == 1

            await until(rolled_out)
        entries = await world.journal()
        outcome = replay((entry.event, entry.instructions) for entry in entries)
        assert outcome.difference is None and outcome.num_compared == len(entries)
    finally:
        for connection in connections:
            await connection.close()
