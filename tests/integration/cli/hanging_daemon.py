"""A daemon with one role that hangs when SIGUSR1 comes: `blocked` never returns to the loop, `waiting` waits for ever.

Everything but the role is the real thing.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tide_daemon import config, log
from tide_daemon.daemon import Daemon
from tide_daemon.notify import Notifier
from tide_daemon.roles.heartbeat import Heartbeat


class HangingRole:
    def __init__(self, how: str) -> None:
        self._how = how
        self._heartbeat = Heartbeat({"work": 0.5})
        self._hang = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._hang.set)
        self._heartbeat.start()
        while not stop.is_set():
            self._heartbeat.beat("work")
            if self._hang.is_set():
                if self._how == "blocked":
                    hang_here()
                await asyncio.Event().wait()
            await asyncio.sleep(0.05)

    def snapshot(self) -> Mapping[str, object]:
        return {}

    def health(self) -> Mapping[str, str]:
        return {}

    def ready(self) -> bool:
        return True

    def late(self) -> Mapping[str, float]:
        return self._heartbeat.late()


def hang_here() -> None:
    time.sleep(600)


class NoBus:
    connected, problem = True, ""


@asynccontextmanager
async def no_bus(_resolved: object) -> AsyncIterator[NoBus]:
    yield NoBus()


def main() -> int:
    how, state_dir = sys.argv[1:]
    settings = [f"node.state_dir={Path(state_dir)}", "bus.url=nats://127.0.0.1:1", "status.enabled=false"]
    notifier = Notifier.from_environment(os.environ)
    faulthandler.enable()
    log.configure()
    resolved = config.load(("controller",), None, {}, settings)
    daemon = Daemon(resolved, no_bus, lambda *_: HangingRole(how), notifier=notifier)  # type: ignore[arg-type]
    return asyncio.run(daemon.run())


if __name__ == "__main__":
    sys.exit(main())
