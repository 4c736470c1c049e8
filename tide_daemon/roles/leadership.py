"""Whether a controller leads, as a node can see it: somebody holds the lease on the bus.

A broker that answers says nothing about that. So a node looks at the lease now and then; the look costs one small
request. Where the lease cannot be read (it was never answered for), a connection has to do.
"""

import asyncio
import time
from collections.abc import Callable

from tide_daemon.bus.lease import is_held
from tide_daemon.bus.port import Bus
from tide_daemon.errors import BusError

_TIMEOUT_S = 5.0


def lease_name(model: str) -> str:
    """Name of the lease that the leading controller of a model holds."""
    return f"controller-{model}"


class Leadership:
    """Since when nobody leads who could be heard. Changed by `look` and `away_s` only.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._clock = clock
        self._reached_at = clock()
        self._is_answered = False

    def away_s(self) -> float:
        """Seconds since somebody was last known to lead; counted from the start if nobody was yet."""
        now = self._clock()
        if self._bus.connected and not self._is_answered:
            self._reached_at = now
        return now - self._reached_at

    async def look(self, model: str) -> None:
        """Look at the lease once. No answer is no leader: a controller would not be heard either."""
        began = self._clock()
        try:
            held = await is_held(self._bus, lease_name(model), timeout_s=_TIMEOUT_S)
        except BusError:
            return
        if not self._is_answered or held:
            self._is_answered, self._reached_at = True, began

    async def watch(self, model: str, interval_s: float) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look(model)
            await asyncio.sleep(interval_s)
