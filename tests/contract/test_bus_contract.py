"""What port.Bus promises, on the in-memory twin and on a real nats-server."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.contract.conftest import ACK_WAIT_S, MAX_DELIVER, TOPOLOGY, Broker
from tide_daemon.bus.lease import is_held
from tide_daemon.bus.port import Bus, Delivery, Puller, StoredMessage
from tide_daemon.bus.topology import TRAINERS
from tide_daemon.errors import (
    BusConflictError,
    BusError,
    BusFullError,
    BusSetupError,
    BusUnavailableError,
    MessageTooLargeError,
)

HIDDEN = "tide.v1.hidden.m.n1"
CONTROL = "tide.v1.control.m.server.n1"
JOURNAL = "tide.v1.journal.m"
MIB = 1 << 20


async def take(stream: AsyncIterator[StoredMessage], count: int, within_s: float = 15.0) -> list[StoredMessage]:
    async with asyncio.timeout(within_s):
        return [await anext(stream) for _ in range(count)]


async def start(stream: AsyncIterator[StoredMessage]) -> "asyncio.Task[StoredMessage]":
    """Asks for the first message and gives the tail the time to begin."""
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.5)
    return first


async def fetch_all(puller: Puller, count: int, within_s: float = 10.0) -> list[Delivery]:
    got: list[Delivery] = []
    give_up_at = time.monotonic() + within_s
    while len(got) < count and time.monotonic() < give_up_at:
        got += await puller.fetch(count - len(got), MIB, 0.3)
    return got


def texts(items: Sequence[StoredMessage]) -> list[bytes]:
    return [item.data for item in items]


class TestPublish:
    async def test_returns_growing_sequences_and_last_gives_the_newest(self, bus: Bus) -> None:
        """publish() stores and numbers; last() reads back subject, bytes, sequence and time."""
        before = time.time()
        assert await bus.publish(JOURNAL, b"one") == 1
        assert await bus.publish(JOURNAL, b"two") == 2
        message = await bus.last(JOURNAL)
        assert message is not None
        assert (message.subject, message.data, message.sequence) == (JOURNAL, b"two", 2)
        assert before - 1 <= message.stored_at <= time.time() + 1

    async def test_last_of_an_empty_subject_is_none(self, bus: Bus) -> None:
        """A subject without messages is no error."""
        assert await bus.last(CONTROL) is None

    async def test_last_refuses_a_wildcard(self, bus: Bus) -> None:
        """last() is about one subject."""
        with pytest.raises(ValueError, match="wildcard"):
            await bus.last("tide.v1.control.>")

    async def test_get_reads_one_message_without_consuming_it(self, bus: Bus) -> None:
        """get() returns a held sequence and None for another."""
        await bus.publish(JOURNAL, b"one")
        await bus.publish(JOURNAL, b"two")
        message = await bus.get("TIDE_JOURNAL", 1)
        assert message is not None
        assert (message.subject, message.data, message.sequence) == (JOURNAL, b"one", 1)
        assert await bus.get("TIDE_JOURNAL", 7) is None

    async def test_same_message_id_is_stored_once(self, bus: Bus) -> None:
        """A retry with the same id returns the first sequence."""
        first = await bus.publish(HIDDEN, b"a", message_id="x")
        assert await bus.publish(HIDDEN, b"a", message_id="x") == first
        assert await bus.publish(HIDDEN, b"b", message_id="y") == first + 1

    async def test_message_id_is_forgotten_after_the_window(self, bus: Bus) -> None:
        """The window is finite: an id may come again later."""
        first = await bus.publish(JOURNAL, b"a", message_id="x")
        await asyncio.sleep(2.8)
        assert await bus.publish(JOURNAL, b"a", message_id="x") == first + 1

    async def test_compare_and_set(self, bus: Bus) -> None:
        """expected_last lets exactly one of two writers win."""
        first = await bus.publish(CONTROL, b"a", expected_last=0)
        with pytest.raises(BusConflictError) as lost:
            await bus.publish(CONTROL, b"b", expected_last=0)
        assert lost.value.subject == CONTROL
        second = await bus.publish(CONTROL, b"c", expected_last=first)
        assert second > first
        other = await bus.publish(CONTROL.replace("n1", "n2"), b"d", expected_last=0)
        assert other > second

    async def test_compare_and_set_is_retried_harmlessly_with_an_id(self, bus: Bus) -> None:
        """A retry of what was stored returns its sequence, not a conflict with itself."""
        first = await bus.publish(CONTROL, b"a", expected_last=0, message_id="once")
        assert await bus.publish(CONTROL, b"a", expected_last=0, message_id="once") == first

    async def test_too_large_is_refused_before_sending(self, bus: Bus) -> None:
        """A message over max_payload raises with both sizes, one of exactly max_payload is stored."""
        with pytest.raises(MessageTooLargeError) as refused:
            await bus.publish(HIDDEN, b"x" * (bus.max_payload + 1))
        assert (refused.value.num_bytes, refused.value.limit_bytes) == (bus.max_payload + 1, bus.max_payload)
        assert await bus.publish(HIDDEN, b"x" * bus.max_payload, message_id="i" * 100) == 1
        assert bus.connected

    async def test_unknown_subject_is_unavailable(self, bus: Bus) -> None:
        """No stream takes it: said at once, without waiting for the timeout."""
        started = time.monotonic()
        with pytest.raises(BusUnavailableError, match="no stream takes"):
            await bus.publish("tide.v1.nonsense", b"x", timeout_s=10)
        assert time.monotonic() - started < 5

    async def test_time_to_live(self, bus: Bus) -> None:
        """A message with a time to live is gone after it, and its subject is empty again."""
        subject = "$KV.TIDE_LEASE.something"
        await bus.publish(subject, b"a", ttl_s=1)
        assert await bus.last(subject) is not None
        await asyncio.sleep(2.5)
        assert await bus.last(subject) is None
        await bus.publish(subject, b"b", expected_last=0, ttl_s=1)

    async def test_time_to_live_is_refused_where_the_stream_does_not_allow_it(self, bus: Bus) -> None:
        """A message that would stay for ever is not stored silently."""
        with pytest.raises(BusError, match="was not stored"):
            await bus.publish(JOURNAL, b"a", ttl_s=1)


class TestLimits:
    async def test_full_stream_drops_the_oldest(self, bus: Bus) -> None:
        """TIDE_HIDDEN (2 MiB here) keeps the newest."""
        for index in range(6):
            await bus.publish(HIDDEN, bytes([index]) * 700_000)
        stream = bus.tail(HIDDEN, since="all")
        assert [message.data[0] for message in await take(stream, 2)] == [4, 5]

    async def test_full_stream_refuses(self, bus: Bus) -> None:
        """TIDE_DRAFT (1 MiB here) refuses when full, names it, and takes again after a purge."""
        part = b"x" * 400_000
        await bus.publish("tide.v1.draft.m.1.0", part)
        await bus.publish("tide.v1.draft.m.1.1", part)
        with pytest.raises(BusFullError, match="max_bytes"):
            await bus.publish("tide.v1.draft.m.2.0", part)
        assert await bus.purge("tide.v1.draft.m.1.>") == 2
        await bus.publish("tide.v1.draft.m.2.0", part)
        assert await bus.last("tide.v1.draft.m.1.0") is None

    async def test_one_message_per_subject(self, bus: Bus) -> None:
        """TIDE_CONTROL keeps the newest of each subject only."""
        for value in (b"1", b"2", b"3"):
            await bus.publish(CONTROL, value)
        assert texts(await take(bus.tail("tide.v1.control.>", since="all"), 1)) == [b"3"]

    async def test_purge_leaves_other_subjects(self, bus: Bus) -> None:
        """purge() is about its subject only."""
        await bus.publish("tide.v1.report.m.n1.node", b"1")
        await bus.publish("tide.v1.report.m.n2.node", b"2")
        assert await bus.purge("tide.v1.report.m.n1.node") == 1
        assert await bus.purge("tide.v1.report.m.n1.node") == 0
        assert await bus.last("tide.v1.report.m.n2.node") is not None


class TestTail:
    async def test_all_then_what_follows(self, bus: Bus) -> None:
        """since="all" gives the past in order, then the future."""
        for value in (b"1", b"2"):
            await bus.publish(JOURNAL, value)
        stream = bus.tail(JOURNAL, since="all")
        assert texts(await take(stream, 2)) == [b"1", b"2"]
        await bus.publish(JOURNAL, b"3")
        assert texts(await take(stream, 1)) == [b"3"]

    async def test_new_gives_only_the_future(self, bus: Bus) -> None:
        """since="new" begins at the first anext."""
        await bus.publish(JOURNAL, b"old")
        stream = bus.tail(JOURNAL)
        first = await start(stream)
        await bus.publish(JOURNAL, b"new")
        assert (await asyncio.wait_for(first, 10)).data == b"new"

    async def test_last_gives_the_newest_of_each_subject_first(self, bus: Bus) -> None:
        """since="last" is a snapshot by subject, then the future."""
        for node, value in (("n1", b"1a"), ("n2", b"2a"), ("n1", b"1b")):
            await bus.publish(f"tide.v1.report.m.{node}.node", value)
        stream = bus.tail("tide.v1.report.m.>", since="last")
        assert texts(await take(stream, 2)) == [b"2a", b"1b"]
        await bus.publish("tide.v1.report.m.n2.node", b"2b")
        assert texts(await take(stream, 1)) == [b"2b"]

    async def test_last_of_nothing_waits_for_the_first(self, bus: Bus) -> None:
        """since="last" on empty subjects gives what comes first."""
        stream = bus.tail("tide.v1.control.m.>", since="last")
        first = await start(stream)
        await bus.publish(CONTROL, b"1")
        assert (await asyncio.wait_for(first, 10)).data == b"1"

    async def test_from_a_sequence(self, bus: Bus) -> None:
        """since="sequence" begins at that stream sequence."""
        for value in (b"1", b"2", b"3"):
            await bus.publish(JOURNAL, value)
        assert texts(await take(bus.tail(JOURNAL, since="sequence", sequence=2), 2)) == [b"2", b"3"]

    async def test_wildcards_filter(self, bus: Bus) -> None:
        """Only matching subjects come."""
        await bus.publish("tide.v1.report.m.n1.node", b"1")
        await bus.publish("tide.v1.report.m.n1.trainer", b"2")
        await bus.publish("tide.v1.report.m.n2.node", b"3")
        assert texts(await take(bus.tail("tide.v1.report.m.*.node", since="all"), 2)) == [b"1", b"3"]

    async def test_unknown_since_is_refused(self, bus: Bus) -> None:
        """A misspelt mode is our caller's mistake."""
        with pytest.raises(ValueError, match="since"):
            await anext(bus.tail(JOURNAL, since="yesterday"))

    async def test_resumes_without_holes_or_repeats_when_the_broker_comes_back(self, broker: Broker, bus: Bus) -> None:
        """The broker goes away twice while a writer goes on; the reader sees each message once, in order."""
        writer = await broker.bus()
        stream = bus.tail(JOURNAL, since="all")

        async def write() -> None:
            for index in range(60):
                while True:
                    try:
                        await writer.publish(JOURNAL, b"%d" % index, message_id=f"m{index}", timeout_s=0.5)
                        break
                    except BusUnavailableError:
                        continue
                if index in (20, 40):
                    broker.take_away()
                    await asyncio.sleep(0.2)
                    broker.bring_back()
                await asyncio.sleep(0.005)

        writing = asyncio.ensure_future(write())
        got = await take(stream, 60, within_s=40)
        await writing
        assert texts(got) == [b"%d" % index for index in range(60)]
        assert [message.sequence for message in got] == sorted({message.sequence for message in got})

    async def test_new_is_pinned_over_an_outage_before_the_first_message(self, broker: Broker, bus: Bus) -> None:
        """What is published while a waiting tail is cut off still comes."""
        stream = bus.tail(JOURNAL)
        first = await start(stream)
        broker.take_away()
        await asyncio.sleep(0.1)
        broker.bring_back()
        writer = await broker.bus()
        await writer.publish(JOURNAL, b"1")
        assert (await asyncio.wait_for(first, 15)).data == b"1"

    async def test_another_life_of_the_stream_is_told(self, broker: Broker, bus: Bus) -> None:
        """By a name, for sequences may have grown beyond the old ones; readers go on, at once or when asked again."""
        found: asyncio.Queue[StoredMessage] = asyncio.Queue()

        async def follow() -> None:
            while True:
                try:
                    async for message in bus.tail(CONTROL, since="last"):
                        await found.put(message)
                except BusSetupError:  # seen before the streams were there again
                    await asyncio.sleep(0.1)

        following = asyncio.ensure_future(follow())
        await bus.publish(CONTROL, b"old")
        before = await asyncio.wait_for(found.get(), 10)
        await broker.lose_disk()
        writer = await broker.bus()
        await writer.publish(f"{CONTROL}0", b"another")
        await writer.publish(CONTROL, b"new")
        await writer.publish(f"{CONTROL}1", b"another")
        after = await asyncio.wait_for(found.get(), 20)
        assert (before.data, before.sequence, after.data, after.sequence) == (b"old", 1, b"new", 2)
        assert before.stream_made != after.stream_made and before.stream_made and after.stream_made
        await writer.publish(CONTROL, b"newer")
        assert (await asyncio.wait_for(found.get(), 10)).stream_made == after.stream_made
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    async def test_ends_with_an_error_when_the_bus_is_closed(self, bus: Bus) -> None:
        """close() does not leave a reader waiting."""
        first = await start(bus.tail(JOURNAL))
        await bus.close()
        with pytest.raises(BusError, match="closed"):
            await asyncio.wait_for(first, 10)


