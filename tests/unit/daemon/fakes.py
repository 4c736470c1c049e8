"""Roles and a bus for the daemon's tests: real small implementations of the ports, steered by the test."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tide_daemon.bus.port import Bus
from tide_daemon.config import Resolved, load


def resolved(state_dir: Path, *roles: str, **settings: object) -> Resolved:
    """A configuration for these roles on a free status port."""
    assignments = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return load(
        roles,
        None,
        {},
        [
            f"node.state_dir={state_dir}",
            "node.name=n1",
            "bus.url=nats://127.0.0.1:1",
            "status.port=0",
            "server.model_path=/m",
            *assignments,
        ],
    )


class ScriptedRole:
    """A role that does what `script` says; it counts its runs and how each ended."""

    def __init__(self, name: str = "controller", script: str = "until_stopped") -> None:
        self.name = name
        self.script = script
        self.events: list[str] = []
        self.running = asyncio.Event()
        self.stuck: dict[str, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        self.events.append("run")
        self.running.set()
        try:
            if self.script == "raise":
                raise RuntimeError("the disk is on fire")
            if self.script == "return":
                return
            if self.script == "never_stop":
                await asyncio.Event().wait()
            await stop.wait()
            self.events.append("drained")
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise

    def snapshot(self) -> Mapping[str, object]:
        return {"draft_version": 7, "rows_dropped": 3}

    def health(self) -> Mapping[str, str]:
        return {"engine": "ok"}

    def ready(self) -> bool:
        return True

    def late(self) -> Mapping[str, float]:
        return self.stuck


class IdleBus:
    """A connection that is there and does nothing."""

    def __init__(self) -> None:
        self.connected = True
        self.problem = ""
        self.num_losses = 0
        self.exited = False

    @asynccontextmanager
    async def open(self, _resolved: Resolved) -> AsyncIterator[Bus]:
        try:
            yield self  # type: ignore[misc]  # the daemon asks for no more than this
        finally:
            self.exited = True
