"""A draft as vLLM's `speculators` format: another config.json, two tensor names, and layers counted from the other end.

    ours and SGLang's              speculators'
    config.json flat               transformer_layer_config, speculators_config, draft fields beside them
    midlayer.*                     layers.0.*
    aux layer i: OUTPUT of i       aux layer i: what ENTERS layer i; so ours plus one

The rest is the same: fc, norm, lm_head, d2t as offsets, t2d as a mask, no embedding (the verifier's is used), and the
residual taken before hidden_norm (norm_before_residual false).

Source: vllm-project/speculators c05b95b (config.py, models/eagle3/config.py, convert/eagle/eagle3_converter.py) and
vLLM's transformers_utils/configs/speculators/base.py and model_executor/models/llama_eagle3.py, August 2026. That vLLM
counts what enters a layer is in its models' loops over aux_hidden_state_layers.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tide_daemon.draft.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Checkpoint
from tide_daemon.draft.config import DTYPE, DraftConfig

_FIRST_LAYER = {"midlayer.": "layers.0."}


def speculators_config(
    config: DraftConfig, verifier: str, architectures: Sequence[str], speculative_tokens: int
) -> dict[str, Any]:
    """The contents of config.json.

    Args:
        verifier: the target, as vLLM shall load it: a name or a path.
        architectures: the target's, as in its own config.json; empty when they are not known.
        speculative_tokens: drafted tokens a step, vLLM's default for this draft; at least 1.
    """
    return {
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": config.draft_vocab_size,
        "dtype": DTYPE,
        "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in config.aux_layer_ids],
        "embed_requires_grad": False,
        "fc_norm": False,
        "norm_before_fc": False,
        "norm_before_residual": False,
        "norm_output": False,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "accept_tolerance": 0.0,
                    "proposal_type": "greedy",
                    "speculative_tokens": speculative_tokens,
                    "verifier_accept_k": 1,
                }
            ],
            "verifier": {"architectures": list(architectures), "name_or_path": verifier},
        },
        "speculators_model_type": "eagle3",
        "target_hidden_size": None if config.target_hidden_size == config.hidden_size else config.target_hidden_size,
        "tie_word_embeddings": False,
        "torch_dtype": DTYPE,
        "transformer_layer_config": _layer(config),
    }


def _layer(config: DraftConfig) -> dict[str, Any]:
    """The decoder layer as a Llama config of one layer."""
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
    }


def speculators_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under speculators' names."""
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    for ours, theirs in _FIRST_LAYER.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def save(
    folder: Path, checkpoint: Checkpoint, verifier: str, architectures: Sequence[str], speculative_tokens: int
) -> None:
    """Write a folder that vLLM loads as a speculative model. It appears whole or not at all; an empty one is replaced.

    Raises:
        OSError: the disk refused, or the folder is not empty.
    """
    config = speculators_config(checkpoint.config, verifier, architectures, speculative_tokens)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(speculators_tensors(checkpoint.tensors), temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        (temporary / WEIGHTS_FILE).chmod(0o644)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
