"""A TCP relay in front of nats-server that can keep back what a client sends, and let it through later."""

import asyncio
import contextlib


class Relay:
    """Forwards both ways. While held, what clients send waits here; what the server sends still arrives."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_kept_bytes = 0

    async def start(self) -> str:
        """Listen on a free port; returns the URL for clients."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        for work in (self._pump(reader, up_writer, sent=True), self._pump(up_reader, writer, sent=False)):
            task = asyncio.create_task(work)
            self._tasks.add(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sent: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if sent and not self._open.is_set():
                    self.num_kept_bytes += len(data)
                    await self._open.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
