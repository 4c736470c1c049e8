"""Messages between the trainer daemon and its worker process: msgpack maps with a length prefix, over pipes.

A frame is a 4-byte little-endian length and that many bytes of one msgpack map. Both ends are our own processes of
the same release, so there is no version and no checksum; a length over the bound means that something else wrote to
the pipe (a library's print) and ends the connection.

Commands (daemon to worker), by "do": open, train, score, stop.
Events (worker to daemon), by "event": ready, progress, finished, stopped, failed. Those of a job carry its "job" id.
See worker.py for their fields.
"""

import asyncio
import struct
from typing import Any, BinaryIO

import msgpack

MAX_FRAME_BYTES = 16 * 1024 * 1024
_LENGTH = struct.Struct("<I")

Message = dict[str, Any]


class PipeError(Exception):
    """The other end of a pipe wrote something that is no frame."""


def pack(message: Message) -> bytes:
    """One frame."""
    data: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(data)) + data


def _unpack(data: bytes) -> Message:
    try:
        message = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise PipeError(f"a frame holds no message: {error}") from error
    if not isinstance(message, dict):
        raise PipeError("a frame is not a map")
    return message


def _length(prefix: bytes) -> int:
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_FRAME_BYTES:
        raise PipeError(f"a frame of {length} bytes: something other than the worker wrote to its pipe")
    return int(length)


def read_blocking(file: BinaryIO) -> Message | None:
    """The next frame, None at the end of the stream (the other process is gone)."""
    prefix = file.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    data = file.read(length := _length(prefix))
    return _unpack(data) if len(data) == length else None


async def read_async(reader: asyncio.StreamReader) -> Message | None:
    """The next frame, None at the end of the stream."""
    try:
        return _unpack(await reader.readexactly(_length(await reader.readexactly(_LENGTH.size))))
    except asyncio.IncompleteReadError:
        return None
