"""Two sides at work at the same time, only one of which runs at any moment: their processes stand still in turn.

A shared machine gets slower or faster by a third within seconds. Two turns of seconds each, one after the other,
compare two moments rather than two sides; slices much shorter than that see the same machine. A side's time is
what its own slices took.
"""

import asyncio
import contextlib
import math
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Side(Protocol):
    """Processes that can stand still."""

    def pause(self) -> None:
        """Stop all of them where they are."""

    def resume(self) -> None:
        """Let them go on."""


class Group:
    """A process group; one that has ended stands still."""

    def __init__(self, pgid: int) -> None:
        self._pgid = pgid

    def pause(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pgid, signal.SIGSTOP)

    def resume(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pgid, signal.SIGCONT)


class Joined:
    """Several sides as one: they run and stand still together, resumed in the order given."""

    def __init__(self, *parts: Side) -> None:
        self._parts = parts

    def pause(self) -> None:
        for part in reversed(self._parts):
            part.pause()

    def resume(self) -> None:
        for part in self._parts:
            part.resume()


def standard_error(figure: str, ratios: Sequence[float]) -> dict[str, float]:
    """The figure: standard error of the mean of rounds' ratios. Nothing with fewer than two: JSON has no NaN."""
    return {figure: statistics.stdev(ratios) / math.sqrt(len(ratios))} if len(ratios) > 1 else {}


async def alternate(sides: Sequence[Side], works: Sequence[Awaitable[T]], turn_s: float) -> list[tuple[T, float]]:
    """Do each side's work, the sides taking turns; all are paused afterwards, and should be before.

    Args:
        works: for each side, what asks it for work and returns when that is done; begun at once.
        turn_s: seconds a side runs before another has its turn; the last side at work goes on in such turns.

    Returns:
        For each side what its work returned, and the seconds that the side ran until then.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    spent = [0.0] * len(tasks)
    try:
        while not all(task.done() for task in tasks):
            for number, (side, task) in enumerate(zip(sides, tasks, strict=True)):
                if task.done():
                    continue
                began = time.perf_counter()
                side.resume()
                await asyncio.wait([task], timeout=turn_s)
                side.pause()
                spent[number] += time.perf_counter() - began
        return [(task.result(), seconds) for task, seconds in zip(tasks, spent, strict=True)]
    finally:
        for task in tasks:
            task.cancel()
