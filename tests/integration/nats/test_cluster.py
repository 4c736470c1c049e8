"""Three brokers from ops/nats/cluster.conf: everything three times, and no acknowledged message lost with a leader."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nats_deployment import MODEL, Deployment
from tide_daemon import cli
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import BusUnavailableError
from tide_daemon.wire import subjects

NAMES = ("nats-a", "nats-b", "nats-c")
TOPOLOGY = build_topology(TopologyLimits(replicas=3))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Deployment]:
    cluster = Deployment(tmp_path, "cluster.conf", NAMES)
    cluster.start()
    yield cluster
    cluster.stop()


async def publish(bus: JetStreamBus, number: int) -> int:
    """As a controller does: again under the same id until it is acknowledged."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await bus.publish(subjects.journal(MODEL), b"%d" % number, message_id=str(number), timeout_s=2)
            except BusUnavailableError:
                await asyncio.sleep(0.2)


async def test_the_leader_of_a_stream_is_killed(cluster: Deployment) -> None:
    """Set up by `admin init`; with one of three gone writing goes on; what was acknowledged is there, once."""
    file = cluster.config_file("admin:a1", "")
    file.write_text(file.read_text().replace("[bus]\n", "[bus]\nreplicas = 3\n"))
    for _ in range(2):
        assert await asyncio.to_thread(cli.main, ["admin", "init", "--config", str(file)]) == 0
    bus = await JetStreamBus.connect(cluster.settings("controller:c1"), TOPOLOGY)
    try:
        info = await bus.connection.api("STREAM.INFO.TIDE_JOURNAL")
        assert info["config"]["num_replicas"] == 3
        sequences = [await publish(bus, number) for number in range(20)]
        cluster.kill(info["cluster"]["leader"])
        sequences += [await publish(bus, number) for number in range(20, 40)]
        assert sequences == list(range(1, 41))
        reader = bus.tail(subjects.journal(MODEL), since="all")
        async with asyncio.timeout(30):
            read = [(await anext(reader)).data for _ in range(40)]
        assert read == [b"%d" % number for number in range(40)]
    finally:
        await bus.close()
