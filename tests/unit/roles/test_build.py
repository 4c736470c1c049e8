"""Roles from the configuration: which engine a server gets."""

import json
from pathlib import Path

from tests.unit.daemon.fakes import resolved
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.engine.modelled import TINY_TARGET, ModelledEngine
from tide_daemon.roles.build import _modelled_engine, build_role
from tide_daemon.roles.server import ServerRole


def test_a_modelled_server_needs_no_target(tmp_path: Path) -> None:
    """A tiny target under the configured model's name and layers; capture settings are carried over."""
    settings = {"node__model": "m", "draft__max_steps": 3, "capture__topk_logprobs": 8, "draft__aux_layer_ids": "4,5,6"}
    config = resolved(tmp_path, "server", server__mode="modelled", server__model_path="", **settings).config
    bus = MemoryBus(MemoryBroker(build_topology(TopologyLimits())))
    assert isinstance(build_role("server", config, bus), ServerRole)
    engine = _modelled_engine(config)
    assert isinstance(engine, ModelledEngine)
    carried = engine._settings
    assert (carried.spec.model, carried.spec.aux_layer_ids) == ("m", (4, 5, 6))
    assert (carried.spec.hidden_size, carried.max_steps, carried.topk) == (TINY_TARGET.hidden_size, 3, 8)


def test_a_modelled_server_pretends_to_serve_a_given_target(tmp_path: Path) -> None:
    """Shapes and fingerprint are those of the files, so that a trainer of the real target takes its chunks."""
    (tmp_path / "config.json").write_text(
        json.dumps({"hidden_size": 48, "vocab_size": 99, "num_hidden_layers": 30}) + "\n"
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    config = resolved(tmp_path / "state", "server", server__mode="modelled", server__model_path=tmp_path).config
    engine = _modelled_engine(config)
    assert isinstance(engine, ModelledEngine)
    spec = engine._settings.spec
    assert (spec.hidden_size, spec.vocab_size, spec.aux_layer_ids) == (48, 99, (0, 15, 28))
    assert spec.target_fingerprint != TINY_TARGET.target_fingerprint
