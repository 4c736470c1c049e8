"""A target model's shapes and parameter counts, from its config.json.

Counts leave out biases, norms and vision towers: together about 1% at most.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BF16_BITS = 16.0
_WEIGHT_BITS = {"mxfp4": 4.25, "fp8": 8.0, "awq": 4.5, "gptq": 4.5, "fbgemm_fp8": 8.0}
"""Bits a weight by `quantization_config.quant_method`, scales included. mxfp4: 4 bits and an 8-bit scale for 32."""
_MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TargetShape:
    """A decoder-only target.

    Attributes:
        config: the config.json of the language model itself (`text_config` where models have several parts).
        expert_size: MLP width of one expert; num_experts 0 for a dense model.
        num_active_experts: routed experts a token; num_shared_experts are always read.
        weight_bits: bits of one weight that is quantised; the MLPs' of a mixture of experts, all of a dense model's.
    """

    name: str
    config: Mapping[str, Any]
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    vocab_size: int
    tied: bool
    num_experts: int = 0
    num_active_experts: int = 0
    num_shared_experts: int = 0
    expert_size: int = 0
    weight_bits: float = BF16_BITS

    @property
    def expert_params(self) -> int:
        """Parameters of one expert in one layer; 0 for a dense model."""
        return 3 * self.hidden_size * self.expert_size

    @property
    def fixed_params(self) -> int:
        """Parameters that every token reads, embedding table left out: attention, dense MLPs, shared experts, head."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        if self.num_experts:
            mlp = self.num_shared_experts * self.expert_params + self.hidden_size * self.num_experts
        else:
            mlp = 3 * self.hidden_size * self.mlp_size
        return self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size

    @property
    def total_params(self) -> int:
        """All parameters."""
        embedding = 0 if self.tied else self.vocab_size * self.hidden_size
        return self.fixed_params + embedding + self.num_layers * self.num_experts * self.expert_params

    @property
    def active_params(self) -> int:
        """Parameters that one token is multiplied with; the embedding is looked up, not multiplied."""
        return self.fixed_params + self.num_layers * self.num_active_experts * self.expert_params

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one position, bf16."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def weight_bytes(self, num_tokens: int | None = None) -> float:
        """Bytes of weights read by a pass over so many tokens; None: all that has to be held.

        Experts are taken as chosen evenly and independently, so n tokens read E * (1 - (1 - k/E)^n) of E.
        """
        if not self.num_experts:
            params = self.total_params if num_tokens is None else self.fixed_params
            return params * self.weight_bits / 8
        if num_tokens is None:
            read, plain = float(self.num_experts), self.total_params - self._all_expert_params()
        else:
            missed = (1.0 - self.num_active_experts / self.num_experts) ** num_tokens
            read, plain = self.num_experts * (1.0 - missed), self.fixed_params
        return plain * BF16_BITS / 8 + self.num_layers * read * self.expert_params * self.weight_bits / 8

    def _all_expert_params(self) -> int:
        return self.num_layers * self.num_experts * self.expert_params


def read_target(path: Path) -> TargetShape:
    """The shape that a config.json, or the folder that holds one, describes.

    Raises:
        ValueError: no such file, not JSON, or a field is missing or not a positive integer.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        with file.open("rb") as source:
            data = json.loads(source.read(_MAX_CONFIG_BYTES))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} is not a JSON object")
    return target_from_config(str(path), data)


def target_from_config(name: str, data: Mapping[str, Any]) -> TargetShape:
    """The shape that a config.json's content describes. ValueError as read_target."""
    text = data.get("text_config", data)
    if not isinstance(text, Mapping):
        raise ValueError(f"{name}: text_config is not an object")
    experts = _first(text, name, ("num_local_experts", "num_experts", "n_routed_experts"), 0)
    hidden, heads = _first(text, name, ("hidden_size",)), _first(text, name, ("num_attention_heads",))
    mlp = _first(text, name, ("intermediate_size",))
    quantised = data.get("quantization_config", text.get("quantization_config"))
    return TargetShape(
        name=name,
        config=text,
        hidden_size=hidden,
        num_layers=_first(text, name, ("num_hidden_layers",)),
        num_heads=heads,
        num_kv_heads=_first(text, name, ("num_key_value_heads",), heads),
        head_dim=_first(text, name, ("head_dim",), hidden // heads),
        mlp_size=mlp,
        vocab_size=_first(text, name, ("vocab_size",)),
        tied=bool(text.get("tie_word_embeddings", data.get("tie_word_embeddings", False))),
        num_experts=experts,
        num_active_experts=_first(text, name, ("num_experts_per_tok",)) if experts else 0,
        # Llama 4 has one shared expert and no field for it.
        num_shared_experts=_first(text, name, ("n_shared_experts",), int("llama4" in str(text.get("model_type")))),
        expert_size=_first(text, name, ("moe_intermediate_size",), mlp) if experts else 0,
        weight_bits=_bits(quantised),
    )


def _bits(quantised: Any) -> float:
    method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
    return _WEIGHT_BITS.get(str(method), BF16_BITS)


def _first(data: Mapping[str, Any], name: str, keys: tuple[str, ...], default: int | None = None) -> int:
    for key in keys:
        value = data.get(key)
        if value is None:
            continue
        if type(value) is not int or value < 0 or (value == 0 and default != 0):
            raise ValueError(f"{name}: {key} must be a positive integer, found {str(value)[:40]!r}")
        return value
    if default is None:
        raise ValueError(f"{name}: the config has no {keys[0]}")
    return default
