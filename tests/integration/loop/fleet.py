"""The three roles in one process on one real broker, each with its own connection; the engine is a modelled one."""

import asyncio
import functools
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests import trainer_samples
from tests.schema_check import assert_valid
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.reopening import ReopeningBus
from tide_daemon.bus.topology import Topology, TopologyLimits, build_topology
from tide_daemon.engine.modelled import ModelledEngine, ModelledSettings, Traffic
from tide_daemon.engine.port import DraftState
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.roles.controller import ControllerRole
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.roles.port import Role
from tide_daemon.roles.server import ServerRole, ServerSettings
from tide_daemon.roles.trainer import TrainerRole
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire.records import HiddenChunk, Record

MODEL = trainer_samples.SPEC.model
TOPOLOGY: Topology = build_topology(TopologyLimits(ack_wait_s=5.0))
POLICY = PolicySettings(
    max_steps=3,
    train_first_tokens=1500,
    train_min_tokens=4000,
    gate_min_requests=8,
    gate_min_positions=100,
    min_proposals=20,
    watch_min_steps=40,
    watch_s=1.0,
    settle_s=0.5,
    probe_interval_s=0.5,
)
TRAINER = TrainerSettings(
    name="t1",
    model=MODEL,
    draft_vocab_size=96,
    round_min_tokens=100,
    round_max_tokens=10_000,
    batch_tokens=512,
    heldout_share=0.2,
    learning_rate=3e-3,
    nice=0,
    report_interval_s=0.2,
    shadow_interval_s=1.0,
    segment_bytes=1 << 20,
)


class LearnableEngine(ModelledEngine):
    """A modelled engine whose finished requests hold what a draft can learn, in place of random rows."""

    def __init__(self, settings: ModelledSettings) -> None:
        super().__init__(settings)
        self._numbers = itertools.count()
        self.swapped: list[int] = []

    async def swap(self, checkpoint_dir: str, state: DraftState) -> DraftState:
        self.swapped.append(state.version)
        return await super().swap(checkpoint_dir, state)

    def take_chunks(self, max_bytes: int) -> list[HiddenChunk]:
        finished = [chunk for chunk in super().take_chunks(max_bytes) if chunk.last]
        started = time.time()
        return [
            chunk
            for _ in finished
            for chunk in trainer_samples.chunks(next(self._numbers), captured_at=started, node="s1")
        ]


def modelled_engine() -> LearnableEngine:
    """Eight requests at a time; speculation pays as soon as a draft is accepted."""
    return LearnableEngine(
        ModelledSettings(
            trainer_samples.SPEC,
            "s1",
            traffic=lambda now: Traffic("code", 8),
            step_s=lambda batch, steps: 0.01 * (1 + 0.05 * steps),
            accept_prob=lambda version, workload: 0.6,
            response_tokens=trainer_samples.RESPONSE,
            max_steps=POLICY.max_steps,
            topk=2,
        )
    )


class Fleet:
    """Server s1, trainer t1 and controller c1 on one broker."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._stop = asyncio.Event()
        self._buses: list[ReopeningBus] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.engine = modelled_engine()
        self.problems: list[str] = []

    def settings(self, role: str) -> ConnectSettings:
        """How a role connects; "" for the test itself."""
        return ConnectSettings((self._url,), "test", reconnect_wait_s=0.1, first_connect_s=2.0)

    async def prepare(self, bus: JetStreamBus) -> None:
        """What is done with streams and consumers on each connection."""
        await bus.ensure()

    async def bus(self, role: str = "") -> ReopeningBus:
        """A new connection."""
        settings, prepare = self.settings(role), self.prepare
        connect = functools.partial(JetStreamBus.connect, settings, TOPOLOGY)
        bus = await ReopeningBus(TOPOLOGY, connect, prepare, told=self.problems.append).__aenter__()
        self._buses.append(bus)
        return bus

    async def start(self) -> None:
        target = trainer_samples.write_target(self._folder / "target")
        trainer = TrainerSettings(**{**_fields(TRAINER), "target_path": str(target)})
        bus = await self.bus("server")
        fetcher = DraftFetcher(bus, self._folder / "drafts")
        self.server = ServerRole(bus, self.engine, fetcher.fetch, ServerSettings("s1", report_interval_s=0.2))
        self.trainer = TrainerRole(await self.bus("trainer"), trainer, self._folder / "trainer")
        self.controller = ControllerRole(await self.bus("controller"), POLICY, MODEL, "c1", lease_ttl_s=6, tick_s=0.2)
        roles: dict[str, Role] = {"server": self.server, "trainer": self.trainer, "controller": self.controller}
        self._tasks = [asyncio.create_task(role.run(self._stop), name=name) for name, role in roles.items()]

    async def drain(self) -> None:
        """Have every role finish what it began; raises what one of them raised."""
        self._stop.set()
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """End whatever still runs, then the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for bus in self._buses:
            await bus.close()

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str, limit_s: float = 150.0) -> None:
        """Return when the condition holds; a role that ended by itself fails the test at once."""
        give_up_at = asyncio.get_running_loop().time() + limit_s
        while not await condition():
            for task in self._tasks:
                if task.done():
                    raise AssertionError(f"{task.get_name()} ended") from task.exception()
            if asyncio.get_running_loop().time() > give_up_at:
                shown = {role: dict(getattr(self, role).snapshot()) for role in ("server", "trainer", "controller")}
                raise AssertionError(f"{what}: not within {limit_s} s: {shown}")
            await asyncio.sleep(0.1)


async def everything_on(bus: ReopeningBus) -> list[tuple[str, Record]]:
    """(subject, record) of every message that our streams hold; each is held to its published schema.

    To be called when nothing is published any more.
    """
    found: list[tuple[str, Record]] = []
    for stream in TOPOLOGY.streams:
        if not stream.name.startswith("TIDE_") or stream.name == "TIDE_DEAD":
            continue
        messages = bus.tail(stream.subjects[0], since="all")
        try:
            while True:
                message = await asyncio.wait_for(anext(messages), 1.0)
                found.append((message.subject, assert_valid(message.data)))
        except TimeoutError:
            continue
    return found


def _fields(settings: TrainerSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in TrainerSettings.__slots__}
