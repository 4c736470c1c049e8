"""The server role beside a bench's SGLang: drains its ring and publishes to a real nats-server, until SIGTERM.

python -m benches.capture_daemon RUN_DIR TARGET_DIR PORT NATS_URL
"""

import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path

from benches.serving import ours
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.engine.sglang.launcher import SglangEngine
from tide_daemon.roles.server import ServerRole, ServerSettings
from tide_daemon.wire.records import TargetSpec


async def no_draft(spec: TargetSpec, version: int, digest: str) -> Path:
    raise AssertionError("nobody asks for a draft here")


async def main(run_dir: Path, target: Path, port: int, url: str) -> None:
    bus = await JetStreamBus.connect(ConnectSettings((url,), "bench server"), build_topology(TopologyLimits()))
    await bus.ensure()
    engine = SglangEngine(replace(ours(target, run_dir), port=port, attach=True))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("running", flush=True)
    role = ServerRole(bus, engine, no_draft, ServerSettings("bench"))
    await role.run(stop)
    print(role.snapshot()["rows_published"], flush=True)
    await bus.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
