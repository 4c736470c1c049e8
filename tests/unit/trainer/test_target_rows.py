"""The target's frozen tensors travel over the bus and arrive bit for bit, or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainer_samples import SPEC, write_target
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import WireError
from tide_daemon.roles.target_rows import fetch_target_rows, is_intact, publish_target_rows
from tide_daemon.trainer.frozen import load_frozen
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import TargetRows


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(MemoryBroker(build_topology(TopologyLimits()), max_payload=24_000))


async def test_rows_arrive_bit_for_bit(bus: MemoryBus, tmp_path: Path) -> None:
    """A trainer without a file of the target reads the very tensors of the server's."""
    source = write_target(tmp_path / "target")
    assert not await fetch_target_rows(bus, SPEC, tmp_path / "fetched")
    assert await publish_target_rows(bus, SPEC, source) > 5
    assert await publish_target_rows(bus, SPEC, source) == 0
    assert await fetch_target_rows(bus, SPEC, tmp_path / "fetched")
    here, there = load_frozen(source), load_frozen(tmp_path / "fetched")
    assert here.config == there.config
    assert torch.equal(here.embed_tokens, there.embed_tokens)
    assert torch.equal(here.norm, there.norm)
    assert here.last_layer is not None and there.last_layer is not None
    assert all(torch.equal(tensor, there.last_layer[name]) for name, tensor in here.last_layer.items())
    assert is_intact(tmp_path / "fetched")
    (tmp_path / "fetched" / "model.safetensors").write_bytes(b"torn")
    assert not is_intact(tmp_path / "fetched")


async def test_rows_of_another_target_are_refused_and_replaced(bus: MemoryBus, tmp_path: Path) -> None:
    """A trainer takes only its own target's rows; a server with another target purges the old ones."""
    source = write_target(tmp_path / "target")
    await publish_target_rows(bus, SPEC, source)
    other = replace(SPEC, target_fingerprint="00" * 32)
    with pytest.raises(WireError, match="another target"):
        await fetch_target_rows(bus, other, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    assert await publish_target_rows(bus, other, source) > 5
    assert await fetch_target_rows(bus, other, tmp_path / "fetched")


async def test_a_hole_in_the_rows_is_reported(bus: MemoryBus, tmp_path: Path) -> None:
    """The message says which rows are missing."""
    await publish_target_rows(bus, SPEC, write_target(tmp_path / "target"))
    await bus.purge(subjects.target_rows("tiny", "embed_tokens", 0))
    with pytest.raises(WireError, match="rows from 0 of the target's embed_tokens"):
        await fetch_target_rows(bus, SPEC, tmp_path / "fetched")


async def publish_config(bus: MemoryBus, text: bytes) -> None:
    """A hostile or damaged config.json among rows that are right."""
    record = TargetRows(SPEC, "config", 0, len(text) // 2, len(text) // 2, 1, text)
    await bus.publish(subjects.subject_of("tiny", record), envelope.encode(record))


@pytest.mark.parametrize("text", [b"{ ", b"\xff\xff", b"[" * 5000, b"[]", b"7 "], ids=lambda text: repr(text[:8]))
async def test_a_config_that_is_none_is_refused(bus: MemoryBus, tmp_path: Path, text: bytes) -> None:
    """As something wrong on the bus, which a trainer reports, and tries again."""
    await publish_target_rows(bus, SPEC, write_target(tmp_path / "target"))
    await publish_config(bus, text)
    with pytest.raises(WireError):
        await fetch_target_rows(bus, SPEC, tmp_path / "fetched")


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": "two"},
        {"num_hidden_layers": 1e999},
        {"num_hidden_layers": [2]},
        {"intermediate_size": -5},
        {"intermediate_size": 0},
        {"intermediate_size": 1e999},
        {"num_key_value_heads": "x"},
        {"head_dim": 2**70},
        {"head_dim": -8},
    ],
    ids=str,
)
async def test_a_config_with_odd_numbers_is_refused(bus: MemoryBus, tmp_path: Path, change: dict[str, object]) -> None:
    """Nothing but WireError, whatever the numbers are; and nothing is written."""
    await publish_target_rows(bus, SPEC, write_target(tmp_path / "target"))
    config = json.loads((tmp_path / "target" / "config.json").read_text()) | change
    text = json.dumps({name: value for name, value in config.items() if value is not None}).encode()
    await publish_config(bus, text + b" " * (len(text) % 2))
    with pytest.raises(WireError):
        await fetch_target_rows(bus, SPEC, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
