"""Runs roles side by side: one that fails is built and run again after a growing pause, the others go on.

Signals, the broker and the drain deadline are not here, see daemon.py.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from tide_daemon import log as logging_setup
from tide_daemon.clock import Clock
from tide_daemon.errors import TideError
from tide_daemon.roles.port import Role

log = structlog.get_logger()

FIRST_PAUSE_S = 0.5
CALM_AFTER_S = 60.0
"""A role that ran this long before it failed begins again with the first pause."""


class RoleRunner:
    """One role, run again and again until told to stop.

    Attributes:
        name: "server", "trainer" or "controller".
        state: "starting", "running", "failed" (waiting to run again) or "stopped".
        num_failures: since the daemon started.
        last_error: why it failed last, "" if it never did.
    """

    def __init__(self, name: str, build: Callable[[], Role], clock: Clock, pause_max_s: float) -> None:
        self.name = name
        self.state = "starting"
        self.num_failures = 0
        self.last_error = ""
        self._build = build
        self._clock = clock
        self._pause_max_s = pause_max_s
        self._role: Role | None = None

    def prepare(self) -> None:
        """Build the role for its first run, so that what is missing shows before anything is started.

        Raises:
            whatever the builder raises: ImportError for a missing package, ConfigError, ...
        """
        self._role = self._build()

    async def run(self, stop: asyncio.Event) -> None:
        """Run the role until `stop` is set and it has finished. Cancellation ends the role at once."""
        logging_setup.bind(role=self.name)
        pause_s = FIRST_PAUSE_S
        try:
            while not stop.is_set():
                started = self._clock.monotonic()
                error = await self._run_once(stop)
                if error is None:
                    break
                if self._clock.monotonic() - started >= CALM_AFTER_S:
                    pause_s = FIRST_PAUSE_S
                self.state, self.last_error = "failed", error
                self.num_failures += 1
                log.error("role_failed", error=error, num_failures=self.num_failures, next_run_in_s=pause_s)
                await self._pause(stop, pause_s)
                pause_s = min(2 * pause_s, self._pause_max_s)
        finally:
            self.state = "stopped"
            log.info("role_stopped")

    def snapshot(self) -> dict[str, object]:
        """State of the run, and the role's own snapshot under "snapshot"."""
        return {
            "state": self.state,
            "num_failures": self.num_failures,
            "last_error": self.last_error,
            "snapshot": {} if self._role is None else dict(self._role.snapshot()),
        }

    def health(self) -> Mapping[str, str]:
        """The role's dependencies, and the run itself as "run"."""
        if self.state == "running" and self._role is not None:
            stuck = {loop: f"stuck for {seconds:.0f} s" for loop, seconds in self._role.late().items()}
            return {"run": "ok", **self._role.health(), **stuck}
        because = f": {self.last_error}" if self.state == "failed" else ""
        return {"run": f"{self.state}{because}"}

    def late(self) -> Mapping[str, float]:
        """Loops of a running role that do not come round, and for how many seconds."""
        return self._role.late() if self.state == "running" and self._role is not None else {}

    def ready(self) -> bool:
        """True while it runs and says that it can work."""
        return self.state == "running" and self._role is not None and self._role.ready()

    def reconfigure(self, apply: Callable[[str, Role], None]) -> None:
        """Have a built role take over settings; one that is built later reads them by itself."""
        if self._role is not None:
            apply(self.name, self._role)

    async def _run_once(self, stop: asyncio.Event) -> str | None:
        """Why the run failed, None if it ended because `stop` was set."""
        try:
            role = self._role if self.num_failures == 0 and self._role is not None else self._build()
            self._role = role
            self.state = "running"
            log.info("role_started")
            await role.run(stop)
        except TideError as error:
            return str(error) or type(error).__name__
        except Exception as error:  # a bug in one role must not end the others
            log.exception("role_raised")
            return f"{type(error).__name__}: {error}"
        return None if stop.is_set() else "the role ended by itself"

    async def _pause(self, stop: asyncio.Event, seconds: float) -> None:
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(self._clock.sleep(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
