"""A bus that is there before its broker, and after its connection was closed for good."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.integration.bus.conftest import TOPOLOGY
from tests.integration.bus.test_pitfalls import HIDDEN, JOURNAL, until
from tests.nats_fixture import NatsServer
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.outbox import Outbox
from tide_daemon.bus.reopening import ReopeningBus
from tide_daemon.bus.topology import TRAINERS
from tide_daemon.errors import BusClosedError, BusUnavailableError

Reopen = Callable[..., Awaitable[ReopeningBus]]


@pytest.fixture
async def reopening() -> AsyncIterator[Reopen]:
    """Makes an opened ReopeningBus to a server; `told` collects what it tells."""
    entered: list[ReopeningBus] = []

    async def make(server: NatsServer, told: list[str] | None = None) -> ReopeningBus:
        async def connect() -> JetStreamBus:
            settings = ConnectSettings((server.url,), "test", first_connect_s=0.5, reconnect_wait_s=0.05)
            return await JetStreamBus.connect(settings, TOPOLOGY)

        async def prepare(bus: JetStreamBus) -> None:
            await bus.ensure()

        heard = told if told is not None else []
        bus = ReopeningBus(TOPOLOGY, connect, prepare, told=heard.append, min_wait_s=0.05, max_wait_s=0.2)
        entered.append(await bus.__aenter__())
        return bus

    yield make
    for bus in entered:
        await bus.close()


async def close_for_good(bus: ReopeningBus) -> None:
    """What nats-py does by itself after an error line from the server."""
    await (await bus.opened()).connection.client.close()


async def test_it_is_there_before_the_broker(nats_server: NatsServer, reopening: Reopen) -> None:
    """Operations wait within their limit and say why; readers, pullers and publishers go on once it is up."""
    nats_server.kill()
    told: list[str] = []
    bus = await reopening(nats_server, told)
    assert (bus.connected, bus.max_payload) == (False, 0) and bus.problem
    with pytest.raises(BusUnavailableError, match=r"waited for 0\.1 s"):
        await bus.publish(HIDDEN, b"early", timeout_s=0.1)
    puller = await bus.puller(TRAINERS)
    assert await puller.fetch(1, 1 << 20, 0.1) == []
    reader = asyncio.ensure_future(anext(bus.tail(JOURNAL, since="all")))
    async with Outbox(bus, max_wait_s=0.1) as outbox:
        await outbox.put(JOURNAL, b"decision", "id-1")
        await outbox.put(HIDDEN, b"chunk", "id-2")
        await until(lambda: bool(told))
        assert nats_server.url in told[0] and "0.5 s" in told[0]
        nats_server.start()
        assert (await asyncio.wait_for(reader, 10)).data == b"decision"
        assert await outbox.flush(10)
    assert [delivery.message.data for delivery in await puller.fetch(8, 1 << 20, 5)] == [b"chunk"]
    assert bus.connected and bus.max_payload > 0 and bus.problem == ""
    assert told[-1] == "" and len(told) <= 3, told


async def test_a_connection_closed_for_good_is_made_anew(nats_server: NatsServer, reopening: Reopen) -> None:
    """Readers see every message once, in order; what was fetched and not acknowledged comes again; the lease holds."""
    told: list[str] = []
    bus = await reopening(nats_server, told)
    lease = bus.lease("controller-m", "me", 30)
    token = await lease.acquire()
    await bus.publish(HIDDEN, b"chunk")
    puller = await bus.puller(TRAINERS)
    (first,) = await puller.fetch(1, 1 << 20, 5)
    seen: list[bytes] = []

    async def read() -> None:
        async for message in bus.tail(JOURNAL, since="new"):
            seen.append(message.data)

    reading = asyncio.ensure_future(read())
    async with Outbox(bus, max_wait_s=0.1) as outbox:
        await asyncio.sleep(0.2)
        for number in range(6):
            await outbox.put(JOURNAL, b"%d" % number, f"id-{number}")
            await until(lambda number=number: len(seen) > number)  # type: ignore[misc]
            if number % 2:
                await close_for_good(bus)
        assert await outbox.flush(5)
    assert seen == [b"0", b"1", b"2", b"3", b"4", b"5"]
    with pytest.raises(BusClosedError):
        await first.ack()
    (again,) = await puller.fetch(1, 1 << 20, 10)
    assert again.message.data == b"chunk" and again.num_delivered > 1
    await again.ack()
    assert await lease.acquire() == token
    assert any(told[1:-1]) and told[-1] == ""
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_new_messages_during_the_gap_are_read(nats_server: NatsServer, reopening: Reopen) -> None:
    """A reader of new messages that has seen none yet misses none of those stored between two connections."""
    bus, other = await reopening(nats_server), await reopening(nats_server)
    await bus.opened()
    reader = asyncio.ensure_future(anext(bus.tail(JOURNAL)))
    await asyncio.sleep(0.5)
    closing = asyncio.ensure_future(close_for_good(bus))
    await other.publish(JOURNAL, b"in the gap")
    await closing
    assert (await asyncio.wait_for(reader, 10)).data == b"in the gap"


async def test_a_broker_that_lost_its_disk_is_set_up_again(nats_server: NatsServer, reopening: Reopen) -> None:
    """Streams are made anew after a reconnect, and messages flow again."""
    bus = await reopening(nats_server)
    await bus.publish(JOURNAL, b"before")
    nats_server.kill()
    shutil.rmtree(nats_server.folder / "store")
    nats_server.start()

    async with Outbox(bus, max_wait_s=0.1) as outbox:
        await outbox.put(JOURNAL, b"after", "id-1")
        assert await outbox.flush(20)
    await until(lambda: bus.connected)
    assert (await anext(bus.tail(JOURNAL, since="all"))).data == b"after"


async def test_what_is_wrong_with_the_broker_is_said(
    make_nats_server: Callable[..., NatsServer], reopening: Reopen
) -> None:
    """A user without rights, for one; set right, the bus works without a restart of ours."""
    users = "authorization { users: [ { user: u, password: p } ] }"
    server = make_nats_server(extra_config=users)
    bus = await reopening(server)
    await until(lambda: "refuses us" in bus.problem)
    server.stop()
    server.extra_config = ""
    server.start()
    await bus.publish(JOURNAL, b"x", timeout_s=10)
    assert bus.problem == ""


async def test_closed_by_us_wakes_everybody(nats_server: NatsServer, reopening: Reopen) -> None:
    """Whoever waits, with a broker or without, gets BusClosedError."""
    nats_server.kill()
    bus = await reopening(nats_server)
    waiting = [
        asyncio.ensure_future(bus.publish(JOURNAL, b"x", timeout_s=30)),
        asyncio.ensure_future(anext(bus.tail(JOURNAL))),
        asyncio.ensure_future((await bus.puller(TRAINERS)).fetch(1, 1, 30)),
    ]
    closed = asyncio.ensure_future(bus.wait_closed())
    await asyncio.sleep(0.1)
    await bus.close()
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert [type(result) for result in results] == [BusClosedError] * 3
    assert await closed == "closed by us"
