"""The trainer on a real nats-server, as a process that is killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.trainer.harness import Surroundings, Trainer, eventually
from tests.nats_fixture import NatsServer
from tests.trainer_samples import SPEC
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.draft import checkpoint
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.roles.target_rows import publish_target_rows
from tide_daemon.trainer.rounds import Rounds
from tide_daemon.wire.records import TrainerReport

TOPOLOGY = build_topology(TopologyLimits())


@pytest.fixture
async def real_bus(nats_server: NatsServer) -> AsyncIterator[JetStreamBus]:
    bus = await JetStreamBus.connect(
        ConnectSettings(urls=(nats_server.url,), name="test", reconnect_wait_s=0.1), TOPOLOGY
    )
    await bus.ensure()
    yield bus
    await bus.close()


async def start(server: NatsServer, state_dir: Path, target: Path) -> asyncio.subprocess.Process:
    module = "tests.integration.trainer.trainer_process"
    return await asyncio.create_subprocess_exec(sys.executable, "-m", module, server.url, str(state_dir), str(target))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_kill_9_of_the_daemon_in_a_round(
    nats_server: NatsServer, real_bus: JetStreamBus, target: Path, tmp_path: Path
) -> None:
    """Its worker ends by itself; the next daemon has every sample, goes on with the round and publishes one version."""
    around = Surroundings(real_bus)
    await around.serve(40)
    await around.desire(1)
    daemon = await start(nats_server, tmp_path / "state", target)

    async def in_the_middle() -> TrainerReport | None:
        report = await around.report()
        return report if report.step > 8 else None

    before = await eventually(in_the_middle, 60)
    (worker,) = children(daemon.pid)
    daemon.send_signal(signal.SIGKILL)
    await daemon.wait()
    plan = Rounds(tmp_path / "state").open(1).read("plan")

    async def worker_is_gone() -> bool | None:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return True
        return None

    await eventually(worker_is_gone, 20)
    again = await start(nats_server, tmp_path / "state", target)
    manifest = await around.manifest(1)
    after = await around.report()
    assert (after.num_requests, after.round, after.num_tokens) == (40, 1, before.num_tokens)
    assert Rounds(tmp_path / "state").open(1).read("plan") == plan
    assert await around.versions(range(1, 4)) == [1]
    path = await DraftFetcher(real_bus, tmp_path / "cache").fetch(SPEC, 1, manifest.content_digest)
    assert checkpoint.load(path).digest == manifest.content_digest
    again.kill()
    await again.wait()


async def test_kill_9_of_the_broker_in_a_round(
    nats_server: NatsServer, real_bus: JetStreamBus, target: Path, tmp_path: Path
) -> None:
    """Training goes on; samples and the draft arrive when the broker is back."""
    around = Surroundings(real_bus)
    trainer = Trainer(real_bus, tmp_path / "state", target, replay_share=0.9, batch_tokens=64)
    await around.serve(40)
    await around.desire(1)
    shown = await trainer.until(lambda shown: shown["step"] > 4)  # type: ignore[operator]
    nats_server.kill()
    await trainer.until(lambda now: now["step"] > shown["step"] + 4)  # type: ignore[operator]
    nats_server.start()
    await around.manifest(1)
    await around.serve(5)
    await trainer.until(lambda now: now["num_requests"] == 45)
    await trainer.stop()


async def test_a_trainer_without_a_file_of_the_target_fetches_its_rows(
    real_bus: JetStreamBus, target: Path, tmp_path: Path
) -> None:
    """It says what it waits for, and begins when a server has published them."""
    around = Surroundings(real_bus)
    trainer = Trainer(real_bus, tmp_path / "state", None)
    await around.serve(40)
    await around.desire(1)
    await trainer.until(lambda shown: "frozen tensors" in str(shown["problems"]))
    await publish_target_rows(real_bus, SPEC, target)
    await around.manifest(1)
    await trainer.stop()
