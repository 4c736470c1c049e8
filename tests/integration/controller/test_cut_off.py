"""A leader that is cut off from a real broker with its writes under way, which arrive when its successor leads."""

import asyncio
import time

from tests.integration.controller.relay import Relay
from tests.nats_fixture import NatsServer
from tests.unit.roles.test_controller import MODEL, SETTINGS, TOPOLOGY, World, leads, until
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.policy.replay import replay
from tide_daemon.roles.controller import ControllerRole

LEASE_S = 2


async def test_late_writes_of_a_leader_that_was_cut_off_are_refused(nats_server: NatsServer) -> None:
    """It hears everything and its entries wait in the network. The other leads within three lease periods; what arrives
    late changes neither journal nor desired state, and each version is judged once."""
    relay = Relay(nats_server.port)
    urls = {"nodes": nats_server.url, "first": await relay.start(), "second": nats_server.url}
    buses = {name: await JetStreamBus.connect(ConnectSettings((url,), name), TOPOLOGY) for name, url in urls.items()}
    await buses["nodes"].ensure()
    world = World(buses["nodes"])
    first, second = (
        ControllerRole(buses[name], SETTINGS, MODEL, name, lease_ttl_s=LEASE_S, tick_s=0.1)
        for name in ("first", "second")
    )
    try:
        async with world.running(first):
            await leads(first)
            await world.server_reports()

            async def asked() -> bool:
                return await world.desired_server() is not None

            await until(asked)
            async with world.running(second):
                relay.hold()
                held_at = time.monotonic()
                await world.publishes(1)
                async with asyncio.timeout(20):
                    while not second.snapshot()["leading"]:  # noqa: ASYNC110  # what is waited for is a snapshot
                        await asyncio.sleep(0.02)
                assert time.monotonic() - held_at <= 3 * LEASE_S
                await world.server_reports()

                async def canary() -> bool:
                    server = await world.desired_server()
                    return server is not None and server.draft_version == 1

                await until(canary)
                theirs = await world.desired_server()
                assert relay.num_kept_bytes > 0
                relay.release()
                await asyncio.sleep(1.0)
                assert not first.snapshot()["leading"] and second.snapshot()["leading"]
                assert await world.desired_server() == theirs
        journal = await world.journal()
        tokens = [entry.fencing_token for entry in journal]
        assert tokens == sorted(tokens)
        judged = [item for entry in journal for item in entry.instructions if item["instruction"] == "judged"]
        assert [item["version"] for item in judged] == [1]
        outcome = replay((entry.event, entry.instructions) for entry in journal)
        assert outcome.difference is None and outcome.num_compared == len(journal)
    finally:
        relay.release()
        for bus in buses.values():
            await bus.close()
        await relay.close()
