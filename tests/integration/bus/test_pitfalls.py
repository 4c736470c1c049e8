"""Each pitfall of JetStream and nats-py that applies to us, against a real nats-server."""

import asyncio
import json
import socket
import time
from collections.abc import Callable

import pytest

from tests.integration.bus.conftest import Connect
from tests.nats_fixture import NatsServer, nats_server_binary
from tide_daemon.bus.connection import HEADROOM_BYTES, Connection
from tide_daemon.bus.outbox import Outbox
from tide_daemon.bus.topology import MIB, TRAINERS
from tide_daemon.errors import (
    BusError,
    BusFullError,
    BusSetupError,
    BusUnavailableError,
    MessageTooLargeError,
)

HIDDEN = "tide.v1.hidden.m.n1"
CONTROL = "tide.v1.control.m.server.n1"
JOURNAL = "tide.v1.journal.m"

USERS = """
accounts {
  TIDE {
    jetstream: enabled
    users: [
      { user: admin, password: a }
      { user: server, password: s, permissions {
          publish: { allow: ["tide.v1.hidden.>", "$JS.API.DIRECT.GET.>", "$JS.API.STREAM.INFO.*"] }
          subscribe: { allow: ["_INBOX_server.>"] }
      } }
    ]
  }
}
"""


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    for _ in range(int(within_s / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"did not come true within {within_s} s")


def as_user(server: NatsServer, user: str, password: str) -> tuple[str, ...]:
    return (server.url.replace("//", f"//{user}:{password}@"),)


class TestPayload:
    async def test_largest_payload_with_headers_does_not_close_the_connection(
        self, nats_server: NatsServer, connect: Connect
    ) -> None:
        """Pitfall 1: headers count too; our head-room keeps the connection alive, and one more byte is refused."""
        bus = await connect(nats_server)
        await bus.ensure()
        assert bus.max_payload == nats_server.max_payload - HEADROOM_BYTES
        await bus.publish(HIDDEN, b"x" * bus.max_payload, message_id="i" * 1000)
        with pytest.raises(MessageTooLargeError):
            await bus.publish(HIDDEN, b"x" * (bus.max_payload + 1))
        with pytest.raises(BusError, match="headers"):
            await bus.publish(HIDDEN, b"x", message_id="i" * HEADROOM_BYTES)
        assert bus.connected

    async def test_smaller_limit_after_a_restart_is_respected(self, nats_server: NatsServer, connect: Connect) -> None:
        """max_payload is read again after each reconnect."""
        bus = await connect(nats_server)
        await bus.ensure()
        nats_server.max_payload = 256 * 1024
        nats_server.stop()
        await until(lambda: not bus.connected)
        nats_server.start()
        await bus.publish(HIDDEN, b"x", timeout_s=10)
        assert bus.max_payload == 256 * 1024 - HEADROOM_BYTES
        with pytest.raises(MessageTooLargeError):
            await bus.publish(HIDDEN, b"x" * 256 * 1024)
        await bus.publish(HIDDEN, b"x" * bus.max_payload)

    async def test_larger_limit_is_capped(self, make_nats_server: Callable[..., NatsServer], connect: Connect) -> None:
        """Pitfall 7: JetStream discourages messages over 8 MiB whatever the server allows."""
        bus = await connect(make_nats_server(max_payload=32 * MIB))
        await bus.ensure()
        assert bus.max_payload == 8 * MIB - HEADROOM_BYTES
        await bus.publish(HIDDEN, b"x" * bus.max_payload)

    async def test_closed_by_the_library_is_told(self, nats_server: NatsServer, connect: Connect) -> None:
        """When nats-py closes for good, wait_closed() returns and what waits fails with the reason."""
        bus = await connect(nats_server)
        await bus.ensure()
        closed = asyncio.ensure_future(bus.wait_closed())
        await bus.connection.client.close()
        assert await asyncio.wait_for(closed, 5)
        assert not bus.connected
        with pytest.raises(BusError, match="closed"):
            await bus.publish(HIDDEN, b"x")


class TestCrash:
    async def test_killed_while_publishing_stores_each_message_once(
        self, nats_server: NatsServer, connect: Connect
    ) -> None:
        """Pitfall 2: kill -9 of the server under load, until publishes were hit: nothing lost, nothing twice."""
        bus = await connect(nats_server)
        await bus.ensure()
        total, ending = 0, False
        async with Outbox(bus, num_tasks=8, timeout_s=2.0, min_wait_s=0.02, max_wait_s=0.2) as outbox:

            async def publish() -> None:
                nonlocal total
                while not ending:
                    await outbox.put(JOURNAL, total.to_bytes(4) + b"x" * 5000, f"id-{total}")
                    total += 1
                    if total % 10 == 0:
                        await asyncio.sleep(0.01)

            publishing = asyncio.ensure_future(publish())
            # A kill may fall where no publish is on its way; several hardly all do.
            for kills in range(40):
                if kills >= 5 and outbox.stats.num_retried > 0:
                    break
                await asyncio.sleep(0.25)
                await asyncio.to_thread(nats_server.restart)
            ending = True
            await publishing
            assert await outbox.flush(30)
            assert outbox.stats.num_failed == 0
            assert outbox.stats.num_retried > 0
        info = await bus.connection.api("STREAM.INFO.TIDE_JOURNAL")
        assert info["state"]["messages"] == total
        stream = bus.tail(JOURNAL, since="all")
        async with asyncio.timeout(30):
            got = [int.from_bytes((await anext(stream)).data[:4]) for _ in range(total)]
        assert sorted(got) == list(range(total))

    async def test_waiting_publish_fails_at_once_when_the_connection_is_lost(
        self, nats_server: NatsServer, connect: Connect
    ) -> None:
        """A publish on its way does not sit out its timeout."""
        bus = await connect(nats_server)
        await bus.ensure()
        nats_server.freeze()
        waiting = asyncio.ensure_future(bus.publish(JOURNAL, b"x", timeout_s=60))
        await asyncio.sleep(0.2)
        nats_server.kill()
        with pytest.raises(BusUnavailableError, match="lost"):
            await asyncio.wait_for(waiting, 5)

    async def test_delivered_and_not_acknowledged_survives_a_crash(
        self, nats_server: NatsServer, connect: Connect
    ) -> None:
        """kill -9 between fetch and ack: the message comes again."""
        bus = await connect(nats_server)
        await bus.ensure()
        await bus.publish(HIDDEN, b"1")
        puller = await bus.puller(TRAINERS)
        (first,) = await puller.fetch(1, MIB, 5)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(nats_server.restart)
        (second,) = await puller.fetch(1, MIB, 15)
        assert second.message.data == first.message.data
        await second.ack()


class TestFrozen:
    async def test_frozen_server_times_out_and_recovers(self, nats_server: NatsServer, connect: Connect) -> None:
        """Pitfall 10: a stopped server holds nobody longer than its own limit."""
        bus = await connect(nats_server)
        await bus.ensure()
        puller = await bus.puller(TRAINERS)
        nats_server.freeze()
        started = time.monotonic()
        with pytest.raises(BusUnavailableError, match="no answer"):
            await bus.publish(JOURNAL, b"x", timeout_s=0.5)
        assert not await puller.fetch(1, MIB, 0.5)
        assert time.monotonic() - started < 4
        nats_server.thaw()
        await bus.publish(HIDDEN, b"y", timeout_s=10)
        assert [delivery.message.data for delivery in await puller.fetch(1, MIB, 10)] == [b"y"]

    async def test_silence_is_noticed_and_reconnected(self, nats_server: NatsServer, connect: Connect) -> None:
        """After three unanswered pings the connection counts as lost; a thawed server is found again."""
        bus = await connect(nats_server, ping_interval_s=0.2)
        await bus.ensure()
        nats_server.freeze()
        await until(lambda: not bus.connected)
        nats_server.thaw()
        assert await bus.publish(JOURNAL, b"x", timeout_s=15) == 1

    async def test_close_does_not_hang_on_a_frozen_server(self, nats_server: NatsServer, connect: Connect) -> None:
        """Pitfall 11: closing has a deadline of its own."""
        bus = await connect(nats_server)
        nats_server.freeze()
        async with asyncio.timeout(8):
            await bus.close()
        nats_server.thaw()


class TestClose:
    async def test_close_with_an_outstanding_fetch_and_tail(self, nats_server: NatsServer, connect: Connect) -> None:
        """Pitfall 11: nobody is left waiting, and unsent acknowledgements are sent."""
        bus = await connect(nats_server)
        await bus.ensure()
        await bus.publish(HIDDEN, b"1")
        puller = await bus.puller(TRAINERS)
        (delivery,) = await puller.fetch(1, MIB, 5)
        fetching = asyncio.ensure_future(puller.fetch(1, MIB, 60))
        tailing = asyncio.ensure_future(anext(bus.tail(JOURNAL)))
        await asyncio.sleep(0.3)
        await delivery.ack()
        async with asyncio.timeout(5):
            await bus.close()
            with pytest.raises(BusError, match="closed"):
                await tailing
            with pytest.raises(BusError, match="closed"):
                await fetching
        other = await connect(nats_server)
        info = await other.connection.api(f"CONSUMER.INFO.TIDE_HIDDEN.{TRAINERS}")
        assert (info["num_ack_pending"], info["num_pending"]) == (0, 0)

    async def test_puller_gives_back_what_nobody_took(self, nats_server: NatsServer, connect: Connect) -> None:
        """Messages that were prefetched go to another worker at once, not after ack_wait."""
        bus = await connect(nats_server)
        await bus.ensure()
        puller = await bus.puller(TRAINERS)
        waiting = asyncio.ensure_future(puller.fetch(10, MIB, 60))
        await asyncio.sleep(0.1)
        waiting.cancel()
        for index in range(3):
            await bus.publish(HIDDEN, b"%d" % index)
        await asyncio.sleep(0.1)
        await puller.close()
        other = await bus.puller(TRAINERS)
        got = [delivery for _ in range(3) for delivery in await other.fetch(1, MIB, 1.0)]
        assert sorted((delivery.message.data, delivery.num_delivered) for delivery in got) == [
            (b"0", 2),
            (b"1", 2),
            (b"2", 2),
        ]


class TestRefusals:
    async def test_denied_publish_names_subject_and_permission(
        self, make_nats_server: Callable[..., NatsServer], connect: Connect
    ) -> None:
        """Pitfall 6: the reason reaches the publish that waits, long before its timeout."""
        server = make_nats_server(extra_config=USERS)
        admin = await connect(server, urls=as_user(server, "admin", "a"))
        await admin.ensure()
        bus = await connect(server, urls=as_user(server, "server", "s"), inbox_prefix="_INBOX_server")
        assert await bus.publish(HIDDEN, b"1") == 1
        started = time.monotonic()
        with pytest.raises(BusError, match=rf"permission denied.*publish to {CONTROL}"):
            await bus.publish(CONTROL, b"1", timeout_s=30)
        assert time.monotonic() - started < 5
        assert bus.connected
        assert await bus.publish(HIDDEN, b"2") == 2

    async def test_denied_pull_and_tail_say_so(
        self, make_nats_server: Callable[..., NatsServer], connect: Connect
    ) -> None:
        """Pitfalls 6 and 12: a role that may not read is told, instead of waiting for messages."""
        server = make_nats_server(extra_config=USERS)
        admin = await connect(server, urls=as_user(server, "admin", "a"))
        await admin.ensure()
        bus = await connect(server, urls=as_user(server, "server", "s"), inbox_prefix="_INBOX_server")
        with pytest.raises(BusError, match=r"permission denied.*CONSUMER\.INFO"):
            await bus.puller(TRAINERS)
        with pytest.raises(BusError, match=r"permission denied.*CONSUMER\.CREATE"):
            await asyncio.wait_for(anext(bus.tail(HIDDEN, since="all")), 10)

    async def test_user_without_setup_rights_is_told_what_is_missing(
        self, make_nats_server: Callable[..., NatsServer], connect: Connect
    ) -> None:
        """ensure() by a role without the right to create names every stream it could not create."""
        server = make_nats_server(extra_config=USERS)
        bus = await connect(server, urls=as_user(server, "server", "s"), inbox_prefix="_INBOX_server")
        with pytest.raises(BusSetupError) as refused:
            await bus.ensure()
        assert "stream TIDE_HIDDEN: create: permission denied" in str(refused.value)
        assert "stream TIDE_JOURNAL: create: permission denied" in str(refused.value)

    async def test_wrong_password_is_refused_at_once(
        self, make_nats_server: Callable[..., NatsServer], connect: Connect
    ) -> None:
        """nats-py would try for ever."""
        server = make_nats_server(extra_config=USERS)
        started = time.monotonic()
        with pytest.raises(BusSetupError, match="refuses us"):
            await connect(server, urls=as_user(server, "server", "wrong"), first_connect_s=30)
        assert time.monotonic() - started < 5

    async def test_old_server_is_refused(
        self, nats_server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Servers before 2.11 silently ignore what we need (Debian's 2.9.10 does)."""
        from nats.aio.client import Client, ServerVersion

        monkeypatch.setattr(Client, "connected_server_version", property(lambda self: ServerVersion("2.9.10")))
        with pytest.raises(BusSetupError, match=r"2\.9\.10; 2\.11 or later"):
            await connect(nats_server)

    async def test_nobody_there_is_bounded(self, nats_server: NatsServer, connect: Connect) -> None:
        """A first connect to nothing ends, with the address and the last error."""
        nats_server.stop()
        started = time.monotonic()
        with pytest.raises(BusUnavailableError, match=rf"{nats_server.port} within 0.5 s"):
            await connect(nats_server, first_connect_s=0.5)
        assert time.monotonic() - started < 4

    async def test_listener_that_never_speaks_is_bounded(self, nats_server: NatsServer, connect: Connect) -> None:
        """Something else that took the port and says nothing does not hold us."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(BusUnavailableError):
                await connect(nats_server, urls=(url,), first_connect_s=0.5)

    async def test_url_that_is_none_is_named(self, nats_server: NatsServer, connect: Connect) -> None:
        """A malformed URL is a setting to change, not a traceback."""
        with pytest.raises(BusSetupError, match="cannot connect to"):
            await connect(nats_server, urls=("nats://127.0.0.1:notaport",))

    async def test_missing_consumer_says_what_to_do(self, nats_server: NatsServer, connect: Connect) -> None:
        """Bound before setup, or deleted under a running puller: named, not waited for."""
        bus = await connect(nats_server)
        with pytest.raises(BusSetupError, match="must be set up first"):
            await bus.puller(TRAINERS)
        await bus.ensure()
        puller = await bus.puller(TRAINERS)
        fetching = asyncio.ensure_future(puller.fetch(1, MIB, 20))
        await asyncio.sleep(0.2)
        await bus.connection.api(f"CONSUMER.DELETE.TIDE_HIDDEN.{TRAINERS}")
        with pytest.raises(BusSetupError, match="must be set up first"):
            await asyncio.wait_for(fetching, 10)

    async def test_server_without_jetstream_is_named(self, nats_server: NatsServer, connect: Connect) -> None:
        """JetStream off: setup says that nobody answers."""
        nats_server.stop()
        arguments = ("-a", "127.0.0.1", "-p", str(nats_server.port), "-l", "/dev/null")
        process = await asyncio.create_subprocess_exec(nats_server_binary(), *arguments)
        try:
            bus = await connect(nats_server)
            with pytest.raises(BusUnavailableError, match="JetStream is not enabled"):
                await bus.ensure()
        finally:
            process.terminate()
            await process.wait()


class TestFull:
    async def test_full_stream_is_named(self, nats_server: NatsServer, connect: Connect) -> None:
        """Pitfall 5: max_bytes with discard new."""
        bus = await connect(nats_server)
        await bus.ensure()
        with pytest.raises(BusFullError, match="max_bytes"):
            for index in range(3):
                await bus.publish(f"tide.v1.draft.m.1.{index}", b"x" * 500_000)

    async def test_store_too_small_for_the_limits_is_named(
        self, make_nats_server: Callable[..., NatsServer], connect: Connect
    ) -> None:
        """Pitfall 5: a max_file_store below what the streams reserve is found at setup, not when it is full."""
        bus = await connect(make_nats_server(max_file_store=512 * MIB))
        with pytest.raises(BusSetupError, match=r"stream TIDE_HIDDEN: create: .*storage resources"):
            await bus.ensure()

    async def test_full_store_is_named_and_the_outbox_goes_on_after_room_was_made(
        self, make_nats_server: Callable[..., NatsServer], connect: Connect
    ) -> None:
        """Pitfall 5: max_file_store reached by streams that reserve nothing."""
        server = make_nats_server(max_file_store=2 * MIB)
        bus = await connect(server)
        for name, subject in (("FILLER", "filler"), ("TIDE_JOURNAL", JOURNAL)):
            answer = await bus.connection.api(
                f"STREAM.CREATE.{name}", {"name": name, "subjects": [subject], "storage": "file", "retention": "limits"}
            )
            assert "error" not in answer
        with pytest.raises(BusFullError, match="store is full"):
            for _ in range(40):
                await bus.connection.client.publish("filler", b"x" * 100_000)
                await bus.publish(JOURNAL, b"x" * 100_000)
        async with Outbox(bus, min_wait_s=0.05, max_wait_s=0.1) as outbox:
            await outbox.put(JOURNAL, b"x" * 100_000, "id")
            assert not await outbox.flush(0.5)
            assert "full" in outbox.stats.last_error
            await bus.connection.api("STREAM.PURGE.FILLER")
            assert await outbox.flush(10)
            assert outbox.stats.num_stored == 1


class TestTail:
    async def test_lost_consumer_is_replaced(self, nats_server: NatsServer, connect: Connect) -> None:
        """Somebody deletes the tail's consumer: the tail goes on where it was."""
        bus = await connect(nats_server)
        await bus.ensure()
        stream = bus.tail(JOURNAL, since="all")
        await bus.publish(JOURNAL, b"0")
        assert (await asyncio.wait_for(anext(stream), 10)).data == b"0"
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.2)
        names = await bus.connection.api("CONSUMER.NAMES.TIDE_JOURNAL")
        for name in names["consumers"]:
            await bus.connection.api(f"CONSUMER.DELETE.TIDE_JOURNAL.{name}")
        for value in (b"1", b"2"):
            await bus.publish(JOURNAL, value)
        got = [await asyncio.wait_for(waiting, 20), await asyncio.wait_for(anext(stream), 10)]
        assert [message.data for message in got] == [b"1", b"2"]

    async def test_stream_made_anew_is_followed_from_its_start(self, nats_server: NatsServer, connect: Connect) -> None:
        """A store that was lost starts again at 1; a tail that was at 5 does not wait for 6."""
        bus = await connect(nats_server)
        await bus.ensure()
        for index in range(5):
            await bus.publish(JOURNAL, b"old %d" % index)
        stream = bus.tail(JOURNAL, since="all")
        async with asyncio.timeout(10):
            for _ in range(5):
                await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.2)
        await bus.connection.api("STREAM.DELETE.TIDE_JOURNAL")
        await bus.ensure()
        await bus.publish(JOURNAL, b"new")
        message = await asyncio.wait_for(waiting, 20)
        assert (message.data, message.sequence) == (b"new", 1)

    async def test_nothing_is_left_behind(self, nats_server: NatsServer, connect: Connect) -> None:
        """A tail that was closed takes its consumer with it."""
        bus = await connect(nats_server)
        await bus.ensure()
        await bus.publish(JOURNAL, b"0")
        stream = bus.tail(JOURNAL, since="all")
        await asyncio.wait_for(anext(stream), 10)
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        assert not (await bus.connection.api("CONSUMER.NAMES.TIDE_JOURNAL"))["consumers"]

    async def test_large_backlog_comes_in_order(self, nats_server: NatsServer, connect: Connect) -> None:
        """Many batches, one of them larger than a pull request."""
        bus = await connect(nats_server)
        await bus.ensure()
        async with Outbox(bus, num_tasks=1) as outbox:
            for index in range(700):
                await outbox.put(JOURNAL, index.to_bytes(4) + b"x" * 20_000, f"id-{index}")
            assert await outbox.flush(30)
        stream = bus.tail(JOURNAL, since="all")
        async with asyncio.timeout(30):
            assert [int.from_bytes((await anext(stream)).data[:4]) for _ in range(700)] == list(range(700))


class TestSetup:
    async def test_created_once_then_verified(self, nats_server: NatsServer, connect: Connect) -> None:
        """The first ensure() creates everything, the second changes nothing."""
        bus = await connect(nats_server)
        assert len(await bus.ensure()) == len(bus._topology.streams) + len(bus._topology.consumers)
        assert await bus.ensure() == []

    async def test_differences_are_named_one_a_line(self, nats_server: NatsServer, connect: Connect) -> None:
        """What somebody else decided is not overwritten but named, all of it at once."""
        bus = await connect(nats_server)
        for name, config in (
            ("TIDE_HIDDEN", {"subjects": ["tide.v1.hidden.>"], "discard": "new", "max_bytes": 1 << 30}),
            ("TIDE_CONTROL", {"subjects": ["tide.v1.control.a"], "max_bytes": 1 << 26}),
        ):
            answer = await bus.connection.api(f"STREAM.CREATE.{name}", {"name": name, "storage": "file", **config})
            assert "error" not in answer
        with pytest.raises(BusSetupError) as refused:
            await bus.ensure()
        lines = str(refused.value).splitlines()
        assert any("TIDE_HIDDEN: discard is 'new', needed is 'old'" in line for line in lines)
        assert any("TIDE_CONTROL: subjects is ['tide.v1.control.a']" in line for line in lines)
        found = await bus.connection.api("STREAM.INFO.TIDE_HIDDEN")
        assert found["config"]["discard"] == "new"

    async def test_limits_are_brought_up_to_date(self, nats_server: NatsServer, connect: Connect) -> None:
        """A raised limit is applied, and what an operator added stays."""
        from tide_daemon.bus.topology import TopologyLimits, build_topology

        bus = await connect(nats_server)
        await bus.ensure()
        found = await bus.connection.api("STREAM.INFO.TIDE_REPORT")
        await bus.connection.api("STREAM.UPDATE.TIDE_REPORT", {**found["config"], "description": "by hand"})
        limits = TopologyLimits(
            draft_max_bytes=MIB, ack_wait_s=7.0, report_max_bytes=80 * MIB, report_max_age_s=90000.0
        )
        changed = await connect(nats_server, build_topology(limits))
        changes = await changed.ensure()
        assert len(changes) == 2
        assert changes[0].startswith("stream TIDE_REPORT: set max_age")
        assert "consumer trainers: set ack_wait" in changes[1]
        config = (await bus.connection.api("STREAM.INFO.TIDE_REPORT"))["config"]
        assert (config["max_bytes"], config["max_age"], config["description"]) == (80 * MIB, 90000 * 10**9, "by hand")

    async def test_a_start_lowers_no_limit(self, nats_server: NatsServer, connect: Connect) -> None:
        """A daemon with a smaller [bus] than the others' deletes nothing: it says what differs, `migrate` lowers it."""
        from tide_daemon.bus.topology import TopologyLimits, build_topology

        def limits(config: dict[str, int]) -> tuple[int, int, int]:
            return config["max_bytes"], config["max_age"], config["duplicate_window"]

        bus = await connect(nats_server)
        await bus.ensure()
        for index in range(3):
            await bus.publish(HIDDEN, b"x" * 500_000, message_id=str(index))
        smaller = TopologyLimits(draft_max_bytes=MIB, ack_wait_s=2.0, hidden_max_bytes=MIB, hidden_max_age_s=60.0)
        other = await connect(nats_server, build_topology(smaller))
        told: list[str] = []
        assert await other.ensure(told=told.append) == []
        stream = await bus.connection.api("STREAM.INFO.TIDE_HIDDEN")
        assert limits(stream["config"]) == (1024 * MIB, 86400 * 10**9, 600 * 10**9)
        assert stream["state"]["messages"] == 3
        assert [line.split(";")[0] for line in told] == [
            f"stream TIDE_HIDDEN: duplicate_window stays {600 * 10**9}, configured is less: {60 * 10**9}",
            f"stream TIDE_HIDDEN: max_age stays {86400 * 10**9}, configured is less: {60 * 10**9}",
            f"stream TIDE_HIDDEN: max_bytes stays {1024 * MIB}, configured is less: {MIB}",
        ]
        assert all("tide-daemon admin init" in line for line in told)
        (change,) = await other.migrate(dry_run=False)
        stream = await bus.connection.api("STREAM.INFO.TIDE_HIDDEN")
        assert limits(stream["config"]) == (MIB, 60 * 10**9, 60 * 10**9), change

    async def test_a_private_broker_follows_its_daemon(self, nats_server: NatsServer, connect: Connect) -> None:
        """Nobody else's configuration speaks against it, so limits are lowered as well."""
        from tide_daemon.bus.topology import TopologyLimits, build_topology

        await (await connect(nats_server)).ensure()
        smaller = TopologyLimits(draft_max_bytes=MIB, ack_wait_s=2.0, journal_max_bytes=MIB)
        bus = await connect(nats_server, build_topology(smaller))
        assert await bus.ensure(may_lower=True) == [f"stream TIDE_JOURNAL: set max_bytes {512 * MIB} -> {MIB}"]


async def test_terminated_messages_are_told_of(nats_server: NatsServer, connect: Connect) -> None:
    """TIDE_DEAD holds an advisory for each message that a trainer refused for good."""
    bus = await connect(nats_server)
    await bus.ensure()
    await bus.publish(HIDDEN, b"not a chunk")
    (delivery,) = await (await bus.puller(TRAINERS)).fetch(1, MIB, 5)
    await delivery.term()
    subject = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.TIDE_HIDDEN.>"
    advisory = await asyncio.wait_for(anext(bus.tail(subject, since="all")), 10)
    assert json.loads(advisory.data)["stream_seq"] == 1


async def test_connection_problems_are_kept_for_the_status(nats_server: NatsServer, connect: Connect) -> None:
    """The newest errors of the connection can be shown to a person."""
    bus = await connect(nats_server)
    assert isinstance(bus.connection, Connection)
    nats_server.kill()
    await until(lambda: bool(bus.connection.problems))
