"""Everything that a run of the phases needs, started and stopped together.

A private nats-server, the three roles, and a second SGLang to compare with. `ops/demo` and
`ops/bench shift-real` both play on it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import structlog

from demo_run.baseline import Baseline
from demo_run.processes import Child, Children
from demo_run.stack import (
    AUX_LAYERS,
    DRAFT_VOCAB_SIZE,
    MODEL,
    SERVER_ARGUMENTS,
    Stack,
    start_roles,
    wait_until_ready,
)
from demo_run.waiting import READY_TIMEOUT_S
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.port import Bus
from tide_daemon.bus.topology import TopologyLimits, build_topology

Waiting = Callable[[str], AbstractContextManager[object]]
"""Shows a sentence while something takes long."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is running in the folder `state`: the system and its processes, the server to compare with, our connections.

    `nats` is the broker, `roles` the daemons by role.
    """

    state: Path
    system: Stack
    nats: EmbeddedServer
    roles: Mapping[str, Child]
    baseline: Baseline
    bus: Bus
    session: aiohttp.ClientSession


@asynccontextmanager
async def set_up(
    state: Path, model_dir: Path, say: Callable[[str], None], waiting: Waiting = nullcontext
) -> AsyncIterator[Stage]:
    """Start all of it in the folder `state`; stopped again at the end, whatever happens in between.

    Raises:
        StartError: something ended or did not become ready in time.
    """
    log_to_file(state / "log" / "demo.log")
    async with AsyncExitStack() as stack:
        topology = build_topology(TopologyLimits())
        nats = EmbeddedServer(EmbeddedSettings(state / "nats", max_store_bytes=topology.max_bytes))
        await nats.start()
        stack.push_async_callback(nats.stop)
        say(f"nats-server at {nats.url}; starting the three roles and a plain SGLang to compare with")
        children = Children(state / "log")
        stack.push_async_callback(asyncio.to_thread, children.stop)
        system, roles = await start_roles(children, state, model_dir, nats.url, SERVER_ARGUMENTS)
        baseline = Baseline(MODEL, model_dir, state / "baseline", SERVER_ARGUMENTS, AUX_LAYERS, DRAFT_VOCAB_SIZE)
        stack.push_async_callback(baseline.stop)
        await baseline.start()
        with waiting("SGLang loads its model (this takes a minute on two cores) ..."):
            for role, child in roles.items():
                await wait_until_ready(child, f"{system.status_urls[role]}/readyz", READY_TIMEOUT_S)
            await baseline.wait_until_ready(READY_TIMEOUT_S)
        bus = await JetStreamBus.connect(ConnectSettings((nats.url,), "demo"), topology)
        stack.push_async_callback(bus.close)
        # Not before all are ready: what ends at once would be started for ever, and never said.
        stack.push_async_callback(_end, asyncio.create_task(children.keep_alive(say)))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300), connector=aiohttp.TCPConnector(limit=0))
        )
        yield Stage(state, system, nats, roles, baseline, bus, session)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def log_to_file(path: Path) -> None:
    """Keep what our own use of tide_daemon logs off the screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structlog.configure(
        processors=[structlog.processors.TimeStamper(fmt="iso"), structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(path.open("a")),
    )
