"""The server role on the modelled engine: serving goes on whatever fails beside it."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.engine.modelled import TINY_TARGET, ModelledEngine, ModelledSettings, Traffic
from tide_daemon.engine.port import EngineStats
from tide_daemon.errors import BusFullError, DraftError
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.roles import server
from tide_daemon.roles.server import ServerRole, ServerSettings
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredServer, HiddenChunk, NodeReport, Record, StepStats, TargetSpec

MODEL = TINY_TARGET.model
SETTINGS = ServerSettings("n1", drain_interval_s=0.01, report_interval_s=0.05, flush_deadline_s=0.2)


class Clock:
    """Ten times as fast as ours, so that requests end soon."""

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() * 10


class WatchedEngine(ModelledEngine):
    """Counts its ends."""

    num_stops = 0

    async def stop(self, deadline_s: float) -> None:
        self.num_stops += 1
        await super().stop(deadline_s)


class SilentBus(MemoryBus):
    """A broker that nobody has reached yet: `reached` lets it through."""

    reached = False

    @property
    def max_payload(self) -> int:
        return super().max_payload if self.reached else 0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(1000):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("did not come true within 20 s")


async def no_draft(spec: TargetSpec, version: int, digest: str) -> Path:
    raise AssertionError("nobody desires a draft here")


@pytest.fixture
def bus() -> SilentBus:
    return SilentBus(MemoryBroker(build_topology(TopologyLimits())))


@pytest.fixture
def engine() -> WatchedEngine:
    settings = ModelledSettings(TINY_TARGET, "n1", traffic=lambda now: Traffic("chat", 2), response_tokens=8)
    return WatchedEngine(settings, Clock())


async def test_nothing_is_taken_before_a_broker_said_how_much_it_takes(bus: SilentBus, engine: WatchedEngine) -> None:
    """Rows stay in the engine; once the limit is known they are published."""
    stop = asyncio.Event()
    role = ServerRole(bus, engine, no_draft, SETTINGS)
    running = asyncio.create_task(role.run(stop))

    async def rows_are_there() -> bool:
        return (await engine.stats()).rows_written >= 50

    async def chunk_arrived() -> bool:
        message = await bus.last(subjects.hidden(MODEL, "n1"))
        return message is not None and isinstance(envelope.decode(message.data), HiddenChunk)

    await until(rows_are_there)
    assert not await chunk_arrived() and role.ready()
    bus.reached = True
    await until(chunk_arrived)
    stop.set()
    await asyncio.wait_for(running, 10)
    assert engine.num_stops == 1


async def test_what_was_taken_is_published_before_the_end(bus: SilentBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are out of the ring are nowhere else: a stop while the first of them is encoded loses none."""
    settings = ModelledSettings(TINY_TARGET, "n1", traffic=lambda now: Traffic("chat", 8), response_tokens=8)
    engine = WatchedEngine(settings, Clock())
    stop, encoded, taken = asyncio.Event(), envelope.encode, []
    encode_slowly = threading.Event()

    def encode(record: Record) -> bytes:
        if isinstance(record, HiddenChunk):
            encode_slowly.wait(1.0)
        return encoded(record)

    def take_chunks(max_bytes: int) -> list[HiddenChunk]:
        if taken or len(chunks := ModelledEngine.take_chunks(engine, max_bytes)) < 3:
            return []
        taken.extend(chunks)
        stop.set()
        return chunks

    monkeypatch.setattr(envelope, "encode", encode)
    monkeypatch.setattr(engine, "take_chunks", take_chunks)
    bus.reached = True
    role = ServerRole(bus, engine, no_draft, replace(SETTINGS, drain_interval_s=0.5, flush_deadline_s=20.0))
    running = asyncio.create_task(role.run(stop))
    await asyncio.wait_for(stop.wait(), 20)
    await asyncio.sleep(0.05)
    encode_slowly.set()
    await asyncio.wait_for(running, 20)
    published = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            async for _ in bus.tail(subjects.hidden(MODEL, "n1"), since="all"):
                published += 1
    assert published == len(taken) >= 3


