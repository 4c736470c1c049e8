"""One pass of an EAGLE-3 draft on a CPU, with as few operations as its arithmetic needs.

A draft of one layer takes as long around its arithmetic (SGLang's module tree, ModelRunner.forward, packing matrices)
as in it, three times a step. The arithmetic is that of sglang/srt/models/llama_eagle3.py, LlamaModel.forward. Of rows
of which only keys and values are wanted, what comes after the attention is left out (`run`), and in a prefill
everything but those keys and values (`fill`).

Parameters are the live modules' own. Matrices are used through a packed copy (packed.py) that is renewed when they
change, so weights that are swapped in place between two batches are in force at the next one.

Letters: T rows, R of them that are answered, H hidden size, A aux layers, Hq query heads, Hk key/value heads, D head
size, V draft vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, rms_norm, silu

from tide_daemon.engine.sglang.cpu.packed import PackedLinear

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [T, Hq * D], k [T, Hk * D], v [T, Hk * D]) to [T, Hq * D]; stores k and v in the cache. In `fill` R rows of q."""


class DraftPass:
    """The forward pass of one `LlamaForCausalLMEagle3` module.

    Use `unsupported` first: a variant that this file does not know must run in SGLang's own code.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.model
        self._layer = model.model.layers[0]
        self._vocab_size = model.config.draft_vocab_size
        attention, mlp = self._layer.self_attn, self._layer.mlp
        self._fc, self._lm_head = PackedLinear(self._model.fc), PackedLinear(model.lm_head)
        self._qkv, self._o = PackedLinear(attention.qkv_proj), PackedLinear(attention.o_proj)
        self._q = PackedLinear(attention.qkv_proj, slice(None, attention.q_size))
        self._kv = PackedLinear(attention.qkv_proj, slice(attention.q_size, None))
        self._gate_up, self._down = PackedLinear(mlp.gate_up_proj), PackedLinear(mlp.down_proj)
        self._sizes = [attention.q_size + attention.kv_size, attention.kv_size]
        self._q_size, self._head_dim = attention.q_size, attention.head_dim
        self._inter_size = mlp.gate_up_proj.weight.shape[0] // 2
        self._norm_shape = [self._model.norm.weight.shape[0]]
        self.attention_layer = attention.attn

    def run(
        self, input_ids: Tensor, positions: Tensor, hidden: Tensor, attend: Attend, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run the draft over T rows.

        Args:
            input_ids: [T], the token after each position.
            positions: [T].
            hidden: [T, A * H], the target's aux states, or [T, H], the draft's own output of the pass before.
            attend: attention over the cache.
            rows: the R rows that need logits and hidden states; None for all, R = T.

        Returns:
            Logits [R, V] and the hidden states [R, H] that the next pass takes.
        """
        hidden, inputs = self._inputs(input_ids, hidden)
        qk, v = self._qkv(inputs).split(self._sizes, dim=-1)
        qk = self._rotate(qk, positions)
        attended = attend(qk[:, : self._q_size], qk[:, self._q_size :], v)
        if rows is not None:
            hidden, attended = hidden.index_select(0, rows), attended.index_select(0, rows)
        return self._outputs(hidden, attended)

    def fill(
        self, input_ids: Tensor, positions: Tensor, hidden: Tensor, attend: Attend, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the draft over rows that are there to fill its cache: prompts.

        Args:
            input_ids, positions, hidden: as for `run`.
            attend: attention over the cache: each of R query rows sees all keys of its request.
            last: the last row of each request, R of them.

        Returns:
            Logits [R, V] and hidden states [R, H] of these rows.
        """
        hidden, inputs = self._inputs(input_ids, hidden)
        k, v = self._kv(inputs).chunk(2, dim=-1)
        q = self._rotate(self._q(inputs.index_select(0, last)), positions.index_select(0, last))
        return self._outputs(hidden.index_select(0, last), attend(q, self._rotate(k, positions), v))

    def refresh(self) -> None:
        """Call after weights were written other than by an in-place operation on the parameters themselves."""
        for matrix in (
            self._fc, self._lm_head, self._qkv, self._q, self._kv, self._o, self._gate_up, self._down
        ):  # fmt: skip
            matrix.refresh()

    def _inputs(self, input_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The residual [T, H] and what the attention's matrices multiply, [T, 2 * H]."""
        layer = self._layer
        embeds = embedding(input_ids, self._model.embed_tokens.weight)
        if hidden.shape[-1] != embeds.shape[-1]:
            hidden = self._fc(hidden)
        normed = [self._norm(layer.input_layernorm, embeds), self._norm(layer.hidden_norm, hidden)]
        return hidden, torch.cat(normed, dim=-1)

    def _outputs(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, V] and hidden states [R, H] from residual and attention."""
        hidden = hidden + self._o(attended)
        gate_up = self._gate_up(self._norm(self._layer.post_attention_layernorm, hidden))
        gated = silu(gate_up[:, : self._inter_size]).mul_(gate_up[:, self._inter_size :])
        hidden = hidden + self._down(gated)
        return self._lm_head(self._norm(self._model.norm, hidden))[:, : self._vocab_size], hidden

    def _norm(self, norm: Any, x: Tensor) -> Tensor:
        return rms_norm(x, self._norm_shape, norm.weight, norm.variance_epsilon)

    def _rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rotary embedding, neox style, of queries, keys or both at once: [T, n * D]."""
        half = self._head_dim // 2
        cos_sin = self._layer.self_attn.rotary_emb.cos_sin_cache.index_select(0, positions).to(heads.dtype).unsqueeze(1)
        cos, sin = cos_sin[..., :half], cos_sin[..., half:]
        heads = heads.unflatten(-1, (-1, self._head_dim))
        first, second = heads[..., :half], heads[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(1)


def unsupported(model: Any) -> str | None:
    """Why `DraftPass` cannot run this module; None when it can."""
    if type(model).__name__ != "LlamaForCausalLMEagle3":
        return f"the draft is a {type(model).__name__}"
    inner = model.model
    if len(inner.layers) != 1 or inner.is_mrope_enabled or inner.norm_output:
        return "the draft has several layers, multimodal positions or a normed output"
    if inner.input_norm is not None or inner.fc_norm is not None or inner.fc.bias is not None:
        return "the draft normalises or biases the target's states"
    layer = inner.layers[0]
    linears = [layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj]
    plain = {"UnquantizedLinearMethod"}
    if any({type(one.quant_method).__name__} != plain or one.bias is not None for one in linears):
        return "the draft's matrices are quantised or biased"
    rotary = layer.self_attn.rotary_emb
    if not rotary.is_neox_style or rotary.rotary_dim != rotary.head_size or hasattr(rotary, "mrope_section"):
        return "the draft's rotary embedding is not plain neox style"
    processor = model.logits_processor
    if processor.logit_scale is not None or processor.final_logit_softcapping or processor.use_fp32_lm_head:
        return "the draft's logits are scaled, capped or float32"
    return None
