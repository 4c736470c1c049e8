"""What the contract suite runs against: a pretended broker, a real one, a real one through connections made anew."""

import shutil
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import pytest

from tests.nats_fixture import NatsServer
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.port import Bus
from tide_daemon.bus.reopening import ReopeningBus
from tide_daemon.bus.topology import MIB, Topology, TopologyLimits, build_topology

ACK_WAIT_S = 1.0
MAX_DELIVER = 3
TOPOLOGY = build_topology(
    TopologyLimits(
        ack_wait_s=ACK_WAIT_S,
        max_deliver=MAX_DELIVER,
        max_ack_pending=8,
        hidden_max_bytes=2 * MIB,
        draft_max_bytes=MIB,
        duplicate_window_s=2.0,
    )
)


class Broker(Protocol):
    """A broker with the test topology in place."""

    topology: Topology

    async def bus(self) -> Bus:
        """A new connection."""
        ...

    def take_away(self) -> None:
        """Nobody can reach the broker any more."""
        ...

    def bring_back(self) -> None:
        """With all that it had stored."""
        ...

    async def lose_disk(self) -> None:
        """It was away, and comes back with streams made anew."""
        ...


class RealBroker:
    topology = TOPOLOGY

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self.buses: list[Bus] = []

    async def bus(self) -> Bus:
        bus = await self.connected()
        self.buses.append(bus)
        return bus

    async def connected(self) -> JetStreamBus:
        settings = ConnectSettings(urls=(self._server.url,), name="test", reconnect_wait_s=0.05)
        return await JetStreamBus.connect(settings, self.topology)

    def take_away(self) -> None:
        self._server.kill()

    def bring_back(self) -> None:
        self._server.start()

    async def lose_disk(self) -> None:
        self.take_away()
        shutil.rmtree(self._server.folder / "store")
        self.bring_back()
        setup = await self.connected()
        self.buses.append(setup)
        await setup.ensure()


class ReopeningBroker(RealBroker):
    async def prepare(self, bus: JetStreamBus) -> None:
        """What the tests of the suite do to streams shall last: they are not made anew."""

    async def bus(self) -> Bus:
        bus = ReopeningBus(
            self.topology, self.connected, self.prepare, first=await self.connected(), told=lambda problem: None
        )
        self.buses.append(await bus.__aenter__())
        await bus.opened()
        return bus


class PretendedBroker:
    topology = TOPOLOGY

    def __init__(self) -> None:
        self._broker = MemoryBroker(self.topology)
        self.buses: list[Bus] = []

    async def bus(self) -> MemoryBus:
        bus = MemoryBus(self._broker)
        self.buses.append(bus)
        return bus

    def take_away(self) -> None:
        self._broker.down = True

    def bring_back(self) -> None:
        self._broker.down = False

    async def lose_disk(self) -> None:
        self._broker.lose_disk()


@pytest.fixture(params=["memory", "jetstream", "reopening"])
async def broker(
    request: pytest.FixtureRequest, make_nats_server: Callable[..., NatsServer]
) -> AsyncIterator[RealBroker | PretendedBroker]:
    """The same suite on the twin and on a real server."""
    made: RealBroker | PretendedBroker
    if request.param == "memory":
        made = PretendedBroker()
    else:
        made = (RealBroker if request.param == "jetstream" else ReopeningBroker)(make_nats_server())
        setup = await made.connected()
        await setup.ensure()
        made.buses.append(setup)
    yield made
    for bus in made.buses:
        await bus.close()


@pytest.fixture
async def bus(broker: Broker) -> Bus:
    """One connection to the broker."""
    return await broker.bus()
