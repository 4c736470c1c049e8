"""Which desired state a trainer takes."""

import asyncio
from pathlib import Path

from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.roles.trainer import TrainerRole
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredTrainer


async def test_a_broker_that_lost_its_disk_is_obeyed_again(tmp_path: Path) -> None:
    """Tokens and generations begin again there, below what the trainer has seen; within that life they grow."""
    broker = MemoryBroker(build_topology(TopologyLimits()))
    bus = MemoryBus(broker)
    role = TrainerRole(bus, TrainerSettings(name="t1", model="m", draft_vocab_size=96), tmp_path)
    following = asyncio.create_task(role._follow())

    async def takes(generation: int, token: int) -> bool:
        desired = DesiredTrainer("t1", generation, token, 0.0, 1, 0, "", "a test", (), 0, 8)
        await bus.publish(subjects.control_trainer("m", "t1"), envelope.encode(desired))
        await asyncio.sleep(0.05)
        return role.snapshot()["desired_round"] == 1 and role._desired == desired

    assert await takes(7, 400_000)
    assert not await takes(8, 399_999)
    broker.lose_disk()
    await bus.publish(subjects.control_trainer("m", "t0"), b"another one is asked first")
    assert await takes(2, 3)
    assert not await takes(9, 2)
    assert await takes(3, 3)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
