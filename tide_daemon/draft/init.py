"""Weights of a first draft, when nothing has been learnt yet.

What each part starts from, and why (accept lengths in ops/decisions):

- LM head and final norm: the target's own, in the draft's vocabulary;
- fc: passes the highest aux layer on, for it is nearest to what the head reads;
- MLP: the target's last one when it is at hand, turned down, for it was made for other inputs;
- attention: heads that copy what followed an earlier occurrence of the current token (copying.py), fitted
  on the first captured rows; without rows the target's last attention, else small random weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tide_daemon.draft.config import DraftConfig
from tide_daemon.draft.copying import CapturedRows, add_copy_heads
from tide_daemon.draft.model import Eagle3Draft
from tide_daemon.draft.vocab import VocabMap

RANDOM_STD = 0.02
FC_RANDOM_STD = 0.001
"""Of fc's other entries beside the identity: small, for the head expects the target's own states."""
MLP_SCALE = 0.1
"""Of the copied MLP's output, beside copying heads."""


def initialise(
    config: DraftConfig,
    vocab: VocabMap,
    embed_tokens: Tensor,
    lm_head: Tensor,
    norm: Tensor,
    last_layer: Mapping[str, Tensor] | None = None,
    rows: CapturedRows | None = None,
    seed: int = 0,
) -> Eagle3Draft:
    """A new draft in bf16.

    Args:
        embed_tokens, lm_head: [V, H] of the target.
        norm: [H], weight of the target's final norm.
        last_layer: name -> weight of the target's last decoder layer; parts of other shapes are not used.
        rows: some thousand captured rows to fit the copying heads on; None for a draft that copies nothing yet.
    """
    generator = torch.Generator().manual_seed(seed)
    draft = Eagle3Draft(config)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=RANDOM_STD, generator=generator)
        draft.lm_head.weight.copy_(lm_head[vocab.target_ids])
        draft.norm.weight.copy_(norm)
        nn.init.normal_(draft.fc.weight, std=FC_RANDOM_STD, generator=generator)
        if config.target_hidden_size == config.hidden_size:
            draft.fc.weight[:, -config.hidden_size :] += torch.eye(config.hidden_size)
        if last_layer is not None:
            _copy_mlp(draft, last_layer, 1.0 if rows is None else MLP_SCALE)
            if rows is None:
                _copy_attention(draft, last_layer)
    if rows is not None:
        add_copy_heads(draft, embed_tokens, lm_head[vocab.target_ids], norm, rows, generator)
    return draft.to(torch.bfloat16)


def _copy_mlp(draft: Eagle3Draft, layer: Mapping[str, Tensor], scale: float) -> None:
    middle = draft.midlayer
    if layer["mlp.gate_proj"].shape != middle.mlp.gate_proj.weight.shape:
        return
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(middle.mlp, name).weight.copy_(layer[f"mlp.{name}"])
    middle.mlp.down_proj.weight.mul_(scale)
    middle.post_attention_layernorm.weight.copy_(layer["post_attention_layernorm"])


def _copy_attention(draft: Eagle3Draft, layer: Mapping[str, Tensor]) -> None:
    """The target's attention over the hidden half of the input; the embedding's half stays small and random."""
    config, attention = draft.config, draft.midlayer.self_attn
    hidden, dim = config.hidden_size, config.head_dim
    q, k, v = (layer[f"self_attn.{name}_proj"] for name in "qkv")
    num_kv = k.shape[0] // dim
    if q.shape != (config.num_attention_heads * dim, hidden) or config.num_key_value_heads % num_kv:
        return
    repeat = config.num_key_value_heads // num_kv
    attention.q_proj.weight[:, hidden:].copy_(q)
    for projection, weight in ((attention.k_proj, k), (attention.v_proj, v)):
        heads = weight.view(num_kv, dim, hidden).repeat_interleave(repeat, 0)
        projection.weight[:, hidden:].copy_(heads.reshape(-1, hidden))
    attention.o_proj.weight.copy_(layer["self_attn.o_proj"])
    draft.midlayer.hidden_norm.weight.copy_(layer["input_layernorm"])
    draft.midlayer.input_layernorm.weight.copy_(layer["input_layernorm"])
