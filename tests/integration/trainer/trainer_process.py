"""A trainer daemon as a process of its own: python -m tests.integration.trainer.trainer_process URL STATE TARGET."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from tests.integration.trainer.harness import SETTINGS, SLOW
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.roles.trainer import TrainerRole


async def main() -> None:
    url, state_dir, target = sys.argv[1:]
    bus = await JetStreamBus.connect(ConnectSettings(urls=(url,), name="t1"), build_topology(TopologyLimits()))
    settings = replace(SETTINGS, target_path=target, **SLOW)
    await TrainerRole(bus, settings, Path(state_dir)).run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main())
