"""A draft on the bus becomes a folder, whole or not at all."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.trainer_samples import SPEC, write_target
from tests.unit.trainer.test_publish import SCORES, make_round
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.draft import checkpoint
from tide_daemon.errors import ConfigError, DraftError
from tide_daemon.policy.events import FleetState
from tide_daemon.policy.instructions import FleetMoved, instruction_to_map
from tide_daemon.roles.draft_publish import Publisher
from tide_daemon.tools.export import export
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import NO_DRAFT, Decision


@pytest.fixture
async def bus(tmp_path: Path) -> MemoryBus:
    """Holds versions 1 and 2."""
    bus = MemoryBus(MemoryBroker(build_topology(TopologyLimits())))
    publisher = Publisher(bus, SPEC, "t1", 8)
    for number in (1, 2):
        await publisher.publish(make_round(tmp_path / "state", number), SCORES, 3, None, NO_DRAFT)
    return bus


async def serve(bus: MemoryBus, version: int) -> None:
    """Journal that a version is served."""
    moved = FleetMoved(FleetState(serving_version=version, serving_digest="ab"), "tick", "passed", {})
    decision = Decision(1, 1, "c1", 1.0, {"event": "tick"}, (instruction_to_map(moved),), "passed", {})
    await bus.publish(subjects.journal(SPEC.model), envelope.encode(decision))


async def test_the_served_version_is_the_default(bus: MemoryBus, tmp_path: Path) -> None:
    """An empty folder may be named; what is in it afterwards has the manifest's digest, and nothing lies beside it."""
    await serve(bus, 1)
    folder = tmp_path / "out" / "draft"
    folder.mkdir(parents=True)
    manifest = await export(bus, SPEC.model, None, folder)
    assert manifest.version == 1
    assert checkpoint.load(folder, manifest.content_digest).digest == manifest.content_digest
    assert [path.name for path in folder.parent.iterdir()] == ["draft"]


async def test_a_version_can_be_named(bus: MemoryBus, tmp_path: Path) -> None:
    """It need not be served."""
    manifest = await export(bus, SPEC.model, 2, tmp_path / "draft")
    assert manifest.version == 2 and (tmp_path / "draft" / "model.safetensors").exists()


async def test_what_cannot_be_exported_is_refused_with_what_to_do(bus: MemoryBus, tmp_path: Path) -> None:
    """Nothing served, an unknown version, a folder in use; a damaged part leaves no folder."""
    with pytest.raises(DraftError, match="--version"):
        await export(bus, SPEC.model, None, tmp_path / "draft")
    with pytest.raises(DraftError, match="version 9"):
        await export(bus, SPEC.model, 9, tmp_path / "draft")
    with pytest.raises(ConfigError, match="not an empty folder"):
        await export(bus, SPEC.model, 1, tmp_path)
    await bus.purge(subjects.draft_part(SPEC.model, 1, 0))
    with pytest.raises(DraftError, match="part 0"):
        await export(bus, SPEC.model, 1, tmp_path / "draft")
    assert not await asyncio.to_thread(lambda: [path for path in tmp_path.iterdir() if "draft" in path.name])


async def test_for_vllm_the_target_is_named(bus: MemoryBus, tmp_path: Path) -> None:
    """Its architecture comes from its folder; what is written is the same draft; nothing lies beside it."""
    target = write_target(tmp_path / "target")
    manifest = await export(bus, SPEC.model, 1, tmp_path / "out" / "draft", str(target))
    config = json.loads((tmp_path / "out/draft/config.json").read_text())
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": str(target), "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == manifest.num_steps
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["draft"]
    (target / "config.json").write_text("[")
    with pytest.raises(ConfigError, match="--verifier"):
        await export(bus, SPEC.model, 1, tmp_path / "again", str(target))
