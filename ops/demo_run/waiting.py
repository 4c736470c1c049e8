"""Waiting for something that another process does."""

import asyncio
from collections.abc import Awaitable, Callable

READY_TIMEOUT_S = 300.0
"""SGLang imports for 20-50 s on two cores, more when both are busy."""


class StartError(RuntimeError):
    """A process ended or did not become ready in time."""


async def poll(condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str, interval_s: float = 0.5) -> None:
    """Return when `condition` holds.

    Raises:
        StartError: it did not within `timeout_s`.
    """
    end = asyncio.get_running_loop().time() + timeout_s
    while not await condition():
        if asyncio.get_running_loop().time() > end:
            raise StartError(f"{what} was not ready after {timeout_s:.0f} s")
        await asyncio.sleep(interval_s)
