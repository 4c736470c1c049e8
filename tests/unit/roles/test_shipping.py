"""Chunks on their way out: in order although they are encoded side by side, and none lost to a cancelled wait."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from tests.trainer_samples import chunks
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.outbox import Outbox
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import EngineError
from tide_daemon.roles import shipping as module
from tide_daemon.roles.leaving import Leaving
from tide_daemon.roles.shipping import Shipping
from tide_daemon.wire import envelope
from tide_daemon.wire.records import HiddenChunk, Record

LIMIT_S = 20


class Recorded(Outbox):
    """An outbox without a broker: keeps what it is given, once it is `open`."""

    def __init__(self) -> None:
        super().__init__(MemoryBus(MemoryBroker(build_topology(TopologyLimits()))))
        self.open = asyncio.Event()
        self.came: list[HiddenChunk] = []

    async def put(self, subject: str, data: bytes, message_id: str) -> None:
        await self.open.wait()
        record = envelope.decode(data)
        assert isinstance(record, HiddenChunk)
        self.came.append(record)


def shipping(outbox: Outbox, given: list[HiddenChunk], told: list[str]) -> Shipping:
    def take_chunks(max_bytes: int) -> list[HiddenChunk]:
        taken, given[:] = list(given), []
        return taken

    engine = SimpleNamespace(spec=object(), take_chunks=take_chunks)
    bus = SimpleNamespace(max_payload=1 << 20)
    return Shipping(
        engine,  # type: ignore[arg-type]
        bus,  # type: ignore[arg-type]
        outbox,
        Leaving(),
        chunk_bytes=1 << 20,
        drain_interval_s=0.01,
        note=told.append,
    )


async def ended(shipping: Shipping, until: Callable[[], bool]) -> None:
    """Run until something is so, then cancel."""
    running = asyncio.create_task(shipping.run())
    for _ in range(100 * LIMIT_S):
        if until():
            break
        await asyncio.sleep(0.01)
    assert until(), f"did not come true within {LIMIT_S} s"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def order(came: list[HiddenChunk]) -> list[tuple[str, int]]:
    return [(chunk.request_id, chunk.chunk_index) for chunk in came]


async def test_the_order_is_kept_though_the_second_is_encoded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request's last chunk may be the smaller one; several are in the making at a time."""
    encode, second_done = envelope.encode, threading.Event()

    def second_first(record: Record) -> bytes:
        assert isinstance(record, HiddenChunk)
        if record.chunk_index == 0:
            assert second_done.wait(LIMIT_S), "the second is not encoded beside the first"
        data = encode(record)
        if record.chunk_index == 1:
            second_done.set()
        return data

    monkeypatch.setattr(envelope, "encode", second_first)
    outbox, sent = Recorded(), list(chunks(1))
    outbox.open.set()
    shipped = shipping(outbox, list(sent), [])
    await ended(shipped, lambda: len(outbox.came) == len(sent))
    assert order(outbox.came) == order(sent)
    assert shipped.num_rows == sum(len(chunk.token_ids) for chunk in sent)


async def test_cancelled_while_waiting_for_room_it_leaves_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither lost nor encoded again, nor sent twice."""
    encode, encoded = envelope.encode, []

    def counted(record: Record) -> bytes:
        encoded.append(record)
        return encode(record)

    monkeypatch.setattr(envelope, "encode", counted)
    outbox, sent = Recorded(), [chunk for number in range(3) for chunk in chunks(number)]
    shipped = shipping(outbox, list(sent), [])
    await ended(shipped, lambda: len(encoded) == module._ENCODERS)
    assert outbox.came == []
    outbox.open.set()
    await asyncio.wait_for(shipped.rest(), LIMIT_S)
    assert order(outbox.came) == order(sent) and len(encoded) == len(sent)


async def test_what_the_engine_left_at_its_end_leaves_with_the_rest() -> None:
    """The ring is emptied when the engine has ended, which is after the loops have."""
    outbox, given, told = Recorded(), list(chunks(1)), list[str]()
    outbox.open.set()
    shipped = shipping(outbox, given, told)
    await ended(shipped, lambda: len(outbox.came) == 2)
    given += chunks(2)
    await asyncio.wait_for(shipped.rest(), LIMIT_S)
    assert order(outbox.came) == order([*chunks(1), *chunks(2)])


async def test_an_engine_that_fails_at_its_end_keeps_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken before leaves."""
    outbox, sent = Recorded(), list(chunks(1))
    outbox.open.set()
    shipped = shipping(outbox, [], [])
    shipped._taken.extend(sent)

    def failing(max_bytes: int) -> list[HiddenChunk]:
        raise EngineError("gone")

    monkeypatch.setattr(shipped._engine, "take_chunks", failing)
    await asyncio.wait_for(shipped.rest(), LIMIT_S)
    assert order(outbox.came) == order(sent)


async def test_what_cannot_be_encoded_is_told_and_holds_nothing_up() -> None:
    """Infinity under int8; the next chunk leaves."""
    first, second = chunks(1)
    bad = np.full_like(first.aux, 0x7F80)
    outbox, told = Recorded(), list[str]()
    outbox.open.set()
    shipped = shipping(outbox, [dataclasses.replace(first, aux=bad, codec="int8-block64"), second], told)
    await ended(shipped, lambda: len(outbox.came) == 1)
    assert order(outbox.came) == order([second]) and shipped.num_refused == 1
    assert "int8-block64" in told[0]


async def test_one_that_fails_is_raised_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours is seen by whoever runs the loop; the chunk that met it does not stand in the way."""
    encode = envelope.encode

    def failing(record: Record) -> bytes:
        assert isinstance(record, HiddenChunk)
        if record.chunk_index == 0:
            raise RuntimeError("a bug")
        return encode(record)

    monkeypatch.setattr(envelope, "encode", failing)
    outbox, sent = Recorded(), list(chunks(1))
    outbox.open.set()
    shipped = shipping(outbox, list(sent), [])
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(shipped.run(), LIMIT_S)
    await ended(shipped, lambda: bool(outbox.came))
    assert order(outbox.came) == order(sent[1:])
