"""A broker that comes back without what it held, while nodes remember tokens of a controller that led before."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.nats_fixture import NatsServer
from tests.unit.roles.test_controller import SETTINGS, TOPOLOGY, until
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.outbox import Outbox
from tide_daemon.bus.port import Bus
from tide_daemon.bus.reopening import ReopeningBus
from tide_daemon.engine.modelled import TINY_TARGET, ModelledEngine, ModelledSettings
from tide_daemon.errors import BusError
from tide_daemon.roles.controller import ControllerRole
from tide_daemon.roles.server import ServerRole, ServerSettings
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredServer, TargetSpec

MODEL = TINY_TARGET.model
CONTROL = subjects.control_server(MODEL, "n1")
Role = ControllerRole | ServerRole


def reopening(server: NatsServer, name: str) -> ReopeningBus:
    async def connect() -> JetStreamBus:
        settings = ConnectSettings((server.url,), name, first_connect_s=0.5, reconnect_wait_s=0.05)
        return await JetStreamBus.connect(settings, TOPOLOGY)

    async def prepare(bus: JetStreamBus) -> None:
        await bus.ensure()

    return ReopeningBus(TOPOLOGY, connect, prepare, told=lambda problem: None, min_wait_s=0.05, max_wait_s=0.2)


@asynccontextmanager
async def running(role: Role) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(role.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 10.0)


async def no_draft(spec: TargetSpec, version: int, digest: str) -> Path:
    raise AssertionError("nobody desires a draft here")


@pytest.mark.parametrize("comes_back", ["empty", "older"])
async def test_a_node_obeys_whoever_leads_afterwards(nats_server: NatsServer, tmp_path: Path, comes_back: str) -> None:
    """Tokens begin again, or are those of an older copy of the disk."""
    store, copy = nats_server.folder / "store", tmp_path / "copy"
    async with AsyncExitStack() as stack:
        buses = {name: await stack.enter_async_context(reopening(nats_server, name)) for name in ("n1", "c1")}
        engine = ModelledEngine(ModelledSettings(TINY_TARGET, "n1"))
        node = ServerRole(buses["n1"], engine, no_draft, ServerSettings("n1", report_interval_s=0.1))
        await stack.enter_async_context(running(node))

        async def obeys(above: int = 0, below: int = 1 << 62) -> bool:
            """Whether what stands on the bus is in force, and was written with a token between those."""
            try:
                message = await buses["n1"].last(CONTROL)
            except BusError:
                return False
            desired = None if message is None else envelope.decode(message.data)
            return (
                isinstance(desired, DesiredServer)
                and node._convergence.desired == desired
                and node._convergence.applied_generation == desired.generation
                and above < desired.fencing_token < below
            )

        async with running(leading(buses["c1"], "c1")):
            await until(obeys, 20.0)
        nats_server.stop()
        shutil.copytree(store, copy)
        nats_server.start()
        later = DesiredServer("n1", 9, 400_000, 0.0, 0, "", (), False, 0.0, "after many takeovers")
        async with Outbox(buses["n1"], max_wait_s=0.1) as outbox:
            await outbox.put(CONTROL, envelope.encode(later), "later")
            assert await outbox.flush(20.0)
        await until(lambda: obeys(above=1000), 20.0)
        nats_server.kill()
        shutil.rmtree(store)
        if comes_back == "older":
            shutil.copytree(copy, store)
        nats_server.start()
        async with running(leading(buses["c1"], "c1")):
            await until(lambda: obeys(below=1000), 20.0)


def leading(bus: Bus, name: str) -> ControllerRole:
    return ControllerRole(bus, SETTINGS, MODEL, name, lease_ttl_s=1, tick_s=0.05)
