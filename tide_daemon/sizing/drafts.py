"""Size of an EAGLE-3 draft for a target, and of the deltas that are sent."""

from tide_daemon.draft.config import DraftConfig

BF16_BYTES = 2
DELTA_RATIO_FAR, DELTA_RATIO_NEAR = 1.7, 2.7
"""Draft bytes over bytes of a lossless delta (XOR, byte planes, zstd) between drafts 19,000 and 1,000 training
tokens apart. Our own measurement on a draft of SmolLM2-135M; a smaller learning rate gives smaller deltas."""


def draft_params(config: DraftConfig) -> int:
    """Parameters of a draft, as draft/model.py builds it: fc, one decoder layer on 2H, norms, its own head."""
    hidden, heads, kv, dim = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention = 2 * hidden * dim * (heads + 2 * kv) + heads * dim * hidden
    mlp = 3 * hidden * config.intermediate_size
    norms = 4 * hidden
    return config.aux_size * hidden + attention + mlp + norms + hidden * config.draft_vocab_size


def draft_bytes(config: DraftConfig) -> int:
    """Bytes of a dense draft in bf16, before compression."""
    return draft_params(config) * BF16_BYTES


def delta_bytes(config: DraftConfig) -> tuple[float, float]:
    """(least, most) bytes to expect of one delta."""
    size = draft_bytes(config)
    return size / DELTA_RATIO_NEAR, size / DELTA_RATIO_FAR
