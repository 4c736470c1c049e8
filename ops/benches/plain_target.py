"""The target in plain torch: answers prompts greedily, many at a time, and keeps the rows that the tap would capture.

A stand-in for a serving node where only its captured rows matter: the same states (outputs of decoder
layers), tokens and top-k as SGLang's tap gives, tests/integration/engine compares those with
transformers. It is here because SGLang on a CPU would take an hour for the bench's 130,000 tokens.

Letters: R running slots, N heads, M key-value heads, D head size, H hidden size, k log-probabilities.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(slots=True, eq=False)
class Answer:
    """One answered request.

    Attributes:
        prompt, answer: token ids; the answer ends with the end-of-sequence token or at the limit.
        aux: rows 0 .. len(prompt) + len(answer) - 2, bf16 [n, A*H].
        topk_ids, topk_logprobs: for the last prompt row and every answer row, [len(answer), k].
    """

    prompt: list[int]
    answer: list[int] = field(default_factory=list)
    aux: list[Tensor] = field(default_factory=list)
    topk_ids: list[Tensor] = field(default_factory=list)
    topk_logprobs: list[Tensor] = field(default_factory=list)


class PlainTarget:
    """A Llama-like target that computes in `dtype`."""

    def __init__(
        self, directory: Path, aux_layer_ids: Sequence[int], topk: int, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.dtype = dtype
        weights = {name: w.to(dtype) for name, w in load_file(directory / "model.safetensors").items()}
        config = self.config
        self.num_heads, self.num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim, self.num_layers = config["head_dim"], config["num_hidden_layers"]
        self._eps = config["rms_norm_eps"]
        self._aux, self._topk = set(aux_layer_ids), topk
        self._layers = [self._layer(weights, i) for i in range(self.num_layers)]
        self._embed, self._norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self._head = weights.get("lm_head.weight", self._embed)
        half = self.head_dim // 2
        self._turns = config["rope_parameters"]["rope_theta"] ** -(torch.arange(half) / half)

    def _layer(self, weights: dict[str, Tensor], i: int) -> dict[str, Tensor]:
        def get(name: str) -> Tensor:
            return weights[f"model.layers.{i}.{name}.weight"]

        return {
            "qkv": torch.cat([get(f"self_attn.{name}_proj") for name in "qkv"]),
            "o": get("self_attn.o_proj"),
            "gate_up": torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")]),
            "down": get("mlp.down_proj"),
            "norm": get("input_layernorm"),
            "mlp_norm": get("post_attention_layernorm"),
        }

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, (x.shape[-1],), weight, self._eps)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """Rows of tokens at positions -> final hidden states [rows, H] and aux states [rows, A*H]."""
        angles = positions.float()[:, None] * self._turns
        cos, sin = (f(angles)[:, None].to(self.dtype) for f in (torch.cos, torch.sin))
        kv_size = self.num_kv_heads * self.head_dim
        x, aux = self._embed[tokens], []
        for i, layer in enumerate(self._layers):
            qkv = linear(self._normed(x, layer["norm"]), layer["qkv"])
            q, k, v = (
                part.view(len(tokens), -1, self.head_dim)
                for part in qkv.split([self.num_heads * self.head_dim, kv_size, kv_size], dim=-1)
            )
            x = x + linear(attend(i, _rotated(q, cos, sin), _rotated(k, cos, sin), v), layer["o"])
            gate, up = linear(self._normed(x, layer["mlp_norm"]), layer["gate_up"]).chunk(2, dim=-1)
            x = x + linear(silu(gate) * up, layer["down"])
            if i in self._aux:
                aux.append(x)
        return x, torch.cat(aux, dim=-1).to(torch.bfloat16)

    def top(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest next tokens of rows: ids [rows, k] and natural log-probabilities, the greedy one first."""
        logits = linear(self._normed(hidden, self._norm), self._head).float()
        values, ids = logits.topk(self._topk, dim=-1)
        # The very first maximum, as greedy decoding takes it; topk leaves the order of ties open.
        ids[:, 0] = logits.argmax(-1)
        return ids, values - logits.logsumexp(-1, keepdim=True)


