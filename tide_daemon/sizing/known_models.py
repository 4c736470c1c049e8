"""Models that can be asked for by name: the fields of their config.json that sizes follow from.

Each was copied from the config.json of the Hugging Face repository in SOURCES; tests hold the resulting
parameter counts to the model cards' figures.
"""

from typing import Any

from tide_daemon.sizing.targets import TargetShape, target_from_config

SOURCES = {
    "gpt-oss-120b": "huggingface.co/openai/gpt-oss-120b config.json",
    "Qwen3-235B-A22B": "huggingface.co/Qwen/Qwen3-235B-A22B config.json",
    "Llama-3.3-70B": "huggingface.co/meta-llama/Llama-3.3-70B-Instruct config.json",
    "Llama-4-Scout": "huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct config.json, text_config",
    "Qwen3-8B": "huggingface.co/Qwen/Qwen3-8B config.json",
    "SmolLM2-135M": "huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct config.json",
}


def _config(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        **more,
    }


_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt-oss-120b": _config(
        2880, 36, 64, 8, 64, 2880, 201_088,
        num_local_experts=128, num_experts_per_tok=4, quantization_config={"quant_method": "mxfp4"},
        rms_norm_eps=1e-5, rope_theta=150_000, max_position_embeddings=131_072,
    ),
    "Qwen3-235B-A22B": _config(
        4096, 94, 64, 4, 128, 12_288, 151_936,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536,
        rms_norm_eps=1e-6, rope_theta=1_000_000, max_position_embeddings=40_960,
    ),
    "Llama-3.3-70B": _config(
        8192, 80, 64, 8, 128, 28_672, 128_256,
        rms_norm_eps=1e-5, rope_theta=500_000, max_position_embeddings=131_072,
    ),
    "Llama-4-Scout": _config(
        5120, 48, 40, 8, 128, 8192, 202_048,
        model_type="llama4_text", num_local_experts=16, num_experts_per_tok=1,
        rms_norm_eps=1e-5, rope_theta=500_000, max_position_embeddings=10_485_760,
    ),
    "Qwen3-8B": _config(
        4096, 36, 32, 8, 128, 12_288, 151_936,
        rms_norm_eps=1e-6, rope_theta=1_000_000, max_position_embeddings=40_960,
    ),
    "SmolLM2-135M": _config(
        576, 30, 9, 3, 64, 1536, 49_152, tie_word_embeddings=True,
        rms_norm_eps=1e-5, rope_theta=100_000, max_position_embeddings=8192,
    ),
}  # fmt: skip


def known_target(name: str) -> TargetShape | None:
    """The shape of a model by name, upper and lower case alike; None if it is not in the table."""
    for known, config in _CONFIGS.items():
        if known.lower() == name.lower():
            return target_from_config(known, config)
    return None
