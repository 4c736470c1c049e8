"""Whether the loops of a role still come round. systemd's watchdog is fed only while all of them do, see watchdog.py.

A loop beats at each turn, when it failed too: a failure is told elsewhere, see port.Role.health. What counts
here is a loop that waits for something that never comes. Each has its own limit, longer than the longest turn that
is still work (a draft that is fetched over a slow link, for one).
"""

import time
from collections.abc import Callable, Mapping


class Heartbeat:
    """When each loop of a role came round last.

    Args:
        limits: loop -> seconds that one turn may take.
        monotonic: seconds that never go back.
    """

    def __init__(self, limits: Mapping[str, float], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limits = dict(limits)
        self._monotonic = monotonic
        self._beaten_at: dict[str, float] = {}

    def start(self) -> None:
        """Count from now on, for every loop: one that never finishes its first turn is late too."""
        self._beaten_at = dict.fromkeys(self._limits, self._monotonic())

    def beat(self, loop: str) -> None:
        """The loop came round."""
        self._beaten_at[loop] = self._monotonic()

    def late(self) -> dict[str, float]:
        """Loops over their limit and the seconds since each came round; empty before `start`."""
        now = self._monotonic()
        return {
            loop: now - beaten_at for loop, beaten_at in self._beaten_at.items() if now - beaten_at > self._limits[loop]
        }
