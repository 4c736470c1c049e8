"""The draft's tensors by their two names: in a checkpoint, and as parameters of SGLang's module.

Source: srt/models/llama_eagle3.py, LlamaForCausalLMEagle3.load_weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tide_daemon.errors import EngineError

_FUSED: dict[str, tuple[str, str | int]] = {
    "self_attn.q_proj": ("self_attn.qkv_proj", "q"),
    "self_attn.k_proj": ("self_attn.qkv_proj", "k"),
    "self_attn.v_proj": ("self_attn.qkv_proj", "v"),
    "mlp.gate_proj": ("mlp.gate_up_proj", 0),
    "mlp.up_proj": ("mlp.gate_up_proj", 1),
}


def live_name(name: str) -> tuple[str, str | int | None]:
    """Parameter name in SGLang's module and shard id (None: not fused) of a checkpoint tensor."""
    name = name.replace("midlayer.", "layers.0.")
    shard: str | int | None = None
    for part, (fused, part_id) in _FUSED.items():
        if part in name:
            name, shard = name.replace(part, fused), part_id
    return (name if name.startswith("lm_head") else f"model.{name}"), shard


def draft_parameters(model: Any) -> dict[str, Any]:
    """The draft's own parameters by name; the embedding is the target's.

    Raises:
        EngineError: other ones than EAGLE-3's, or of a type that does not hold every bfloat16.
    """
    params = {n: p for n, p in model.named_parameters() if n != "model.embed_tokens.weight"}
    wanted = {
        "model.fc.weight", "model.norm.weight", "lm_head.weight", "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.0.hidden_norm.weight", "model.layers.0.post_attention_layernorm.weight",
    }  # fmt: skip
    if set(params) != wanted:
        raise EngineError(f"the draft's parameters differ from EAGLE-3's: {sorted(set(params) ^ wanted)[:6]}")
    odd = {n: p.dtype for n, p in params.items() if p.dtype not in (torch.bfloat16, torch.float32)}
    if odd:
        raise EngineError(
            f"draft parameters that are neither bfloat16 nor float32 cannot be swapped: {list(odd.items())[:4]}"
        )
    return params


def live_tensors(params: Mapping[str, Tensor], config: Any, hot_token_id: Tensor) -> dict[str, Tensor]:
    """The live parameters as a checkpoint's tensors (tensor parallel size 1).

    Args:
        params: as from `draft_parameters`.
        config: SGLang's config of the draft.
        hot_token_id: the draft worker's map, target id of each draft id.
    """
    qkv, gate_up = (
        params["model.layers.0.self_attn.qkv_proj.weight"],
        params["model.layers.0.mlp.gate_up_proj.weight"],
    )
    head_dim = config.head_dim
    sizes = [config.num_attention_heads * head_dim] + [config.num_key_value_heads * head_dim] * 2
    q, k, v = torch.split(qkv, sizes)
    gate, up = torch.split(gate_up, config.intermediate_size)
    fused = {"q": q, "k": k, "v": v}
    tensors = {f"midlayer.self_attn.{n}_proj.weight": t for n, t in fused.items()}
    tensors |= {"midlayer.mlp.gate_proj.weight": gate, "midlayer.mlp.up_proj.weight": up}
    for name, param in params.items():
        if param is not qkv and param is not gate_up:
            tensors[name.removeprefix("model.").replace("layers.0.", "midlayer.")] = param
    # ParallelLMHead pads its rows; the checkpoint has the draft vocabulary's.
    tensors["lm_head.weight"] = tensors["lm_head.weight"][: config.draft_vocab_size]
    # A checkpoint is bf16; an engine run in float32 holds the same values widened.
    live = {name: tensor.detach().to(torch.bfloat16) for name, tensor in tensors.items()}
    hot = hot_token_id.detach().cpu().to(torch.int64)
    live["d2t"] = hot - torch.arange(config.draft_vocab_size)
    live["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill_(0, hot, True)
    return live
