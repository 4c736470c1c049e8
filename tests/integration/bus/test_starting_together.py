import asyncio
from pathlib import Path

from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology


async def test_daemons_that_start_together_on_an_empty_broker(tmp_path: Path) -> None:
    """All create the same streams at once; for a moment the server counts a stream once for each of them."""
    topology = build_topology(TopologyLimits())
    for attempt in range(6):
        settings = EmbeddedSettings(tmp_path / str(attempt), topology.max_bytes)
        server = EmbeddedServer(settings)
        await server.start()
        buses: list[JetStreamBus] = []
        try:
            for number in range(8):
                connect = ConnectSettings((server.url,), f"daemon-{number}")
                buses.append(await JetStreamBus.connect(connect, topology))
            await asyncio.gather(*(bus.ensure() for bus in buses))
            assert await buses[0].ensure() == [], "nothing is left to be made"
        finally:
            for bus in buses:
                await bus.close()
            await server.stop()