class TestPuller:
    async def test_fetches_and_acknowledges(self, bus: Bus) -> None:
        """What was acknowledged does not come again."""
        for index in range(3):
            await bus.publish(HIDDEN, b"%d" % index)
        puller = await bus.puller(TRAINERS)
        got = await fetch_all(puller, 3)
        assert [delivery.message.data for delivery in got] == [b"0", b"1", b"2"]
        assert [delivery.num_delivered for delivery in got] == [1, 1, 1]
        for delivery in got:
            await delivery.ack()
        assert not await puller.fetch(10, MIB, ACK_WAIT_S + 0.5)

    async def test_empty_after_the_timeout(self, bus: Bus) -> None:
        """Nothing there: an empty list, not before the timeout and not long after."""
        puller = await bus.puller(TRAINERS)
        started = time.monotonic()
        assert not await puller.fetch(10, MIB, 0.5)
        assert 0.4 < time.monotonic() - started < 3

    async def test_returns_as_soon_as_something_comes(self, bus: Bus) -> None:
        """A waiting fetch does not sit out its timeout."""
        puller = await bus.puller(TRAINERS)
        waiting = asyncio.ensure_future(puller.fetch(10, MIB, 20))
        await asyncio.sleep(0.2)
        await bus.publish(HIDDEN, b"1")
        got = await asyncio.wait_for(waiting, 5)
        assert [delivery.message.data for delivery in got] == [b"1"]

    async def test_bounds_messages_and_bytes(self, bus: Bus) -> None:
        """At most max_messages and max_bytes; one over max_bytes comes alone."""
        for _ in range(5):
            await bus.publish(HIDDEN, b"x" * 1000)
        puller = await bus.puller(TRAINERS)
        sizes = []
        for max_messages, max_bytes in ((1, MIB), (10, 2100), (10, 10)):
            got = await puller.fetch(max_messages, max_bytes, 2)
            sizes.append(len(got))
            for delivery in got:
                await delivery.ack()
        assert sizes[0] == 1
        assert 1 <= sizes[1] <= 2
        assert sizes[2] == 1

    async def test_not_acknowledged_comes_again_after_ack_wait(self, bus: Bus) -> None:
        """A worker that died does not take its messages with it."""
        await bus.publish(HIDDEN, b"1")
        puller = await bus.puller(TRAINERS)
        first = await puller.fetch(1, MIB, 2)
        started = time.monotonic()
        second = await puller.fetch(1, MIB, 5)
        assert (first[0].message, second[0].num_delivered) == (second[0].message, 2)
        assert time.monotonic() - started > ACK_WAIT_S * 0.5
        await second[0].ack()

    async def test_refused_comes_again_after_the_delay(self, bus: Bus) -> None:
        """nak(delay) delays, and counts as a delivery."""
        await bus.publish(HIDDEN, b"1")
        puller = await bus.puller(TRAINERS)
        (first,) = await puller.fetch(1, MIB, 2)
        await first.nak(0.4)
        started = time.monotonic()
        (second,) = await puller.fetch(1, MIB, 5)
        assert 0.2 < time.monotonic() - started < 3
        assert second.num_delivered == 2
        await second.nak()
        (third,) = await puller.fetch(1, MIB, 5)
        await third.ack()

    async def test_progress_keeps_it(self, bus: Bus) -> None:
        """in_progress() in time keeps a message from going to another."""
        await bus.publish(HIDDEN, b"1")
        puller = await bus.puller(TRAINERS)
        (delivery,) = await puller.fetch(1, MIB, 2)
        for _ in range(5):
            await asyncio.sleep(ACK_WAIT_S / 3)
            await delivery.in_progress()
        assert not await puller.fetch(1, MIB, 0.2)
        await delivery.ack()

    async def test_terminated_never_comes_again(self, bus: Bus) -> None:
        """term() ends a message that nobody can use."""
        await bus.publish(HIDDEN, b"1")
        puller = await bus.puller(TRAINERS)
        (delivery,) = await puller.fetch(1, MIB, 2)
        await delivery.term()
        assert not await puller.fetch(1, MIB, ACK_WAIT_S + 0.5)

    async def test_ending_twice_is_an_error(self, bus: Bus) -> None:
        """Exactly one of ack, nak and term."""
        await bus.publish(HIDDEN, b"1")
        (delivery,) = await (await bus.puller(TRAINERS)).fetch(1, MIB, 2)
        await delivery.ack()
        with pytest.raises(BusError, match="before"):
            await delivery.nak()

    async def test_given_up_after_max_deliver_with_an_advisory(self, bus: Bus) -> None:
        """A message that fails again and again is left in the stream and told of in TIDE_DEAD."""
        await bus.publish(HIDDEN, b"poison")
        puller = await bus.puller(TRAINERS)
        for _ in range(MAX_DELIVER):
            (delivery,) = await puller.fetch(1, MIB, 3)
            await delivery.nak()
        assert not await puller.fetch(1, MIB, ACK_WAIT_S + 0.5)
        (advisory,) = await take(bus.tail("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.TIDE_HIDDEN.>", since="all"), 1)
        assert b'"stream_seq":1' in advisory.data.replace(b" ", b"")
        assert await bus.get("TIDE_HIDDEN", 1) is not None

    async def test_two_share_the_load(self, broker: Broker, bus: Bus) -> None:
        """Each message goes to one of those bound to the same consumer."""
        for index in range(8):
            await bus.publish(HIDDEN, b"%d" % index)
        one, two = await bus.puller(TRAINERS), await (await broker.bus()).puller(TRAINERS)
        got = [*await one.fetch(4, MIB, 2), *await two.fetch(4, MIB, 2)]
        for delivery in got:
            await delivery.ack()
        while len(got) < 8:
            more = [*await one.fetch(4, MIB, 0.3), *await two.fetch(4, MIB, 0.3)]
            for delivery in more:
                await delivery.ack()
            got += more
        assert sorted(delivery.message.data for delivery in got) == [b"%d" % index for index in range(8)]

    async def test_no_more_than_max_ack_pending_are_out(self, bus: Bus) -> None:
        """max_ack_pending (8 here) bounds what is handed out and not acknowledged."""
        for index in range(12):
            await bus.publish(HIDDEN, b"%d" % index)
        puller = await bus.puller(TRAINERS)
        first = await fetch_all(puller, 12, within_s=ACK_WAIT_S * 0.5)
        assert len(first) == 8
        for delivery in first:
            await delivery.ack()
        assert len(await fetch_all(puller, 4)) == 4

    async def test_cancelled_fetch_loses_nothing(self, bus: Bus) -> None:
        """What arrives for a fetch that was cancelled comes with a later one."""
        puller = await bus.puller(TRAINERS)
        waiting = asyncio.ensure_future(puller.fetch(10, MIB, 20))
        await asyncio.sleep(0.2)
        waiting.cancel()
        await bus.publish(HIDDEN, b"1")
        await asyncio.sleep(0.2)
        (delivery,) = await puller.fetch(10, MIB, 2)
        assert (delivery.message.data, delivery.num_delivered) == (b"1", 1)
        await delivery.ack()

    async def test_close_ends_a_running_fetch(self, bus: Bus) -> None:
        """Neither the fetch nor close() hangs."""
        puller = await bus.puller(TRAINERS)
        waiting = asyncio.ensure_future(puller.fetch(10, MIB, 30))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            await puller.close()
            assert not await waiting

    async def test_fetch_survives_an_outage(self, broker: Broker, bus: Bus) -> None:
        """A fetch during an outage is empty; afterwards the same puller goes on."""
        await bus.publish(HIDDEN, b"1")
        puller = await bus.puller(TRAINERS)
        await asyncio.sleep(0.3)  # TIDE_HIDDEN is written to disk a moment after it is acknowledged
        broker.take_away()
        await asyncio.sleep(0.1)
        assert not await puller.fetch(1, MIB, 0.3)
        broker.bring_back()
        (delivery,) = await puller.fetch(1, MIB, 10)
        assert delivery.message.data == b"1"
        await delivery.ack()

    async def test_unknown_consumer_is_refused(self, bus: Bus) -> None:
        """A name that the topology does not have is a mistake of ours."""
        with pytest.raises(ValueError, match="no consumer"):
            await bus.puller("nobody")