class Slots:
    """Continuous batching: a slot is taken by the next prompt as soon as its request is over."""

    def __init__(self, target: PlainTarget, num_slots: int, length: int) -> None:
        shape = (target.num_layers, num_slots, target.num_kv_heads)
        self._target, self._num_slots = target, num_slots
        # Keys transposed: q @ k then needs no copy.
        self._keys = torch.zeros(*shape, target.head_dim, length, dtype=target.dtype)
        self._values = torch.zeros(*shape, length, target.head_dim, dtype=target.dtype)
        self._used = torch.zeros(num_slots, dtype=torch.long)
        self._newest = torch.zeros(num_slots, dtype=torch.long)

    def prefill(self, slot: int, request: Answer) -> None:
        """Run the prompt and take its first answer token."""
        target, rows = self._target, len(request.prompt)
        group = target.num_heads // target.num_kv_heads

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._keys[layer, slot, :, :, :rows] = k.permute(1, 2, 0)
            self._values[layer, slot, :, :rows] = v.transpose(0, 1)
            k, v = (x.transpose(0, 1).repeat_interleave(group, 0)[None] for x in (k, v))
            out = scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, is_causal=True)
            return out[0].transpose(0, 1).reshape(rows, -1)

        hidden, aux = target.forward(torch.tensor(request.prompt), torch.arange(rows), attend)
        request.aux.append(aux)
        self._used[slot] = rows
        self._take(slot, request, *(x[0] for x in target.top(hidden[-1:])))

    def decode(self, owners: Sequence[Answer | None]) -> None:
        """One token for every owned slot; free ones are computed along, which is cheaper than leaving them out."""
        target, slots = self._target, torch.arange(self._num_slots)
        used = self._used.clone()
        used[[owner is None for owner in owners]] = 0
        length = (int(used.max()) + 32) // 32 * 32
        hidden_keys = torch.where(torch.arange(length)[None] <= used[:, None], 0.0, float("-inf"))[:, None, None]
        group = target.num_heads // target.num_kv_heads

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._keys[layer, slots, :, :, used] = k
            self._values[layer, slots, :, used] = v
            q = q.view(self._num_slots, target.num_kv_heads, group, target.head_dim) * target.head_dim**-0.5
            scores = torch.matmul(q, self._keys[layer, ..., :length]).float() + hidden_keys
            weights = scores.softmax(-1).to(target.dtype)
            return torch.matmul(weights, self._values[layer, :, :, :length]).reshape(self._num_slots, -1)

        hidden, aux = target.forward(self._newest, used, attend)
        ids, logprobs = target.top(hidden)
        for slot, owner in enumerate(owners):
            if owner is not None:
                owner.aux.append(aux[slot : slot + 1])
                self._used[slot] += 1
                self._take(slot, owner, ids[slot], logprobs[slot])

    def _take(self, slot: int, request: Answer, ids: Tensor, logprobs: Tensor) -> None:
        request.topk_ids.append(ids.to(torch.int32))
        request.topk_logprobs.append(logprobs.to(torch.float16))
        request.answer.append(int(ids[0]))
        self._newest[slot] = ids[0]


@torch.inference_mode()
def answer_all(
    target: PlainTarget, prompts: Sequence[list[int]], max_tokens: int, told: Callable[[int], None], num_slots: int = 64
) -> list[Answer]:
    """Greedy answers to prompts, in their order. `told` hears how many are done."""
    end = target.config["eos_token_id"]
    ends = set(end if isinstance(end, list) else [end])
    slots = Slots(target, num_slots, max(map(len, prompts)) + max_tokens + 32)
    answers = [Answer(prompt) for prompt in prompts]
    waiting = list(reversed(answers))
    owners: list[Answer | None] = [None] * num_slots
    done = 0
    while done < len(answers):
        for slot, owner in enumerate(owners):
            if owner is not None and (owner.answer[-1] in ends or len(owner.answer) >= max_tokens):
                owners[slot] = None
                done += 1
                if done % 50 == 0:
                    told(done)
            if owners[slot] is None and waiting:
                owners[slot] = waiting.pop()
                slots.prefill(slot, owners[slot])
        running = [o if o and o.answer[-1] not in ends and len(o.answer) < max_tokens else None for o in owners]
        if any(running):
            slots.decode(running)
    return answers


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
