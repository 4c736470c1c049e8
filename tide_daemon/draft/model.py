"""The EAGLE-3 draft in plain torch, computing what SGLang's LlamaForCausalLMEagle3 computes.

Shape letters: B sequences, T rows, H hidden size, D head size, N attention heads, M key-value heads,
Vd draft vocabulary, A aux layers.

One row at position p takes fc(aux states of p) - or, later in a chain, the draft's own hidden state -
and the embedding of the token at p+1; it predicts the token at p+2:

    hidden   = fc(aux)                                       (first step of a chain)
    x        = concat(input_layernorm(embed), hidden_norm(hidden))      [.., 2H], embedding first
    residual = hidden + self_attn(x)
    hidden'  = residual + mlp(post_attention_layernorm(residual))       carried to the next step, before norm
    logits   = lm_head(norm(hidden'))                                   [.., Vd]

The embedding is the target's and is not held here. Tensor names are the checkpoint's: this module's
state_dict plus d2t and t2d is model.safetensors. The attention over many rows lives in
trainer/unroll.py; here is what is done per row. Source of every rule: sglang 0.5.23,
srt/models/llama_eagle3.py, srt/layers/layernorm.py (norm in float32), srt/layers/rotary_embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tide_daemon.draft.config import DraftConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32, returned in x's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[.., H] -> [.., H]."""
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    """The four projections of the draft's self-attention; q, k, v read the concatenation of two H."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        heads, kv, dim, hidden = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.hidden_size,
        )
        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv, dim
        self.q_proj = nn.Linear(2 * hidden, heads * dim, bias=False)
        self.k_proj = nn.Linear(2 * hidden, kv * dim, bias=False)
        self.v_proj = nn.Linear(2 * hidden, kv * dim, bias=False)
        self.o_proj = nn.Linear(heads * dim, hidden, bias=False)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project and rotate.

        Args:
            x: [B, T, 2H].
            cos, sin: float32 [B or 1, T, D/2], from `rotary_tables` at the rows' positions.

        Returns:
            q [B, T, N, D], k and v [B, T, M, D].
        """
        batch, rows, _ = x.shape
        q = self.q_proj(x).view(batch, rows, self.num_heads, self.head_dim)
        k = self.k_proj(x).view(batch, rows, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x).view(batch, rows, self.num_kv_heads, self.head_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.., H] -> [.., H]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class MidLayer(nn.Module):
    """The one decoder layer, cut in two at the attention so that the caller owns keys and values."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def attention_input(self, hidden: Tensor, embed: Tensor) -> Tensor:
        """[.., H], [.., H] -> [.., 2H]: the embedding comes first."""
        return torch.cat([self.input_layernorm(embed), self.hidden_norm(hidden)], dim=-1)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Residual, norm, MLP, residual. `attended` is [.., N*D] before o_proj; returns [.., H]."""
        residual: Tensor = hidden + self.self_attn.o_proj(attended)
        out: Tensor = residual + self.mlp(self.post_attention_layernorm(residual))
        return out


class Eagle3Draft(nn.Module):
    """The draft's parameters. state_dict() has exactly the checkpoint's names, d2t and t2d aside."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(config.aux_size, config.hidden_size, bias=False)
        self.midlayer = MidLayer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """[.., H] as carried between steps -> [.., Vd]."""
        out: Tensor = self.lm_head(self.norm(hidden))
        return out


def rotary_tables(positions: Tensor, config: DraftConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [.., D/2], for int positions [..]."""
    half = config.head_dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions.to(torch.float32).unsqueeze(-1) * (1.0 / config.rope_theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, neox layout (first half with second half), in x's dtype.

    Args:
        x: [B, T, heads, D].
        cos, sin: [B or 1, T, D/2]. Rounded to x's dtype first, as SGLang's cos_sin_cache is.
    """
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
