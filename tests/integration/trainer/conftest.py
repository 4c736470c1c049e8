"""Fixtures of the trainer's integration tests."""

from pathlib import Path

import pytest

from tests.trainer_samples import write_target
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Folder of the tiny target."""
    return write_target(tmp_path / "target")


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(build_topology(TopologyLimits(ack_wait_s=1.0)))


@pytest.fixture
def bus(broker: MemoryBroker) -> MemoryBus:
    return MemoryBus(broker)
