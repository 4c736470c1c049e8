"""What a draft's config.json says: shapes, rotary base and which target layers feed the draft.

The file is what SGLang 0.5.23 reads for `LlamaForCausalLMEagle3` (srt/models/llama_eagle3.py) and
what vLLM reads for the same architecture. Parsing is strict: a value that our model does not
implement (rope scaling, biases, several layers) is refused rather than ignored, because a draft that
is computed differently by trainer and engine looks fine and accepts nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tide_daemon.errors import DraftError

ARCHITECTURE = "LlamaForCausalLMEagle3"
DTYPE = "bfloat16"

MIN_KEY_VALUE_HEADS = 8
"""SmolLM2-135M has 3 heads of 64 for a width of 576. Large targets have 8 or more and keep theirs."""

_LIMITS = {
    "hidden_size": 65_536,
    "target_hidden_size": 65_536,
    "intermediate_size": 262_144,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "head_dim": 1_024,
    "vocab_size": 4_194_304,
    "draft_vocab_size": 4_194_304,
    "max_position_embeddings": 134_217_728,
}
"""Upper bounds of sizes that come from a peer, so that a hostile config cannot make us allocate much."""


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """Shapes of an EAGLE-3 draft. One decoder layer, SiLU MLP, default rotary embedding, bf16 weights.

    Attributes:
        hidden_size: H, width of the draft; equal to the width of the target's embedding, which it shares.
        target_hidden_size: width of one aux layer of the target.
        intermediate_size: width of the MLP.
        num_attention_heads, num_key_value_heads, head_dim: of the one decoder layer.
        rms_norm_eps: of every norm.
        rope_theta: base of the rotary embedding over all of head_dim (neox layout).
        max_position_embeddings: longest context in tokens.
        vocab_size: V, of the target.
        draft_vocab_size: Vd, rows of the draft's LM head; fixed while an engine runs.
        aux_layer_ids: 0-based target layers whose OUTPUT is captured, ascending. At least two: with one,
            SGLang takes the state for the draft's own and skips fc.
    """

    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    vocab_size: int
    draft_vocab_size: int
    aux_layer_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)} is not within 1..{limit}"
            for name, limit in _LIMITS.items()
            if not 1 <= getattr(self, name) <= limit
        ]
        if not problems:
            problems = self._relations()
        if problems:
            raise DraftError("draft config: " + "; ".join(problems))

    def _relations(self) -> list[str]:
        problems = []
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append("num_attention_heads is not a multiple of num_key_value_heads")
        if self.head_dim % 2:
            problems.append("head_dim is odd, rotary embedding needs pairs")
        if self.draft_vocab_size > self.vocab_size:
            problems.append("draft_vocab_size is larger than vocab_size")
        if not 2 <= len(self.aux_layer_ids) <= 16 or list(self.aux_layer_ids) != sorted(set(self.aux_layer_ids)):
            problems.append("aux_layer_ids must be 2 to 16 ascending layer numbers")
        if any(not 0 <= layer < 100_000 for layer in self.aux_layer_ids):
            problems.append("aux_layer_ids holds a number that is no layer")
        if not 0 < self.rms_norm_eps < 1 or not 1 <= self.rope_theta < 1e12:
            problems.append("rms_norm_eps or rope_theta is out of range")
        return problems

    @property
    def aux_size(self) -> int:
        """A*H_target, width of one captured row."""
        return len(self.aux_layer_ids) * self.target_hidden_size

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bias": False,
            "draft_vocab_size": self.draft_vocab_size,
            "dtype": DTYPE,
            "eagle_config": {
                "eagle_aux_hidden_state_layer_ids": list(self.aux_layer_ids),
                "use_aux_hidden_state": True,
            },
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": False,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": 1,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            # Both spellings: transformers 5 reads rope_parameters, older readers rope_theta.
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "rope_theta": self.rope_theta,
            "target_hidden_size": self.target_hidden_size,
            "tie_word_embeddings": False,
            "torch_dtype": DTYPE,
            "vocab_size": self.vocab_size,
        }

    def to_json(self) -> str:
        """config.json as text; equal configs give equal text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DraftConfig":
        """Parse a config.json.

        Raises:
            DraftError: not JSON, a field is missing or of the wrong type, or it asks for something that
                the draft model here does not implement.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DraftError(f"draft config is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise DraftError("draft config is not a JSON object")
        _refuse_unsupported(data)
        eagle = data.get("eagle_config")
        layers = eagle.get("eagle_aux_hidden_state_layer_ids") if isinstance(eagle, dict) else None
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
            raise DraftError("draft config: eagle_config.eagle_aux_hidden_state_layer_ids must list layer numbers")
        hidden = _integer(data, "hidden_size")
        heads = _integer(data, "num_attention_heads")
        return cls(
            hidden_size=hidden,
            target_hidden_size=_integer(data, "target_hidden_size", hidden),
            intermediate_size=_integer(data, "intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=_integer(data, "num_key_value_heads", heads),
            head_dim=_integer(data, "head_dim", hidden // max(heads, 1)),
            rms_norm_eps=_number(data, "rms_norm_eps"),
            rope_theta=_rope_theta(data),
            max_position_embeddings=_integer(data, "max_position_embeddings"),
            vocab_size=_integer(data, "vocab_size"),
            draft_vocab_size=_integer(data, "draft_vocab_size"),
            aux_layer_ids=tuple(layers),
        )


def config_for_target(
    target: Mapping[str, Any],
    aux_layer_ids: tuple[int, ...],
    draft_vocab_size: int,
    *,
    num_key_value_heads: int | None = None,
    intermediate_size: int | None = None,
) -> DraftConfig:
    """A draft of the target's own width and heads, the same for engine and trainer.

    Args:
        target: the target's config.json of a Llama-like model.
        num_key_value_heads: None for the target's, or for more where it has fewer than MIN_KEY_VALUE_HEADS:
            the embedding reaches the draft's residual through the values alone, and few heads let too little through.
        intermediate_size: None for the target's.

    Raises:
        DraftError: the target's config lacks a field.
    """
    hidden = _integer(target, "hidden_size")
    heads = _integer(target, "num_attention_heads")
    return DraftConfig(
        hidden_size=hidden,
        target_hidden_size=hidden,
        intermediate_size=intermediate_size or _integer(target, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=num_key_value_heads
        or _key_value_heads(heads, _integer(target, "num_key_value_heads", heads)),
        head_dim=_integer(target, "head_dim", hidden // max(heads, 1)),
        rms_norm_eps=_number(target, "rms_norm_eps"),
        rope_theta=_rope_theta(target, any_type=True),
        max_position_embeddings=_integer(target, "max_position_embeddings"),
        vocab_size=_integer(target, "vocab_size"),
        draft_vocab_size=draft_vocab_size,
        aux_layer_ids=aux_layer_ids,
    )


def _key_value_heads(heads: int, of_target: int) -> int:
    """The target's number, or the next larger divisor of `heads` that is at least MIN_KEY_VALUE_HEADS."""
    fitting = [n for n in range(max(1, of_target), heads + 1) if heads % n == 0 and n >= MIN_KEY_VALUE_HEADS]
    return fitting[0] if fitting else heads


