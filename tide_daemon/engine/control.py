"""The control channel between the daemon and the plug-in inside the engine process.

A Unix stream socket (0600). One connection carries one request and one answer, each a length-prefixed
msgpack map. The serving side runs in a background thread of the engine process; its handlers only set
plain attributes or a pending slot that the step loop reads, so the step loop never waits for a socket.

    frame     u32 big-endian length, then that many bytes of msgpack
    request   {"v": 1, "command": str, "args": map}
    answer    {"v": 1, "ok": true, "value": map} or {"v": 1, "ok": false, "error": str}

Bytes from either side are not trusted: the length is checked before reading, msgpack's own limits bound
what it builds, and anything unexpected gives one error and closes the connection. No pickle.

At most MAX_CONNECTIONS at a time, each with a thread. When all are taken, the oldest of those that wait for their
peer, to send the rest of a request or to take the answer, makes room for the next caller; where all of them are
at work the next caller is turned away.
"""

import asyncio
import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgpack

from tide_daemon.errors import EngineError, EngineRefusedError, TideError

CONTROL_VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 64 * 1024
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
MAX_CONNECTIONS: Final = 4
IDLE_TIMEOUT_S: Final = 10.0
_BACKLOG: Final = 64
"""Callers that the kernel keeps for us; a caller that finds it full is turned away."""
_ROOM_TIMEOUT_S: Final = 1.0
"""For the thread of a connection that makes room to end."""
MAX_SOCKET_PATH: Final = 107

_LENGTH = struct.Struct(">I")

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Arguments in, value out. Raises EngineError to refuse."""


def encode_frame(message: Mapping[str, Any], limit: int) -> bytes:
    """A frame.

    Raises:
        EngineError: the message is over `limit` bytes.
    """
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > limit:
        raise EngineError(f"control message of {len(body)} bytes is over the limit of {limit}")
    return _LENGTH.pack(len(body)) + body


def frame_length(prefix: bytes, limit: int) -> int:
    """Length of the body that follows the prefix.

    Raises:
        EngineError: over `limit`, or nothing.
    """
    (length,) = _LENGTH.unpack(prefix)
    if not 0 < length <= limit:
        raise EngineError(f"control frame of {length} bytes; between 1 and {limit} are allowed")
    return int(length)


def decode_body(body: bytes) -> dict[str, Any]:
    """The message of one frame.

    Raises:
        EngineError: not one msgpack map of this protocol's version.
    """
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise EngineError(f"control frame is not msgpack: {type(error).__name__}") from error
    if not isinstance(message, dict) or message.get("v") != CONTROL_VERSION:
        raise EngineError(
            f"control frame is not of version {CONTROL_VERSION}: plug-in and daemon are of different releases"
        )
    return message


def check_socket_path(path: Path) -> None:
    """Raises EngineError when the kernel could not bind this path."""
    if len(str(path).encode()) > MAX_SOCKET_PATH:
        raise EngineError(f"socket path {path} is longer than {MAX_SOCKET_PATH} bytes; choose a shorter run directory")


class ControlServer:
    """Answers requests from a thread of its own until closed."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        """Bind and start.

        Raises:
            EngineError: the path is too long or cannot be bound.
        """
        check_socket_path(path)
        self._path = path
        self._handlers = handlers
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._waits_for: dict[socket.socket, int] = {}
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        temporary = path.with_name(path.name + "~")
        try:
            for stale in (temporary, path):
                stale.unlink(missing_ok=True)
            self._listener.bind(str(temporary))
            temporary.chmod(0o600)
            self._listener.listen(_BACKLOG)
            temporary.rename(path)  # nobody can connect before the mode is set
        except OSError as error:
            self._listener.close()
            raise EngineError(f"cannot listen on {path}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._accept, name="tide-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; a connection under way ends by itself."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=1.0)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False) and not self._make_room():
                connection.close()
                continue
            with self._lock:
                self._waits_for[connection] = select.POLLIN
            threading.Thread(target=self._serve, args=(connection,), name="tide-control-call", daemon=True).start()

    def _make_room(self) -> bool:
        """End the oldest connection whose peer keeps it waiting; True when its place was taken over."""
        with self._lock:
            idle = next((item for item in self._waits_for.items() if _is_idle(*item)), None)
            if idle is None:
                return False
            with contextlib.suppress(OSError):
                idle[0].shutdown(socket.SHUT_RDWR)
        return self._slots.acquire(timeout=_ROOM_TIMEOUT_S)

    def _at(self, connection: socket.socket, waits_for: int) -> None:
        """The connection waits for its peer from now on, as poll() calls it; 0 while it is at work."""
        with self._lock:
            self._waits_for[connection] = waits_for

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                connection.settimeout(IDLE_TIMEOUT_S)
                answer = self._answer(connection)
                self._at(connection, select.POLLOUT)
                connection.sendall(answer)
        finally:
            with self._lock:
                del self._waits_for[connection]
            connection.close()
            self._slots.release()

    def _answer(self, connection: socket.socket) -> bytes:
        try:
            body = _read_exactly(connection, frame_length(_read_exactly(connection, 4), MAX_REQUEST_BYTES))
            self._at(connection, 0)
            message = decode_body(body)
            command, args = message.get("command"), message.get("args")
            handler = self._handlers.get(command) if isinstance(command, str) else None
            if handler is None or not isinstance(args, dict):
                raise EngineError(f"unknown control command; known: {', '.join(sorted(self._handlers))}")
            value = handler(args)
            return encode_frame({"v": CONTROL_VERSION, "ok": True, "value": value}, MAX_ANSWER_BYTES)
        except TideError as error:
            text = str(error)
        except Exception as error:  # a bug in a handler must not take the thread, nor hide
            text = f"{type(error).__name__}: {error}"
        return encode_frame({"v": CONTROL_VERSION, "ok": False, "error": text[:4096]}, MAX_ANSWER_BYTES)


def _is_idle(connection: socket.socket, waits_for: int) -> bool:
    """Whether the peer, and not we, keeps a connection waiting."""
    ready = select.poll()
    ready.register(connection, waits_for)
    return waits_for != 0 and not ready.poll(0)


def _read_exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise EngineError("control connection ended inside a frame")
        parts += part
    return bytes(parts)


class ControlClient:
    """The daemon's end. Connects anew for every call, so a restarted engine needs no care."""

    def __init__(self, path: Path) -> None:
        check_socket_path(path)
        self.path = path

    async def call(self, command: str, timeout_s: float, **args: Any) -> dict[str, Any]:
        """Send one command and return the answer's value. May be cancelled at any point.

        Raises:
            EngineRefusedError: it answered that it does not.
            EngineError: no engine listens, it did not answer in time, or not sensibly.
        """
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._exchange(command, args)
        except TimeoutError as error:
            raise EngineError(f"the engine did not answer {command!r} within {timeout_s:g} s") from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise EngineError(f"no engine answers at {self.path}: {error}") from error
        if message.get("ok") is not True:
            raise EngineRefusedError(f"the engine refused {command!r}: {message.get('error')}")
        value = message.get("value")
        if not isinstance(value, dict):
            raise EngineError(f"the engine's answer to {command!r} holds no value")
        return value

    async def _exchange(self, command: str, args: Mapping[str, Any]) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(encode_frame({"v": CONTROL_VERSION, "command": command, "args": args}, MAX_REQUEST_BYTES))
            await writer.drain()
            length = frame_length(await reader.readexactly(4), MAX_ANSWER_BYTES)
            return decode_body(await reader.readexactly(length))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
