"""The draft's forward pass against EAGLE-3 written out row by row, and the variants it refuses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tide_daemon.engine.sglang.cpu import speed
from tide_daemon.engine.sglang.cpu.draft_pass import DraftPass, unsupported
from tide_daemon.engine.sglang.cpu.packed import PackedLinear

HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, DRAFT_VOCAB, AUX = 24, 40, 4, 2, 6, 30, 12, 3
EPS = 1e-5


class UnquantizedLinearMethod:
    """Named as SGLang's."""


class LlamaForCausalLMEagle3(SimpleNamespace):
    """The attributes of SGLang's module that the pass reads."""


def random_draft(dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Any:
        tensor = (torch.randn(shape, generator=generator) * 0.3).to(dtype)
        return SimpleNamespace(weight=tensor, bias=None, quant_method=UnquantizedLinearMethod())

    def norm() -> Any:
        gain = (1 + 0.1 * torch.randn(HIDDEN, generator=generator)).to(dtype)
        return SimpleNamespace(weight=gain, variance_epsilon=EPS)

    angles = torch.arange(64).view(-1, 1) / 100 ** (torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    rotary = SimpleNamespace(
        cos_sin_cache=torch.cat([angles.cos(), angles.sin()], dim=-1),
        is_neox_style=True,
        rotary_dim=HEAD_DIM,
        head_size=HEAD_DIM,
    )
    attention = SimpleNamespace(
        qkv_proj=weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, 2 * HIDDEN),
        o_proj=weight(HIDDEN, HEADS * HEAD_DIM),
        rotary_emb=rotary,
        q_size=HEADS * HEAD_DIM,
        kv_size=KV_HEADS * HEAD_DIM,
        head_dim=HEAD_DIM,
        attn=SimpleNamespace(),
    )
    layer = SimpleNamespace(
        self_attn=attention,
        mlp=SimpleNamespace(gate_up_proj=weight(2 * INTER, HIDDEN), down_proj=weight(HIDDEN, INTER)),
        input_layernorm=norm(),
        hidden_norm=norm(),
        post_attention_layernorm=norm(),
    )
    inner = SimpleNamespace(
        layers=[layer],
        fc=weight(HIDDEN, AUX * HIDDEN),
        embed_tokens=weight(VOCAB, HIDDEN),
        norm=norm(),
        is_mrope_enabled=False,
        norm_output=False,
        input_norm=None,
        fc_norm=None,
    )
    return LlamaForCausalLMEagle3(
        model=inner,
        lm_head=weight(DRAFT_VOCAB + 4, HIDDEN),  # SGLang pads the vocabulary
        config=SimpleNamespace(draft_vocab_size=DRAFT_VOCAB),
        logits_processor=SimpleNamespace(logit_scale=None, final_logit_softcapping=None, use_fp32_lm_head=False),
    )


def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * norm.weight.double()


def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
    """Heads [n, D] turned by the angles of a position; pairs are (i, i + D / 2)."""
    half = HEAD_DIM // 2
    angles = position / 100 ** (torch.arange(half).double() / half)
    first, second = x[:, :half], x[:, half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


def reference(draft: Any, ids: list[int], positions: list[int], states: torch.Tensor) -> tuple[Any, Any]:
    """Logits and hidden states of a sequence of rows, each attending to itself and the rows before, in float64."""
    inner, layer = draft.model, draft.model.layers[0]
    sizes = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]
    keys, values, logits, hidden_out = [], [], [], []
    for token, position, state in zip(ids, positions, states.double(), strict=True):
        own = state if state.shape[0] == HIDDEN else inner.fc.weight.double() @ state
        embed = inner.embed_tokens.weight[token]
        both = torch.cat([normed(layer.input_layernorm, embed), normed(layer.hidden_norm, own)])
        q, k, v = (layer.self_attn.qkv_proj.weight.double() @ both).split(sizes)
        keys.append(rotated(k.view(KV_HEADS, HEAD_DIM), position))
        values.append(v.view(KV_HEADS, HEAD_DIM))
        heads = []
        for head, query in enumerate(rotated(q.view(HEADS, HEAD_DIM), position)):
            seen = torch.stack([key[head * KV_HEADS // HEADS] for key in keys])
            weights = torch.softmax(seen @ query * HEAD_DIM**-0.5, dim=0)
            heads.append(weights @ torch.stack([value[head * KV_HEADS // HEADS] for value in values]))
        hidden = own + layer.self_attn.o_proj.weight.double() @ torch.cat(heads)
        gate, up = (layer.mlp.gate_up_proj.weight.double() @ normed(layer.post_attention_layernorm, hidden)).chunk(2)
        hidden = hidden + layer.mlp.down_proj.weight.double() @ (torch.nn.functional.silu(gate) * up)
        hidden_out.append(hidden)
        logits.append(draft.lm_head.weight[:DRAFT_VOCAB].double() @ normed(inner.norm, hidden))
    return torch.stack(logits), torch.stack(hidden_out)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    heads = [x.unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1) for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    return out.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("width", [AUX, 1], ids=["target states", "own states"])
def test_pass_equals_the_reference(width: int) -> None:
    """From the target's aux states (through fc) and from the draft's own."""
    draft = random_draft()
    ids, positions = [3, 7, 29, 0, 11], [5, 6, 7, 8, 9]
    states = torch.randn(5, width * HIDDEN)
    assert unsupported(draft) is None
    logits, hidden = DraftPass(draft).run(torch.tensor(ids), torch.tensor(positions), states, causal_attention, None)
    wanted_logits, wanted_hidden = reference(draft, ids, positions, states)
    torch.testing.assert_close(hidden.double(), wanted_hidden, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits.double(), wanted_logits, atol=1e-4, rtol=1e-4)


def test_chosen_rows_only() -> None:
    """Leaving rows out changes neither the others' logits nor their hidden states; all keys are attended to."""
    draft_pass = DraftPass(random_draft())
    given = (torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2]), torch.randn(3, HIDDEN), causal_attention)
    every, hidden = draft_pass.run(*given, None)
    some, some_hidden = draft_pass.run(*given, torch.tensor([2, 0]))
    torch.testing.assert_close(some, every[[2, 0]])
    torch.testing.assert_close(some_hidden, hidden[[2, 0]])


def test_filling_answers_the_last_row_as_running_does() -> None:
    """One prompt: the keys and values handed to the attention and the answer are those of the pass over all rows."""
    draft, seen = DraftPass(random_draft()), []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((k, v))
        return causal_attention(q, k, v) if len(q) == len(k) else last_of_all(q, k, v, [slice(0, len(k))])

    given = (torch.tensor([3, 7, 29]), torch.tensor([5, 6, 7]), torch.randn(3, AUX * HIDDEN), attention)
    logits, hidden = draft.run(*given, None)
    last_logits, last_hidden = draft.fill(*given, torch.tensor([2]))
    torch.testing.assert_close(last_logits, logits[2:])
    torch.testing.assert_close(last_hidden, hidden[2:])
    torch.testing.assert_close(seen[0], seen[1])


def last_of_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, requests: list[slice]) -> torch.Tensor:
    """One query row a request over all of its keys."""
    rows = zip(q.split(1), requests, strict=True)
    heads = [[x.unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1) for x in (row, k[own], v[own])] for row, own in rows]
    out = [torch.nn.functional.scaled_dot_product_attention(*each, enable_gqa=True) for each in heads]
    return torch.cat([each.transpose(0, 1).flatten(1) for each in out])


class Cache:
    """An attention backend and its cache: keys and values in the slots of `out_cache_loc`. Refuses to run unplanned."""

    swa_out_cache_loc = None

    def __init__(self, requests: list[slice]) -> None:
        self.planned: list[Any] = []
        self._requests = requests
        self._stored: dict[str, torch.Tensor] = {}

    def init_forward_metadata(self, batch: Any) -> None:
        self.planned.append(batch)

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor, *scales: Any) -> None:
        assert scales == (layer.k_scale_float, layer.v_scale_float)
        for name, new in (("k", k), ("v", v)):
            self._stored[name] = torch.zeros(len(new), KV_HEADS, HEAD_DIM).index_copy_(0, where.loc, new)

    def forward_decode(self, q: torch.Tensor, k: None, v: None, layer: Any, batch: Any, save_kv_cache: bool) -> Any:
        assert self.planned == [batch] and not save_kv_cache
        return last_of_all(q, self._stored["k"].flatten(1), self._stored["v"].flatten(1), self._requests)


def test_prefill_answers_one_row_a_request() -> None:
    """Prompts of three and two tokens, the second's slots first: each last row sees the keys of its own prompt."""
    draft, cache = DraftPass(random_draft()), Cache([slice(2, 5), slice(0, 2)])
    vars(draft.attention_layer).update(tp_k_head_num=KV_HEADS, k_scale_float=None, v_scale_float=None)
    ids, positions, states = (
        torch.tensor([3, 7, 29, 0, 11]),
        torch.tensor([0, 1, 2, 0, 1]),
        torch.randn(5, AUX * HIDDEN),
    )
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(name="EXTEND", is_draft_extend_v2=lambda: False),
        input_ids=ids,
        positions=positions,
        spec_info=SimpleNamespace(hidden_states=states),
        extend_seq_lens=torch.tensor([3, 2]),
        out_cache_loc=torch.tensor([2, 3, 4, 0, 1]),
        needs_forward_metadata_init=lambda: True,
    )
    runner = SimpleNamespace(forward_pass_id=0, attn_backend=cache, token_to_kv_pool=cache)
    output = speed._fill(draft, runner, batch).logits_output
    for row, own in enumerate((slice(0, 3), slice(3, 5))):
        logits, hidden = draft.run(ids[own], positions[own], states[own], causal_attention, None)
        torch.testing.assert_close(output.next_token_logits[row], logits[-1])
        torch.testing.assert_close(output.hidden_states[row], hidden[-1])


def test_weights_changed_in_place_are_seen() -> None:
    """A swap copies into the live parameters; nothing here keeps an old copy."""
    draft, other = random_draft(), random_draft()
    draft_pass = DraftPass(draft)
    given = (torch.tensor([1]), torch.tensor([0]), torch.randn(1, AUX * HIDDEN), causal_attention, None)
    before, _ = draft_pass.run(*given)
    for module in (draft.model.fc, draft.lm_head, draft.model.layers[0].mlp.down_proj, draft.model.norm):
        module.weight.mul_(2)
    for module in (other.model.fc, other.lm_head, other.model.layers[0].mlp.down_proj, other.model.norm):
        module.weight.mul_(2)
    after, _ = draft_pass.run(*given)
    assert not torch.allclose(before, after)
    assert torch.equal(after, DraftPass(other).run(*given)[0])


def _several_layers(draft: Any) -> None:
    draft.model.layers.append(draft.model.layers[0])


def _bias(draft: Any) -> None:
    draft.model.layers[0].mlp.down_proj.bias = torch.zeros(HIDDEN)


def _quantised(draft: Any) -> None:
    draft.model.layers[0].self_attn.o_proj.quant_method = SimpleNamespace()


def _norm_before_fc(draft: Any) -> None:
    draft.model.input_norm = draft.model.norm


def _partial_rotary(draft: Any) -> None:
    draft.model.layers[0].self_attn.rotary_emb.rotary_dim = 2


def _scaled(draft: Any) -> None:
    draft.logits_processor.logit_scale = 0.5


@pytest.mark.parametrize("change", [_several_layers, _bias, _quantised, _norm_before_fc, _partial_rotary, _scaled])
def test_other_drafts_are_left_to_sglang(change: Any) -> None:
    """Each variant that the pass does not compute is named."""
    draft = random_draft()
    change(draft)
    assert unsupported(draft)


def test_other_architectures_are_left_to_sglang() -> None:
    """Only LlamaForCausalLMEagle3."""
    assert unsupported(SimpleNamespace())


def test_packed_matrices_follow_writes() -> None:
    """In-place operations on a parameter are noticed, also in inference mode; a write through .data needs refresh."""
    module = torch.nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)
    product, x = PackedLinear(module), torch.randn(3, 64).bfloat16()
    with torch.inference_mode():
        for step in range(3):
            torch.testing.assert_close(product(x), torch.nn.functional.linear(x, module.weight))
            if step == 0:
                module.weight.copy_(torch.randn(96, 64))
            else:
                module.weight.data.copy_(torch.randn(96, 64))
                product.refresh()


def test_weight_updates_of_sglang_drop_packed_matrices() -> None:
    """The hook on load_weights refreshes whether loading succeeds or not."""
    refreshed: list[int] = []
    model = SimpleNamespace(tide_draft_pass=SimpleNamespace(refresh=lambda: refreshed.append(1)))
    assert speed._load_weights(lambda model, weights: weights, model, "weights") == "weights"

    def fails(model: Any) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        speed._load_weights(fails, model)
    assert refreshed == [1, 1]
    speed.refresh_packed(SimpleNamespace())
