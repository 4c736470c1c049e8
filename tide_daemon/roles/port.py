"""What the daemon asks of a role, whichever role it is. supervisor.py runs them, status/ shows them.

A role is built for one run: after a failure the daemon builds a new one. It owns what it starts
(engine, worker processes) and must have ended it when `run` returns or is cancelled.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol


class Role(Protocol):
    """A server, a trainer or a controller."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what was begun and return.

        The daemon cancels it at the drain deadline; cancellation ends children at once. Any exception,
        or returning before `stop` was set, counts as a failure and the role is built and run again.
        """
        ...

    def snapshot(self) -> Mapping[str, object]:
        """Plain values (JSON) that describe the state right now, for /status, /metrics and the page.

        Cheap, never blocks, never holds prompts or token ids. Keys that become metrics are listed in
        status/metrics.py.
        """
        ...

    def health(self) -> Mapping[str, str]:
        """Each thing it depends on by name: "ok", or a sentence that says what is wrong."""
        ...

    def ready(self) -> bool:
        """Whether it can do its work now."""
        ...

    def late(self) -> Mapping[str, float]:
        """Its loops that wait for something that never comes, and for how many seconds; see heartbeat.py."""
        ...