class TestOutage:
    async def test_losses_are_counted(self, broker: Broker, bus: Bus) -> None:
        """Each one once, also when nobody looked in between."""
        assert bus.num_losses == 0
        for number in (1, 2):
            broker.take_away()
            await asyncio.sleep(0.1)
            broker.bring_back()
            await bus.publish(JOURNAL, b"x", timeout_s=10)
            assert bus.num_losses == number

    async def test_publish_waits_for_the_broker_within_its_time(self, broker: Broker, bus: Bus) -> None:
        """Away for a moment: stored. Away for longer: BusUnavailableError at the timeout."""
        broker.take_away()
        await asyncio.sleep(0.1)
        started = time.monotonic()
        with pytest.raises(BusUnavailableError):
            await bus.publish(JOURNAL, b"1", timeout_s=0.5)
        assert time.monotonic() - started < 3
        waiting = asyncio.ensure_future(bus.publish(JOURNAL, b"2", timeout_s=20))
        await asyncio.sleep(0.1)
        broker.bring_back()
        assert await waiting == 1
        assert bus.connected

    async def test_closed_bus_says_so(self, bus: Bus) -> None:
        """After close() nothing pretends to work, and wait_closed() returns."""
        waiting = asyncio.ensure_future(bus.wait_closed())
        await asyncio.sleep(0)
        await bus.close()
        assert "closed" in await asyncio.wait_for(waiting, 5)
        assert not bus.connected
        with pytest.raises(BusError, match="closed"):
            await bus.publish(JOURNAL, b"1")