def _refuse_unsupported(data: Mapping[str, Any]) -> None:
    architectures = data.get("architectures")
    if architectures != [ARCHITECTURE]:
        raise DraftError(f"draft config: architectures is {str(architectures)[:80]!r}, expected [{ARCHITECTURE!r}]")
    only = {
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bias": False,
        "norm_output": False,
        "fc_norm": False,
        "use_aux_norm": False,
        "norm_before_fc": False,
        "partial_rotary_factor": 1,
        "rope_scaling": None,
    }
    defaults = {"num_hidden_layers": None, "hidden_act": None, "tie_word_embeddings": True}
    for name, wanted in only.items():
        found = data.get(name, defaults.get(name, wanted))
        if found != wanted:
            raise DraftError(f"draft config: {name} is {str(found)[:80]!r}, only {wanted!r} is implemented")
    eagle = data.get("eagle_config")
    if isinstance(eagle, dict) and (eagle.get("norm_before_fc") or not eagle.get("use_aux_hidden_state", True)):
        raise DraftError("draft config: eagle_config asks for a variant that is not implemented")


def _rope_theta(data: Mapping[str, Any], *, any_type: bool = False) -> float:
    rope = data.get("rope_parameters")
    if rope is None:
        return _number(data, "rope_theta")
    if not isinstance(rope, dict):
        raise DraftError("draft config: rope_parameters must be an object")
    if not any_type and rope.get("rope_type", "default") != "default":
        raise DraftError(f"draft config: rope_type {str(rope.get('rope_type'))[:40]!r} is not implemented")
    return _number(rope, "rope_theta")


def _integer(data: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = data.get(name, default)
    if value is None and default is not None:
        value = default
    if type(value) is not int:
        raise DraftError(f"draft config: {name} must be an integer, found {str(value)[:40]!r}")
    return value


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DraftError(f"draft config: {name} must be a number, found {str(value)[:40]!r}")
    try:
        return float(value)
    except OverflowError:
        raise DraftError(f"draft config: {name} is out of range") from None
