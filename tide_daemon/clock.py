"""Time as a value that is handed in, so that tests move it and policies never read it.

Two readings: `time()` for stamps that travel (unix seconds, may jump), `monotonic()` for intervals.
"""

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Where a component gets its time from and where it waits."""

    def time(self) -> float:
        """Unix seconds. May jump in either direction; use it for stamps only."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back. Use it for intervals and deadlines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that long by `monotonic()`. May be cancelled at any moment."""
        ...


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since boot or so."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Real waiting."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock for tests: time stands still until `advance` moves it, waking the sleepers in order."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def time(self) -> float:
        """`start` plus what was advanced, unix seconds."""
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Returns once the clock has been advanced that far; at once for zero or less."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), waiter))
        await waiter

    async def advance(self, seconds: float) -> None:
        """Move time forward; every sleeper due wakes at its own moment and may sleep again."""
        end = self._elapsed + seconds
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, waiter = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, due)
            if not waiter.done():
                waiter.set_result(None)
            await _settle()
        self._elapsed = end


async def _settle(turns: int = 10) -> None:
    """Let tasks that are ready run until they wait again."""
    for _ in range(turns):
        await asyncio.sleep(0)
