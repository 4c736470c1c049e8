"""A draft on disk: config.json and model.safetensors in one directory, as SGLang and vLLM load it.

Loading trusts nothing: every name, shape and dtype, the vocabulary map, finite values and, when the
caller knows it, the content digest. Saving writes a temporary directory beside the final one, syncs
and renames, so a reader sees a whole checkpoint or none. No pickle anywhere.

Content digest: sha256 hex over the lines "name dtype shape sha256(bytes)\\n", sorted by name; dtype
is safetensors' name (BF16, I64, BOOL), shape is comma-joined ("576,1728"), bytes are little-endian
row-major. config.json is not part of it: a manifest carries it as text.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tide_daemon.draft.config import DraftConfig
from tide_daemon.draft.vocab import VocabMap, map_from_ids
from tide_daemon.errors import DraftError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
DTYPE_NAMES = {torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
MAX_CONFIG_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A validated draft in memory.

    Attributes:
        config: its shapes.
        tensors: by checkpoint name, on the CPU, contiguous: bf16 weights, d2t (int64 OFFSETS), t2d (bool).
        digest: content digest, see the module.
    """

    config: DraftConfig
    tensors: dict[str, Tensor]
    digest: str

    @property
    def vocab_map(self) -> VocabMap:
        """The vocabulary map, validated again on each call."""
        return VocabMap(self.tensors["d2t"], self.tensors["t2d"])


def expected_tensors(config: DraftConfig) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor in a checkpoint, no more and no less."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, config.aux_size),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.self_attn.q_proj.weight": (q_size, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (kv_size, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (kv_size, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, q_size),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "norm.weight": (hidden,),
        "lm_head.weight": (config.draft_vocab_size, hidden),
    }
    result = {name: (torch.bfloat16, shape) for name, shape in shapes.items()}
    result["d2t"] = (torch.int64, (config.draft_vocab_size,))
    result["t2d"] = (torch.bool, (config.vocab_size,))
    return result


def tensor_bytes(tensor: Tensor) -> bytes:
    """Row-major little-endian bytes of a bf16, int64 or bool tensor."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Name -> (dtype name, shape, sha256 hex of the bytes), sorted by name: a manifest's tensor entries.

    Raises:
        DraftError: a dtype that checkpoints do not use.
    """
    result = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise DraftError(f"tensor {name} has dtype {tensor.dtype}, which no checkpoint uses")
        digest = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
        result[name] = (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), digest)
    return result


def digest_of_entries(entries: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """Content digest from tensor entries as `tensor_digests` returns them."""
    total = hashlib.sha256()
    for name in sorted(entries):
        dtype, shape, digest = entries[name]
        total.update(f"{name} {dtype} {','.join(map(str, shape))} {digest}\n".encode())
    return total.hexdigest()


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 hex that names this content for ever; see the module for the rule."""
    return digest_of_entries(tensor_digests(tensors))


def validate(config: DraftConfig, tensors: Mapping[str, Tensor], digest: str | None = None) -> Checkpoint:
    """Check tensors against their config and wrap them.

    Args:
        digest: the content digest that is expected, None when the caller does not know one.

    Raises:
        DraftError: a name, shape, dtype, value, the map or the digest is wrong.
    """
    expected = expected_tensors(config)
    if missing := sorted(set(expected) - set(tensors)):
        raise DraftError(f"draft lacks tensors {missing}")
    if extra := sorted(set(tensors) - set(expected)):
        raise DraftError(f"draft has unknown tensors {[name[:80] for name in extra[:8]]}")
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise DraftError(
                f"draft tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, its config asks for {dtype} {shape}"
            )
        if dtype == torch.bfloat16 and not bool(torch.isfinite(tensor).all()):
            raise DraftError(f"draft tensor {name} holds values that are not finite")
    VocabMap(tensors["d2t"], tensors["t2d"])
    found = content_digest(tensors)
    if digest is not None and found != digest:
        raise DraftError(f"draft content digest is {found}, expected {digest}")
    return Checkpoint(config, {name: tensors[name].detach().cpu().contiguous() for name in expected}, found)


def load(directory: str | Path, digest: str | None = None) -> Checkpoint:
    """Read and validate a checkpoint directory.

    Raises:
        DraftError: a file is missing or unreadable, or anything in it is not what it must be.
    """
    folder = Path(directory)
    try:
        with (folder / CONFIG_FILE).open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise DraftError(f"{folder / CONFIG_FILE} is larger than {MAX_CONFIG_BYTES} bytes")
        config = DraftConfig.from_json(raw.decode("utf-8"))
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            names = list(file.keys())
            if set(names) != set(expected_tensors(config)):
                raise DraftError(f"{folder / WEIGHTS_FILE} does not hold the tensors of its config")
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        raise DraftError(f"cannot read the draft in {folder}: {error}") from error
    return validate(config, tensors, digest)


def save(directory: str | Path, config: DraftConfig, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Validate, then write a checkpoint directory atomically; an older one of that name is replaced.

    Raises:
        DraftError: the tensors are not a valid draft; nothing is written.
        OSError: the disk refused (full, read-only); the older directory is left as it was.
    """
    checkpoint = validate(config, tensors)
    folder = Path(directory)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (temporary / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        save_file(checkpoint.tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        # safetensors writes for its own user only; the engine may run as another.
        (temporary / WEIGHTS_FILE).chmod(0o644)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            _sync(temporary / name)
        temporary.chmod(0o755)
        replace_directory(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return checkpoint


def replace_directory(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, moving an older `folder` out of the way first.

    A directory cannot be exchanged in one POSIX call, so a crash between the two renames leaves no
    `folder`, only its hidden neighbour; a reader then sees "no checkpoint", never half of one.
    """
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        folder.rename(aside / folder.name)
        temporary.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        temporary.rename(folder)
    _sync(folder.parent)


def placeholder(config: DraftConfig) -> Checkpoint:
    """An untrained draft that holds the place for the first trained one: version 0 is never used to draft.

    Norms are one, everything else zero; the map names the first Vd tokens.
    """
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape) in expected_tensors(config).items():
        fill = torch.ones if name.endswith("norm.weight") else torch.zeros
        tensors[name] = fill(shape, dtype=dtype)
    vocab = map_from_ids(torch.arange(config.draft_vocab_size), config.vocab_size)
    tensors["d2t"], tensors["t2d"] = vocab.d2t, vocab.t2d
    return validate(config, tensors)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
