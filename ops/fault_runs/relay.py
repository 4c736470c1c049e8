"""A TCP relay between one role and the broker: it can lose packets, hold them back, or strike at a message.

Roles are told the relay's address instead of the broker's; without a fault it only copies bytes.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable

_READ_BYTES = 1 << 16
_LINE_BYTES = 512
"""Longer than any control line of ours: one that is not complete yet is kept back while we look for one."""


class Relay:
    """Forwards both ways. `port` is where it listens, for good; `target` may change (a cluster's next member)."""

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = {"sent": asyncio.Event(), "received": asyncio.Event()}
        self._strikes: dict[str, tuple[re.Pattern[bytes], Callable[[], None]]] = {}
        self.release()

    async def start(self) -> None:
        """Listen on a free port of the loopback."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def hold(self, *directions: str) -> None:
        """Let nothing through in the given directions, "sent" by the role or "received"; both when none is given."""
        for direction in directions or ("sent", "received"):
            self._open[direction].clear()

    def release(self) -> None:
        """Let everything through, what was held back first."""
        for event in self._open.values():
            event.set()

    def break_off(self) -> None:
        """Close every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def strike(self, direction: str, pattern: bytes, what: Callable[[], None]) -> None:
        """Once, when a control line matches: forward what comes before it, call `what`, and close the connection.

        Args:
            pattern: regular expression that a control line matches as soon as it is complete.
        """
        self._strikes[direction] = (re.compile(pattern), what)

    async def close(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            writer.close()
            return
        self._writers |= {writer, up_writer}
        for direction, source, sink in (("sent", reader, up_writer), ("received", up_reader, writer)):
            task = asyncio.create_task(self._pump(direction, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                await self._open[direction].wait()
                data, kept = kept + data, b""
                if direction in self._strikes:
                    pattern, what = self._strikes[direction]
                    found = pattern.search(data)
                    if found is not None:
                        del self._strikes[direction]
                        writer.write(data[: found.start()])
                        await writer.drain()
                        what()
                        break
                    # A line that is not complete is the last one, and begins behind the last line's end.
                    end = data.rfind(b"\r\n", max(0, len(data) - _LINE_BYTES)) + 2
                    if end > 1:
                        data, kept = data[:end], data[end:]
                writer.write(data)
                await writer.drain()
            writer.write(kept)
        self._writers.discard(writer)
        with contextlib.suppress(OSError):
            writer.close()
