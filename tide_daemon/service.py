"""What systemd hears of a daemon: ready, stopping, reloading, a line of status, and the watchdog's food.

    start      EXTEND_TIMEOUT_USEC at each beat: SGLang may load for minutes, and a start that hangs is still ended
    READY=1    once every role can do its work, not before
    WATCHDOG=1 at each beat while all loops of all roles come round (roles/heartbeat.py). A loop of asyncio
               that is blocked cannot beat, and one loop that waits for ever is not fed for: either way systemd
               aborts us, the traceback of every thread goes to the log (faulthandler), and we are started again
    STOPPING=1 when the drain begins, with time for its deadline

Without systemd nothing is told; the same words are in /readyz.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

import structlog

from tide_daemon.notify import Notifier

log = structlog.get_logger()

_BEAT_S = 10.0
"""Between two beats when no watchdog asks for more."""
_EXTENSION_S = 120.0
"""What each beat of a start or a drain adds. The loop stands still while PyTorch is imported from a slow disk."""
_POLL_S = 0.2
"""Until READY: nobody who waits for us waits much longer than need be."""
_MAX_STATUS = 300


class Watched(Protocol):
    """What is asked of the daemon. All cheap, none blocks."""

    def ready(self) -> bool:
        """Whether every role can do its work."""
        ...

    def health(self) -> Mapping[str, str]:
        """Each dependency: "ok" or what is wrong."""
        ...

    def late(self) -> Mapping[str, float]:
        """Loops that do not come round, and for how many seconds."""
        ...


class ServiceLink:
    """Speaks for one daemon. Run it beside everything else; cancel it last."""

    def __init__(self, notifier: Notifier, watched: Watched, stop: asyncio.Event) -> None:
        self._notifier = notifier
        self._watched = watched
        self._stop = stop
        self._is_ready = False
        self._is_stopping = False
        self._late: frozenset[str] = frozenset()
        self._status = ""
        self._problem = ""
        self._beaten_at = -1e9
        self._beat_s = min(_BEAT_S, notifier.watchdog_s / 3) if notifier.watchdog_s else _BEAT_S

    async def run(self) -> None:
        """For ever. Ends only by cancellation."""
        while True:
            self._turn_or_beat()
            waiting_for_ready = not self._is_ready and not self._is_stopping
            pause_s = min(self._beat_s, _POLL_S) if waiting_for_ready else self._beat_s
            if self._is_stopping:
                await asyncio.sleep(pause_s)
                continue
            try:
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
            except TimeoutError:
                continue

    def _turn_or_beat(self) -> None:
        """A turn, or at least a beat: that what is told cannot be found out is no hang, and no reason to be ended."""
        try:
            self.turn(time.monotonic())
            self._problem = ""
        except Exception as error:
            if (problem := repr(error)) != self._problem:
                log.exception("service_manager_not_told", error=problem)
            self._problem = problem
            if not self._late or self._is_stopping:
                self._notifier.tell(WATCHDOG=1)

    def turn(self, now: float) -> None:
        """Look at the daemon and tell what is due at `now`, monotonic seconds."""
        self._look_for_late()
        if self._stop.is_set() and not self._is_stopping:
            self._is_stopping = self._notifier.tell(STOPPING=1, STATUS="stopping") or not self._notifier.is_heard
        elif not self._stop.is_set() and not self._is_ready and self._watched.ready():
            self._is_ready = self._notifier.tell(READY=1, STATUS="ready") or not self._notifier.is_heard
            if self._is_ready:
                log.info("daemon_ready")
        # A loop of a role that drains has ended, which is no reason to be killed; the drain has its own deadline.
        if now - self._beaten_at < self._beat_s or (self._late and not self._is_stopping):
            return
        self._beaten_at = now
        fields: dict[str, str | int] = {"WATCHDOG": 1}
        if self._is_stopping or not self._is_ready:
            fields["EXTEND_TIMEOUT_USEC"] = int(_EXTENSION_S * 1e6)
        status = self._words()
        if status != self._status:
            fields["STATUS"] = self._status = status
        self._notifier.tell(**fields)

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._notifier.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def reloaded(self, words: str) -> None:
        """That is over, with this result."""
        self._status = ""
        if self._is_ready:
            self._notifier.tell(READY=1, STATUS=words[:_MAX_STATUS])

    def _look_for_late(self) -> None:
        late = self._watched.late() if not self._stop.is_set() else {}
        if late.keys() != self._late:
            if late:
                log.error("loops_late", loops={name: round(seconds, 1) for name, seconds in late.items()})
            self._late = frozenset(late)

    def _words(self) -> str:
        if self._is_stopping:
            return "stopping"
        wrong = [f"{name}: {words}" for name, words in self._watched.health().items() if words != "ok"]
        state = "ready" if self._watched.ready() else "not ready"
        return "; ".join([state, *wrong])[:_MAX_STATUS]
