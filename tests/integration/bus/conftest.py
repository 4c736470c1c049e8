"""Connections to real servers for the pitfalls."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.nats_fixture import NatsServer
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import MIB, Topology, TopologyLimits, build_topology

TOPOLOGY = build_topology(TopologyLimits(draft_max_bytes=MIB, ack_wait_s=2.0))
Connect = Callable[..., Awaitable[JetStreamBus]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects to a server with test settings; closes everything after the test."""
    made: list[JetStreamBus] = []

    async def connect(server: NatsServer, topology: Topology = TOPOLOGY, **settings: object) -> JetStreamBus:
        values: dict[str, object] = {"urls": (server.url,), "name": "test", "reconnect_wait_s": 0.05, **settings}
        bus = await JetStreamBus.connect(ConnectSettings(**values), topology)  # type: ignore[arg-type]
        made.append(bus)
        return bus

    yield connect
    for bus in made:
        await bus.close()
