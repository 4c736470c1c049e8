"""Swapping against a module with the draft's parameters: when what is copied, and what ranks must agree on."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tide_daemon.draft.checkpoint import content_digest
from tide_daemon.engine.port import DraftState
from tide_daemon.engine.sglang import swap
from tide_daemon.engine.sglang.gpu import Device
from tide_daemon.engine.sglang.swap import Swapper
from tide_daemon.errors import EngineError

HIDDEN, HEAD, VOCAB, DRAFT_VOCAB = 4, 2, 10, 6
_SHARED = {
    "hidden_size": HIDDEN,
    "target_hidden_size": HIDDEN,
    "intermediate_size": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "draft_vocab_size": DRAFT_VOCAB,
}
_PARTS = {"q": slice(0, 4), "k": slice(4, 6), "v": slice(6, 8), 0: slice(0, 3), 1: slice(3, 6)}


def _load(buffer: Tensor, tensor: Tensor, shard: str | int | None = None) -> None:
    (buffer.data if shard is None else buffer.data[_PARTS[shard]]).copy_(tensor)


class LlamaForCausalLMEagle3(torch.nn.Module):
    """Parameters by SGLang's names."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            **_SHARED,
            rope_parameters={"rope_theta": 1e4},
            eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 2]},
        )
        self.hot_token_id = torch.arange(DRAFT_VOCAB)
        layer = "model.layers.0."
        shapes = {
            "model.fc.weight": (HIDDEN, 8), "model.norm.weight": (HIDDEN,), "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
            f"{layer}self_attn.qkv_proj.weight": (8, 8), f"{layer}self_attn.o_proj.weight": (HIDDEN, 4),
            f"{layer}mlp.gate_up_proj.weight": (6, HIDDEN), f"{layer}mlp.down_proj.weight": (HIDDEN, 3),
            f"{layer}input_layernorm.weight": (HIDDEN,), f"{layer}hidden_norm.weight": (HIDDEN,),
            f"{layer}post_attention_layernorm.weight": (HIDDEN,),
        }  # fmt: skip
        self.by_name = {}
        for name, shape in shapes.items():
            parameter: Any = torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16), requires_grad=False)
            parameter.weight_loader = _load
            self.by_name[name] = parameter

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return iter(self.by_name.items())


class Recorder(Device):
    """Notes when memory is made and when a swap's copy is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def spare_like(self, live: Tensor) -> Tensor:
        self.seen.append("spare")
        return super().spare_like(live)

    def applied(self, model: Any) -> Any:
        return f"swap {sum(str(what).startswith('applied') for what in self.seen)}"

    def wait_applied(self, mark: Any) -> None:
        self.seen.append(("wait", mark))


def checkpoint(seed: int) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "fc.weight": (HIDDEN, 8), "norm.weight": (HIDDEN,), "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
        "midlayer.self_attn.q_proj.weight": (4, 8), "midlayer.self_attn.k_proj.weight": (2, 8),
        "midlayer.self_attn.v_proj.weight": (2, 8), "midlayer.self_attn.o_proj.weight": (HIDDEN, 4),
        "midlayer.mlp.gate_proj.weight": (3, HIDDEN), "midlayer.mlp.up_proj.weight": (3, HIDDEN),
        "midlayer.mlp.down_proj.weight": (HIDDEN, 3), "midlayer.input_layernorm.weight": (HIDDEN,),
        "midlayer.hidden_norm.weight": (HIDDEN,), "midlayer.post_attention_layernorm.weight": (HIDDEN,),
    }  # fmt: skip
    tensors = {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}
    hot = torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values
    tensors["d2t"] = hot - torch.arange(DRAFT_VOCAB)
    tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, hot, True)
    config = SimpleNamespace(**_SHARED, rope_theta=1e4, aux_layer_ids=(1, 2))
    return SimpleNamespace(config=config, tensors=tensors, digest=content_digest(tensors))


class Engine:
    """A swapper on a draft of its own; `stage` takes a checkpoint of `seed`, with the version of that number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tp_size: int = 1) -> None:
        model = LlamaForCausalLMEagle3()
        self.worker = SimpleNamespace(
            draft_runner=SimpleNamespace(model=model), hot_token_id=model.hot_token_id.clone()
        )
        self.device, self.applied = Recorder(), []
        self.swapper = Swapper(self.worker, tp_size, self.device, threading.Lock(), self.applied.append)
        monkeypatch.setattr(swap, "load", lambda directory, digest: checkpoint(int(directory.name)))

    def stage(self, seed: int) -> DraftState:
        state = DraftState(seed, checkpoint(seed).digest)
        self.swapper.stage(Path(str(seed)), state)
        return state


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(monkeypatch)


def test_what_is_read_back_is_what_was_staged(engine: Engine) -> None:
    assert engine.swapper.read_back() == engine.swapper.current.digest, "before any swap"
    for seed in (1, 2):
        state = engine.stage(seed)
        assert engine.swapper.swap(idle_wait_s=0.0) == state
        assert torch.equal(engine.worker.hot_token_id, engine.worker.draft_runner.model.hot_token_id)
    assert engine.applied == [1, 2]


def test_spare_buffers_are_not_written_before_the_last_swap_has_read_them(engine: Engine) -> None:
    engine.stage(1)
    engine.swapper.swap(idle_wait_s=0.0)
    engine.device.seen.clear()
    engine.stage(2)
    assert engine.device.seen == [("wait", "swap 0"), "spare"], "the map is new memory; the weights' is used again"


def test_ranks_swap_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch, tp_size=2)
    state = engine.stage(1)
    before = {name: live.clone() for name, live in engine.worker.draft_runner.model.by_name.items()}
    asked: list[bool] = []

    def answer(everyone: bool) -> Any:
        return lambda ready: asked.append(ready) or (ready and everyone)

    for version, everyone in ((2, True), (1, False)):
        with pytest.raises(EngineError, match="not staged on every rank"):
            engine.swapper.apply_version(version, answer(everyone))
    assert asked == [False, True], "a rank that has not staged it says so, and does not stay away"
    assert all(torch.equal(live, before[name]) for name, live in engine.worker.draft_runner.model.by_name.items())
    engine.swapper.apply_version(1, answer(True))
    assert engine.swapper.read_back() == state.digest
    assert engine.applied == [1]


def test_a_rank_that_is_staging_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch, tp_size=2)
    engine.stage(1)
    asked: list[bool] = []
    with engine.swapper._staging, pytest.raises(EngineError, match="not staged on every rank"):
        engine.swapper.apply_version(1, lambda ready: bool(asked.append(ready)))
    assert asked == [False]
    engine.swapper.apply_version(1, lambda ready: ready)
