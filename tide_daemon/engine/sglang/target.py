"""What a target model is, from its files: fingerprint, vocabulary hash, default layers, placeholder draft.

`target_fingerprint` is the sha256 of the text

    config.json <sha256 of its bytes>
    <name> <size in bytes>          one line for each *.safetensors, *.bin and *.gguf file, sorted by name

Names and sizes and not contents: hashing 200 GB would keep a server from starting. Two fine-tunes of one
model with equal sizes therefore need different config.json bytes, or the operator's care; quantised and
re-sharded copies differ as they should.

`vocab_hash` is the sha256 of tokenizer.json, or of tokenizer.model where there is none.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tide_daemon.draft.checkpoint import CONFIG_FILE, load, placeholder, save
from tide_daemon.draft.config import DraftConfig, config_for_target
from tide_daemon.errors import ConfigError, DraftError
from tide_daemon.wire.records import TargetSpec

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def read_config(model_dir: Path) -> dict[str, Any]:
    """The target's config.json; of a multimodal model the text part.

    Raises:
        ConfigError: no such folder, or no config.json that is an object.
    """
    config = _whole_config(model_dir)
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def runs_in_float16(model_dir: Path, dtype: str | None) -> bool:
    """Whether SGLang would run this target in float16.

    False where config.json does not say its type: the plug-in looks at what is in force (checks.py).

    Args:
        dtype: the value of `--dtype`, None when it is not given.

    Raises:
        ConfigError: config.json cannot be read.
    """
    if dtype not in (None, "auto"):
        return dtype in ("half", "float16")
    # As srt/configs/model_config.py, _get_and_verify_dtype: what is stored as float32 runs in float16, but for Gemma.
    whole, text = _whole_config(model_dir), read_config(model_dir)
    stored = next((part[key] for part in (text, whole) for key in ("dtype", "torch_dtype") if part.get(key)), None)
    return stored == "float16" or (stored == "float32" and not str(text.get("model_type", "")).startswith("gemma"))


def _whole_config(model_dir: Path) -> dict[str, Any]:
    try:
        config = json.loads((model_dir / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {model_dir / CONFIG_FILE}: {error}; the target must be a local folder in Hugging Face format"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{model_dir / CONFIG_FILE} is not an object")
    return config


def default_aux_layers(num_layers: int) -> tuple[int, ...]:
    """The first layer, a middle one and the last that SGLang can capture.

    The draft's copying heads need the first, which still knows the token itself (draft/copying.py); SGLang's own
    default [2, L//2, L-3] serves a draft that learns to copy from far more data. The very last layer's output is
    out of reach: SGLang captures inputs of layers (srt/models/llama.py, set_eagle3_layers_to_capture).

    Raises:
        ConfigError: fewer than four layers.
    """
    if num_layers < 4:
        raise ConfigError(f"a target of {num_layers} layers has no three that can be captured")
    return (0, min(num_layers // 2, num_layers - 3), num_layers - 2)


def default_aux_layers_of(model_dir: Path) -> tuple[int, ...]:
    """The same of a target's folder. Raises ConfigError also when its config cannot be read."""
    return default_aux_layers(int(read_config(model_dir)["num_hidden_layers"]))


def target_spec(model_dir: Path, model: str, aux_layer_ids: tuple[int, ...]) -> TargetSpec:
    """What hidden states of this target belong to.

    Args:
        model: its short name in subjects.

    Raises:
        ConfigError: a file is missing.
    """
    config = read_config(model_dir)
    return TargetSpec(
        model=model,
        target_fingerprint=_fingerprint(model_dir),
        vocab_hash=_vocab_hash(model_dir),
        aux_layer_ids=aux_layer_ids,
        hidden_size=int(config["hidden_size"]),
        vocab_size=int(config["vocab_size"]),
    )


def prepare_placeholder(
    directory: Path, model_dir: Path, aux_layer_ids: tuple[int, ...], draft_vocab_size: int
) -> DraftConfig:
    """Make sure that `directory` holds a placeholder draft for this target.

    SGLang wants a draft checkpoint at its start and fixes its shapes from it. The placeholder is version 0 and
    never drafts.

    Raises:
        ConfigError: the target's config cannot carry an EAGLE-3 draft.
        OSError: the disk refused.
    """
    try:
        config = config_for_target(read_config(model_dir), aux_layer_ids, draft_vocab_size)
        try:
            if load(directory).config == config:
                return config
        except DraftError:
            pass  # none yet, or damaged: written anew
        save(directory, config, placeholder(config).tensors)
    except DraftError as error:
        raise ConfigError(f"no draft can be made for {model_dir}: {error}") from error
    return config


def _fingerprint(model_dir: Path) -> str:
    try:
        lines = [f"{CONFIG_FILE} {hashlib.sha256((model_dir / CONFIG_FILE).read_bytes()).hexdigest()}"]
        files = {path for pattern in _WEIGHTS for path in model_dir.glob(pattern)}
        lines += [f"{path.name} {path.stat().st_size}" for path in sorted(files)]
    except OSError as error:
        raise ConfigError(f"cannot read the target in {model_dir}: {error}") from error
    if not files:
        raise ConfigError(f"{model_dir} holds no weight files ({', '.join(_WEIGHTS)})")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _vocab_hash(model_dir: Path) -> str:
    for name in _TOKENIZERS:
        path = model_dir / name
        if path.exists():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    raise ConfigError(f"{model_dir} holds none of {', '.join(_TOKENIZERS)}")