class TestLease:
    async def test_one_holder_at_a_time_and_renewal_keeps_the_token(self, broker: Broker, bus: Bus) -> None:
        """The second gets None; the first renews with the same token."""
        one = bus.lease("m", "a", 5)
        two = (await broker.bus()).lease("m", "b", 5)
        token = await one.acquire()
        assert token is not None
        assert one.held
        assert await two.acquire() is None
        assert not two.held
        assert await one.acquire() == token
        assert await one.acquire() == token

    async def test_release_hands_over_with_a_larger_token(self, broker: Broker, bus: Bus) -> None:
        """After release() another has it at once."""
        one = bus.lease("m", "a", 30)
        two = (await broker.bus()).lease("m", "b", 30)
        first = await one.acquire()
        await one.release()
        assert not one.held
        second = await two.acquire()
        assert first is not None
        assert second is not None
        assert second > first
        assert await one.acquire() is None
        await one.release()  # not ours: no effect
        assert await two.acquire() == second

    async def test_taken_over_when_the_holder_is_gone(self, broker: Broker, bus: Bus) -> None:
        """A holder that stops renewing loses it within three times the time to live."""
        ttl_s = 1
        gone = bus.lease("m", "a", ttl_s)
        first = await gone.acquire()
        other = (await broker.bus()).lease("m", "b", ttl_s)
        started = time.monotonic()
        second = None
        while second is None:
            assert time.monotonic() - started < 3 * ttl_s
            await asyncio.sleep(ttl_s / 3)
            second = await other.acquire()
        assert first is not None
        assert second > first
        assert not gone.held
        assert await gone.acquire() is None

    async def test_same_name_does_not_share_the_hold(self, broker: Broker, bus: Bus) -> None:
        """A holder that started again under its name is another holder."""
        one = bus.lease("m", "a", 30)
        again = (await broker.bus()).lease("m", "a", 30)
        assert await one.acquire() is not None
        assert await again.acquire() is None

    async def test_leases_of_two_names_are_independent(self, bus: Bus) -> None:
        """One lease a model."""
        assert await bus.lease("m1", "a", 5).acquire() is not None
        assert await bus.lease("m2", "b", 5).acquire() is not None

    async def test_others_see_whether_somebody_holds_it(self, broker: Broker, bus: Bus) -> None:
        """Nobody, somebody, given back, run out; looking at it takes nothing."""
        reader = await broker.bus()
        assert not await is_held(reader, "m", timeout_s=5)
        lease = bus.lease("m", "a", 1)
        assert await lease.acquire() is not None
        assert await is_held(reader, "m", timeout_s=5)
        await lease.release()
        assert not await is_held(reader, "m", timeout_s=5)
        assert await lease.acquire() is not None
        async with asyncio.timeout(3):
            while await is_held(reader, "m", timeout_s=5):  # noqa: ASYNC110  it is the broker that ends it
                await asyncio.sleep(0.1)

    async def test_unreachable_broker_raises(self, broker: Broker, bus: Bus) -> None:
        """Nobody can tell who holds it: no token, no None."""
        lease = bus.lease("m", "a", 3)
        assert await lease.acquire() is not None
        broker.take_away()
        await asyncio.sleep(0.1)
        with pytest.raises(BusUnavailableError):
            await lease.acquire()
        assert lease.held
        broker.bring_back()

    async def test_refuses_part_seconds(self, bus: Bus) -> None:
        """The broker counts a time to live in whole seconds."""
        with pytest.raises(ValueError, match="whole seconds"):
            bus.lease("m", "a", 0)


