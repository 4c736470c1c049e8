"""The page's news: a stream of server-sent events, and the last half hour for its charts.

    event: history   once at the start: [[unix seconds, {name: number}], ...]
    event: state     at once and every second: see page_state.py

A viewer that reads too slowly is dropped, and there is room for a fixed number of them: the page must never be what
keeps a daemon busy. The browser connects again by itself.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import orjson
import structlog
from aiohttp import web

from tide_daemon.status.page_state import page_state
from tide_daemon.status.source import Source

log = structlog.get_logger()

STATE_INTERVAL_S = 1.0
POINT_INTERVAL_S = 2.0
KEPT_POINTS = 900
"""Half an hour."""
MAX_VIEWERS = 16
_WRITE_LIMIT_S = 20.0
_RETRY_MS = 1000


class Live:
    """What all viewers share. `run` samples the charts' points; `stop` ends every stream."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._points: deque[tuple[float, dict[str, float]]] = deque(maxlen=KEPT_POINTS)
        self._num_viewers = 0
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep the history, until cancelled. A point that cannot be made is missing; the next one may be there."""
        problem = ""
        while True:
            try:
                self._add_point(time.time())
                problem = ""
            except Exception as error:
                if repr(error) != problem:
                    log.exception("chart_point_not_made")
                problem = repr(error)
            await asyncio.sleep(POINT_INTERVAL_S)

    def _add_point(self, now: float) -> None:
        point = page_state(self._source, now)["point"]
        assert isinstance(point, dict)
        self._points.append((round(now, 1), point))

    def stop(self) -> None:
        """Have every stream end at once."""
        self._stopping.set()

    async def events(self, request: web.Request, may_look: Callable[[], bool]) -> web.StreamResponse:
        """One viewer, for as long as it reads and may look."""
        if self._num_viewers >= MAX_VIEWERS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_VIEWERS} pages are open already\n")
        self._num_viewers += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await response.prepare(request)
            with contextlib.suppress(ConnectionError, TimeoutError):
                await self._send(response, may_look)
            return response
        finally:
            self._num_viewers -= 1

    async def _send(self, response: web.StreamResponse, may_look: Callable[[], bool]) -> None:
        await _write(response, b"retry: %d\n\n" % _RETRY_MS)
        await _write(response, _event("history", list(self._points)))
        while may_look() and not self._stopping.is_set():
            await _write(response, _event("state", page_state(self._source, time.time())))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_INTERVAL_S):
                    await self._stopping.wait()


def _event(name: str, value: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_WRITE_LIMIT_S):
        await response.write(data)
