"""Frames between daemon and worker: a message, the end, or one error."""

import asyncio
import io
import struct

import pytest

from tide_daemon.trainer.pipe import PipeError, pack, read_async, read_blocking

GARBAGE = [b"", b"\xc1", b"\x81\xa1a", b"\x93\x01", b"\x01\x02", b"\xff" * 9, b"[INFO] loading"]


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def asynchronously(data: bytes) -> object:
    async def read() -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await read_async(reader)

    return asyncio.run(read())


def test_a_message_comes_out_as_it_went_in() -> None:
    """By either reader; a stream that ends inside a frame has ended."""
    message = {"event": "progress", "step": 3}
    assert read_blocking(io.BytesIO(pack(message))) == asynchronously(pack(message)) == message
    assert read_blocking(io.BytesIO(pack(message)[:-1])) is None and asynchronously(pack(message)[:-1]) is None


@pytest.mark.parametrize("body", GARBAGE)
def test_what_is_no_message_is_a_pipe_error(body: bytes) -> None:
    """Something else that writes to the pipe ends the worker, not the role."""
    data = framed(body)
    with pytest.raises(PipeError):
        read_blocking(io.BytesIO(data))
    with pytest.raises(PipeError):
        asynchronously(data)