async def test_a_failing_loop_is_run_again_and_ends_nothing(
    bus: SilentBus, engine: WatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that breaks the contract once is reported and shown; shipping is tried again."""
    monkeypatch.setattr(server, "_RETRY_S", 0.05)
    monkeypatch.setattr(server, "_CALM_S", 0.3)
    bus.reached = True
    failures = iter([RuntimeError("a bug"), RuntimeError("a bug")])
    take = engine.take_chunks

    def take_chunks(max_bytes: int) -> list[HiddenChunk]:
        for failure in failures:
            raise failure
        return take(max_bytes)

    monkeypatch.setattr(engine, "take_chunks", take_chunks)
    stop = asyncio.Event()
    role = ServerRole(bus, engine, no_draft, SETTINGS)
    running = asyncio.create_task(role.run(stop))

    async def failure_shows() -> bool:
        return role.health().get("ship") == "RuntimeError: a bug"

    async def well_again() -> bool:
        return await bus.last(subjects.hidden(MODEL, "n1")) is not None and "ship" not in role.health()

    await until(failure_shows)
    await until(well_again)
    assert engine.num_stops == 0 and not running.done()
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_desired_state_is_followed_and_bad_bytes_are_reported(bus: SilentBus, engine: WatchedEngine) -> None:
    """Bytes that are no message are refused in words; the next desired state is reached."""
    bus.reached = True
    subject = subjects.control_server(MODEL, "n1")
    await bus.publish(subject, b"\x00 not a message")
    stop = asyncio.Event()
    role = ServerRole(bus, engine, no_draft, SETTINGS)
    running = asyncio.create_task(role.run(stop))
    desired = DesiredServer("n1", 3, 1, 0.0, 0, "", (), False, 0.5, "a test")
    async with asyncio.timeout(20):
        refused = False
        async for message in bus.tail(subjects.report(MODEL, "n1", "server"), since="all"):
            report = envelope.decode(message.data)
            if not refused and any("desired state was refused" in problem for problem in report.problems):
                refused = True
                await bus.publish(subject, envelope.encode(desired))
            if report.applied_generation == 3:
                break
        assert refused and not (await engine.stats()).collecting
        stop.set()
        await running


async def test_the_target_is_shared_once_and_trying_goes_on_until_then(
    bus: SilentBus, engine: WatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full stream shows in health and is tried again; after a success nothing is read any more."""
    monkeypatch.setattr(server, "_SHARE_RETRY_S", 0.02)
    shared: list[TargetSpec] = []
    full = True

    async def share(spec: TargetSpec) -> None:
        if full:
            raise BusFullError("TIDE_TARGET is full")
        shared.append(spec)

    stop = asyncio.Event()
    role = ServerRole(bus, engine, no_draft, SETTINGS, share_target=share)
    running = asyncio.create_task(role.run(stop))

    async def shows() -> bool:
        return "full" in role.health().get("target_rows", "")

    async def is_shared() -> bool:
        return bool(shared) and "target_rows" not in role.health()

    await until(shows)
    full = False
    await until(is_shared)
    await asyncio.sleep(0.2)
    stop.set()
    await asyncio.wait_for(running, 10)
    assert shared == [TINY_TARGET]


def losing_report(sequence: int, num_steps: int) -> NodeReport:
    """A second at batch 8: a step of 70 ms, with drafts of which none is accepted it takes 110."""
    step_s = 0.11 if num_steps else 0.07
    step = StepStats(8, num_steps, 10, 80, (0,) * num_steps, 10 * step_s, 0.7, step_s)
    digest = f"{1:064x}"
    return NodeReport("n1", 0.0, sequence, "ready", 1, digest, 1, 8, 1.0, (step,), True, 0, 0, 0, 0, 0, 1, 1)


def test_out_of_reach_steps_that_lose_are_given_up(bus: SilentBus, engine: WatchedEngine) -> None:
    """The broker is away and the node's own figures say that speculation loses: plain, until it is back."""
    role = ServerRole(bus, engine, no_draft, SETTINGS, PolicySettings(max_batch_size=8, alone_after_s=0.0))
    role._convergence.offer(DesiredServer("n1", 1, 1, 0.0, 1, f"{1:064x}", ((8, 3),), True, 1.0, "a test"))
    for sequence in range(10):
        role._look_after_steps(losing_report(sequence, 0))
    assert role._convergence.steps_instead is None
    bus._broker.down = True
    for sequence in range(10, 20):
        role._look_after_steps(losing_report(sequence, 3))
    assert role._convergence.steps_instead == ()


async def test_with_a_broker_but_nobody_who_leads_too(bus: SilentBus, engine: WatchedEngine) -> None:
    """The broker answers, the leader is gone: the node is on its own; the next leader's word counts again."""
    role = ServerRole(bus, engine, no_draft, SETTINGS, PolicySettings(max_batch_size=8, alone_after_s=0.2))
    role._convergence.offer(DesiredServer("n1", 1, 1, 0.0, 1, f"{1:064x}", ((8, 3),), True, 1.0, "a test"))
    bus.reached = True
    lease = bus.lease(f"controller-{MODEL}", "first", 5)
    assert await lease.acquire() is not None
    looking = asyncio.create_task(role._leadership.watch(MODEL, 0.05))
    for sequence in range(20):
        role._look_after_steps(losing_report(sequence, 0 if sequence < 10 else 3))
    await asyncio.sleep(0.4)
    role._look_after_steps(losing_report(20, 3))
    assert role._convergence.steps_instead is None, "somebody leads"
    await lease.release()
    await asyncio.sleep(0.4)
    role._look_after_steps(losing_report(21, 3))
    assert role._convergence.steps_instead == ()
    assert await bus.lease(f"controller-{MODEL}", "second", 5).acquire() is not None
    await asyncio.sleep(0.2)
    role._look_after_steps(losing_report(22, 3))
    assert role._convergence.steps_instead is None
    looking.cancel()


async def test_a_draft_that_cannot_be_had_is_reported(bus: SilentBus, engine: WatchedEngine) -> None:
    """With its name, how often it was tried, and why."""

    async def missing(spec: TargetSpec, version: int, digest: str) -> Path:
        raise DraftError(f"draft {version} is not on the bus")

    bus.reached = True
    digest = f"{8:064x}"
    desired = DesiredServer("n1", 1, 1, 0.0, 8, digest, (), False, 0.5, "a test")
    await bus.publish(subjects.control_server(MODEL, "n1"), envelope.encode(desired))
    stop = asyncio.Event()
    running = asyncio.create_task(ServerRole(bus, engine, missing, SETTINGS).run(stop))
    async with asyncio.timeout(20):
        async for message in bus.tail(subjects.report(MODEL, "n1", "server"), since="all"):
            failure = envelope.decode(message.data).draft_failure
            if failure is not None and failure.num_tries >= 3:
                break
        assert (failure.version, failure.digest, failure.reason) == (8, digest, "draft 8 is not on the bus")
        stop.set()
        await running


async def test_what_a_silent_engine_counted_is_left_out(bus: SilentBus) -> None:
    """Shown as 0 and then as before, it would be counted again as an increase."""

    class Mute(WatchedEngine):
        silent = False

        async def stats(self) -> EngineStats:
            stats = await super().stats()
            return replace(stats, state="down", epoch=0, rows_written=0) if self.silent else stats

    settings = ModelledSettings(TINY_TARGET, "n1", traffic=lambda now: Traffic("chat", 2), response_tokens=8)
    engine = Mute(settings, Clock())
    role = ServerRole(bus, engine, no_draft, SETTINGS)
    counted = {"rows_written", "rows_dropped", "requests_opted_out", "num_swaps"}
    assert not counted & role.snapshot().keys()
    bus.reached = True
    stop = asyncio.Event()
    running = asyncio.create_task(role.run(stop))

    async def shown() -> bool:
        return counted <= role.snapshot().keys()

    async def left_out() -> bool:
        return not counted & role.snapshot().keys() and role.snapshot()["engine"] == "down"

    await until(shown)
    engine.silent = True
    await until(left_out)
    engine.silent = False
    await until(shown)
    stop.set()
    await running


async def test_a_broker_that_lost_its_disk_is_obeyed_again(bus: SilentBus, engine: WatchedEngine) -> None:
    """Tokens and generations begin again there, below what the node has seen; within that life they grow as before."""
    bus.reached = True
    subject = subjects.control_server(MODEL, "n1")

    async def ask(generation: int, token: int) -> None:
        desired = DesiredServer("n1", generation, token, 0.0, 0, "", (), False, 0.5, "a test")
        await bus.publish(subject, envelope.encode(desired))

    stop = asyncio.Event()
    role = ServerRole(bus, engine, no_draft, SETTINGS)
    running = asyncio.create_task(role.run(stop))

    async def obeys(generation: int) -> bool:
        return role._convergence.applied_generation == generation

    await ask(7, 400_000)
    await until(lambda: obeys(7))
    bus._broker.lose_disk()
    await bus.publish(subjects.control_server(MODEL, "n0"), b"another node is asked first")
    await ask(2, 3)
    await until(lambda: obeys(2))
    await ask(9, 2)

    async def refused() -> bool:
        return role._convergence._refused == 1

    await until(refused)
    await ask(3, 3)
    await until(lambda: obeys(3))
    stop.set()
    await asyncio.wait_for(running, 10)