class TestDepth:
    """How full a stream is."""

    async def test_counts_messages_bytes_and_what_waits(self, bus: Bus) -> None:
        """All that is held, and what the shared consumer has not acknowledged, handed out or not."""
        empty = await bus.depth("TIDE_HIDDEN")
        assert (empty.num_messages, empty.num_bytes, empty.num_waiting) == (0, 0, 0)
        for number in range(3):
            await bus.publish(HIDDEN, b"x" * 100, message_id=f"depth-{number}")
        puller = await bus.puller(TRAINERS)
        first, second = await fetch_all(puller, 2)
        await first.ack()
        async with asyncio.timeout(5):
            while (depth := await bus.depth("TIDE_HIDDEN")).num_waiting != 2:  # noqa: ASYNC110  # the broker's doing
                await asyncio.sleep(0.01)
        assert depth.num_messages == 3 and 300 <= depth.num_bytes < 1000
        assert depth.max_bytes == next(spec.max_bytes for spec in TOPOLOGY.streams if spec.name == "TIDE_HIDDEN")
        await second.ack()
        await puller.close()

    async def test_a_stream_without_a_shared_consumer(self, bus: Bus) -> None:
        """Nobody waits there."""
        await bus.publish(JOURNAL, b"1")
        depth = await bus.depth("TIDE_JOURNAL")
        assert (depth.num_messages, depth.num_waiting) == (1, None)

    async def test_an_unknown_stream_is_refused(self, bus: Bus) -> None:
        """With the name."""
        with pytest.raises(BusSetupError, match="TIDE_NOWHERE"):
            await bus.depth("TIDE_NOWHERE")


