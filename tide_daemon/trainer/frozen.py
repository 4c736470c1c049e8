"""The target's tensors that the trainer needs: embedding, final norm, LM head, and its last layer if at hand.

Read from the target's safetensors files one tensor at a time; the target itself is never loaded.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tide_daemon.errors import StoreError
from tide_daemon.trainer.compute import HOST, Compute

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

LAYER_TENSORS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True, eq=False)
class FrozenTarget:
    """Frozen tensors of a Llama-like target, bf16 in the host's memory. V vocabulary, H hidden size.

    Attributes:
        config: the target's config.json.
        embed_tokens: [V, H].
        norm: [H], weight of the final norm.
        lm_head: [V, H]; the embedding itself when the target ties them.
        last_layer: LAYER_TENSORS name -> weight of the last decoder layer, or None when it is not known.
        compute: where drafts of this target are trained and scored.
        embedding: embed_tokens as it is used there.
    """

    config: dict[str, Any]
    embed_tokens: Tensor
    norm: Tensor
    lm_head: Tensor
    last_layer: dict[str, Tensor] | None
    compute: Compute
    embedding: Tensor


def load_frozen(directory: str | Path, compute: Compute = HOST, *, last_layer: bool = True) -> FrozenTarget:
    """Read the frozen tensors from a target's directory.

    Raises:
        StoreError: a file or tensor is missing; the message names it.
    """
    folder = Path(directory)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        index_path = folder / INDEX_FILE
        index: dict[str, str] = {}
        if index_path.exists():
            index = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        layer = f"model.layers.{int(config['num_hidden_layers']) - 1}."
        head_name = "lm_head.weight"
        if config.get("tie_word_embeddings") or (index and head_name not in index):
            head_name = "model.embed_tokens.weight"
        embed = _read(folder, index, "model.embed_tokens.weight")
        return FrozenTarget(
            config=config,
            embed_tokens=embed,
            norm=_read(folder, index, "model.norm.weight"),
            lm_head=embed if head_name == "model.embed_tokens.weight" else _read(folder, index, head_name),
            last_layer={name: _read(folder, index, f"{layer}{name}.weight") for name in LAYER_TENSORS}
            if last_layer
            else None,
            compute=compute,
            embedding=embed.to(compute.device, compute.dtype),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"cannot read the target's tensors in {folder}: {error}") from error


def _read(folder: Path, index: dict[str, str], name: str) -> Tensor:
    file = index.get(name, SINGLE_FILE)
    if Path(file).name != file:
        raise ValueError(f"{INDEX_FILE} names a file outside its folder")
    with safe_open(folder / file, framework="pt") as handle:
        return handle.get_tensor(name).to(torch.bfloat16)
