"""The relay between a role and the broker: it copies, holds back, and strikes at one message."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fault_runs.relay import Relay


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Relay, asyncio.StreamReader, asyncio.StreamWriter, bytearray]]:
    """A relay, a client's ends, and what has reached the other side."""
    arrived = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            arrived.extend(data)
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    relay = Relay(lambda: int(server.sockets[0].getsockname()[1]))
    await relay.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        yield relay, reader, writer, arrived
    finally:
        writer.close()
        await relay.close()
        server.close()


async def test_what_is_held_back_arrives_later() -> None:
    """In its order, once it is released."""
    async with relayed() as (relay, reader, writer, arrived):
        relay.hold("sent")
        writer.write(b"one ")
        await writer.drain()
        await asyncio.sleep(0.05)
        assert not arrived
        relay.release()
        writer.write(b"two")
        assert await reader.readexactly(7) == b"one two"


async def test_it_strikes_before_the_message_is_through() -> None:
    """What came before has arrived, nothing of the message has, even when it comes in two pieces."""
    struck = asyncio.Event()
    async with relayed() as (relay, reader, writer, arrived):
        relay.strike("sent", rb"HPUB a\.manifest [^\r\n]*\r\n", struck.set)
        writer.write(b"HPUB a.00000 1 1\r\nx\r\nHPUB a.mani")
        await writer.drain()
        assert await reader.readexactly(21) == b"HPUB a.00000 1 1\r\nx\r\n"
        writer.write(b"fest 1 1\r\ny\r\n")
        await asyncio.wait_for(struck.wait(), 5)
        assert await reader.read() == b""
        assert bytes(arrived) == b"HPUB a.00000 1 1\r\nx\r\n"