class TestErasing:
    async def test_messages_are_found_by_their_ids_and_erased_one_by_one(self, bus: Bus) -> None:
        """All of a filter, without payloads; one goes and the others stay; a second time there is nothing to erase."""
        assert await bus.message_ids("tide.v1.hidden.m.*", "seeker") == []
        first = await bus.publish(HIDDEN, b"a", message_id="x")
        second = await bus.publish(HIDDEN.replace("n1", "n2"), b"b", message_id="y")
        third = await bus.publish(HIDDEN, b"c")
        await bus.publish(HIDDEN.replace(".m.", ".other."), b"d", message_id="z")
        assert await bus.message_ids("tide.v1.hidden.m.*", "seeker") == [(first, "x"), (second, "y"), (third, "")]
        assert await bus.erase("TIDE_HIDDEN", second)
        assert not await bus.erase("TIDE_HIDDEN", second)
        assert not await bus.erase("TIDE_HIDDEN", 99)
        assert await bus.get("TIDE_HIDDEN", second) is None
        assert await bus.message_ids("tide.v1.hidden.m.*", "seeker") == [(first, "x"), (third, "")]

    async def test_many_are_found(self, bus: Bus) -> None:
        """More than one pull brings."""
        sequences = await asyncio.gather(*(bus.publish(HIDDEN, b"x", message_id=str(i)) for i in range(1200)))
        found = await bus.message_ids("tide.v1.hidden.m.*", "seeker")
        assert {sequence for sequence, _ in found} == set(sequences) and len(found) == 1200

    async def test_an_erased_message_is_not_delivered(self, bus: Bus) -> None:
        """A shared consumer that has not had it yet passes over it."""
        kept = await bus.publish(HIDDEN, b"kept")
        gone = await bus.publish(HIDDEN, b"gone")
        await bus.erase("TIDE_HIDDEN", gone)
        puller = await bus.puller(TRAINERS)
        assert {delivery.message.sequence for delivery in await fetch_all(puller, 3, 2.0)} == {kept}
        await puller.close()
