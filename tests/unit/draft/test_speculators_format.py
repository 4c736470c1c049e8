"""vLLM's format, against what its documentation and loader name: stated by hand, no code of ours makes it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tide_daemon.draft import speculators_format
from tide_daemon.draft.checkpoint import Checkpoint, placeholder
from tide_daemon.draft.config import DraftConfig

CONFIG = DraftConfig(
    hidden_size=32,
    target_hidden_size=32,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    max_position_embeddings=2048,
    vocab_size=256,
    draft_vocab_size=96,
    aux_layer_ids=(2, 15, 27),
)
SHAPES = {
    "d2t": (torch.int64, [96]),
    "t2d": (torch.bool, [256]),
    "fc.weight": (torch.bfloat16, [32, 96]),
    "layers.0.input_layernorm.weight": (torch.bfloat16, [32]),
    "layers.0.hidden_norm.weight": (torch.bfloat16, [32]),
    "layers.0.post_attention_layernorm.weight": (torch.bfloat16, [32]),
    "layers.0.self_attn.q_proj.weight": (torch.bfloat16, [64, 64]),
    "layers.0.self_attn.k_proj.weight": (torch.bfloat16, [32, 64]),
    "layers.0.self_attn.v_proj.weight": (torch.bfloat16, [32, 64]),
    "layers.0.self_attn.o_proj.weight": (torch.bfloat16, [32, 64]),
    "layers.0.mlp.gate_proj.weight": (torch.bfloat16, [64, 32]),
    "layers.0.mlp.up_proj.weight": (torch.bfloat16, [64, 32]),
    "layers.0.mlp.down_proj.weight": (torch.bfloat16, [32, 64]),
    "norm.weight": (torch.bfloat16, [32]),
    "lm_head.weight": (torch.bfloat16, [96, 32]),
}
"""Eagle3DraftModel's parameters and buffers, without the verifier's own: embed_tokens, verifier_norm, verifier_lm_head.
Attention takes the token's embedding and the state side by side, so q, k and v are 2 x 32 wide."""
KNOWN = {
    "architectures", "draft_vocab_size", "dtype", "torch_dtype", "tie_word_embeddings", "transformer_layer_config",
    "eagle_aux_hidden_state_layer_ids", "embed_requires_grad", "fc_norm", "norm_before_fc", "norm_before_residual",
    "norm_output", "speculators_config", "speculators_model_type", "target_hidden_size",
}  # fmt: skip
"""Fields of Eagle3SpeculatorConfig and of the PretrainedConfig that it is."""


@pytest.fixture
def draft() -> Checkpoint:
    return placeholder(CONFIG)


def test_tensors_have_the_documented_names_shapes_and_types(draft: Checkpoint, tmp_path: Path) -> None:
    """No more and no less, the same bytes under other names."""
    speculators_format.save(tmp_path / "out", draft, "HuggingFaceTB/SmolLM2-135M", ["LlamaForCausalLM"], 3)
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in found.items()} == SHAPES
    assert torch.equal(found["layers.0.self_attn.q_proj.weight"], draft.tensors["midlayer.self_attn.q_proj.weight"])
    base = torch.arange(96)
    assert int(found["t2d"].sum()) == 96, "one target token for each draft token"
    assert bool(found["t2d"][base + found["d2t"]].all()), "d2t holds offsets, as vLLM adds them"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_config_is_what_vllm_and_speculators_read(draft: Checkpoint, tmp_path: Path) -> None:
    """What vLLM's validate_speculators_config and extract_transformers_pre_trained_config take, and nothing unknown."""
    speculators_format.save(tmp_path / "out", draft, "HuggingFaceTB/SmolLM2-135M", ["LlamaForCausalLM"], 3)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert set(config) == KNOWN
    assert config["speculators_model_type"] == config["speculators_config"]["algorithm"] == "eagle3"
    spec = config["speculators_config"]
    assert spec["verifier"] == {"name_or_path": "HuggingFaceTB/SmolLM2-135M", "architectures": ["LlamaForCausalLM"]}
    (method,) = spec["proposal_methods"]
    assert method["proposal_type"] == spec["default_proposal_method"] == "greedy"
    assert method["speculative_tokens"] == 3 and method["verifier_accept_k"] == 1
    assert config["draft_vocab_size"] == 96 and config["transformer_layer_config"]["vocab_size"] == 256
    layer = config["transformer_layer_config"]
    assert (layer["model_type"], layer["num_hidden_layers"], layer["hidden_size"]) == ("llama", 1, 32)
    assert (layer["num_attention_heads"], layer["num_key_value_heads"], layer["head_dim"]) == (4, 2, 16)
    assert layer["rope_theta"] == layer["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["norm_before_residual"] is False, "SGLang's and ours: the residual is what hidden_norm takes"


def test_aux_layers_are_counted_by_what_enters_them(draft: Checkpoint) -> None:
    """The output of layer i enters layer i + 1."""
    config = speculators_format.speculators_config(CONFIG, "x", [], 3)
    assert config["eagle_aux_hidden_state_layer_ids"] == [3, 16, 28]
    assert config["target_hidden_size"] is None, "vLLM takes a given one for the width of the draft's input"


def test_transformers_reads_the_layer_as_a_llama(draft: Checkpoint) -> None:
    """As speculators does, by its model type."""
    transformers = pytest.importorskip("transformers")
    given = speculators_format.speculators_config(CONFIG, "x", [], 3)["transformer_layer_config"]
    layer = transformers.AutoConfig.for_model(**given)
    assert type(layer).__name__ == "LlamaConfig"
    assert (layer.hidden_size, layer.head_dim, layer.vocab_size) == (32, 16, 256)
    assert layer.rope_parameters["rope_theta"] == 10_000.0
