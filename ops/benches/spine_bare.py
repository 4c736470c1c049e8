"""The bare pipeline that `spine` is compared with: states through a real nats-server and nothing else.

One producer and one consumer process, as in the figures that the spine's design began from: byte planes and zstd
level 1, msgpack, JetStream with file storage, pull and acknowledge, planes put together again. No ring, no
requests, no checksum, no checks, no top-k, no disk of the consumer's.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import nats
import numpy as np
import zstandard
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, StreamConfig
from numpy.typing import NDArray

from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.wire import tensors

STREAM = "BARE"
SUBJECT = "bare.states"
DURABLE = "bare"
IN_FLIGHT = 8
FETCH = 16
CODEC = "bf16-planes"
LIMIT_S = 300.0


def tokens_per_s(folder: Path, states: Sequence[NDArray[np.uint16]], num_messages: int) -> float:
    """Tokens/s from the first row encoded to the last one decoded.

    Args:
        states: one message's rows each, bf16 bit patterns [n, W]; sent over and over, `num_messages` in all.
    """
    return asyncio.run(_measure(folder, states, num_messages))


async def _measure(folder: Path, states: Sequence[NDArray[np.uint16]], num_messages: int) -> float:
    num_rows = num_messages * len(states[0])
    room = (64 << 20) + 2 * num_messages * states[0].nbytes
    server = EmbeddedServer(EmbeddedSettings(folder, room), told=print)
    url = await server.start()
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(3), context.Queue()
    children = [
        context.Process(target=produce, args=(url, list(states), num_messages, ready, answers), daemon=True),
        context.Process(target=consume, args=(url, num_rows, ready, answers), daemon=True),
    ]
    try:
        client = await nats.connect(url)
        await client.jetstream().add_stream(StreamConfig(STREAM, subjects=[SUBJECT], max_bytes=room))
        await client.close()
        for child in children:
            child.start()
        await asyncio.to_thread(ready.wait, LIMIT_S)
        times = dict([await asyncio.to_thread(answers.get, True, LIMIT_S) for _ in children])
    finally:
        for child in children:
            child.terminate()
            child.join(10)
        await server.stop()
    return num_rows / (times["ended"] - times["began"])


def produce(url: str, states: list[NDArray[np.uint16]], num_messages: int, ready: Any, answers: Any) -> None:
    """Encode and publish, IN_FLIGHT at a time."""
    asyncio.run(_produce(url, states, num_messages, ready, answers))


async def _produce(url: str, states: list[NDArray[np.uint16]], num_messages: int, ready: Any, answers: Any) -> None:
    client: Client = await nats.connect(url)
    stream = client.jetstream()
    compressor = zstandard.ZstdCompressor(level=1)
    await asyncio.to_thread(ready.wait, LIMIT_S)
    began = time.monotonic()
    numbers = iter(range(num_messages))

    async def publish() -> None:
        for number in numbers:
            rows = states[number % len(states)]
            body = compressor.compress(tensors.encode(rows, CODEC))
            await stream.publish(SUBJECT, msgpack.packb({"shape": rows.shape, "aux": body}), timeout=LIMIT_S)

    await asyncio.gather(*(publish() for _ in range(IN_FLIGHT)))
    answers.put(("began", began))
    await client.close()


def consume(url: str, num_rows: int, ready: Any, answers: Any) -> None:
    """Pull, decode and acknowledge until every row was seen."""
    asyncio.run(_consume(url, num_rows, ready, answers))


async def _consume(url: str, num_rows: int, ready: Any, answers: Any) -> None:
    client: Client = await nats.connect(url)
    puller = await client.jetstream().pull_subscribe(SUBJECT, DURABLE, config=ConsumerConfig(max_ack_pending=-1))
    decompressor = zstandard.ZstdDecompressor()
    await asyncio.to_thread(ready.wait, LIMIT_S)
    seen = 0
    while seen < num_rows:
        try:
            messages = await puller.fetch(FETCH, timeout=5)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            entries = msgpack.unpackb(message.data)
            seen += len(tensors.decode(decompressor.decompress(entries["aux"]), *entries["shape"], CODEC))
            await message.ack()
    answers.put(("ended", time.monotonic()))
    await client.close()
