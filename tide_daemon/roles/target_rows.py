"""The target's frozen tensors over the bus, for trainers that have no file of the target.

A server node publishes them once (some tens of MB for a small target, about a GB for a large vocabulary): embedding,
norm, head unless tied, last decoder layer if it is a plain one, and config.json last: its presence says that the
rest is there. A trainer fetches them into a folder that `trainer.frozen.load_frozen` reads like a target's own.
Everything is held against the TargetSpec; sizes are checked before anything is allocated.
"""

import asyncio
import hashlib
import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors.torch import save_file
from torch import Tensor

from tide_daemon.bus.port import Bus
from tide_daemon.draft.checkpoint import replace_directory
from tide_daemon.errors import StoreError, WireError
from tide_daemon.trainer.frozen import LAYER_TENSORS, SINGLE_FILE, FrozenTarget, load_frozen
from tide_daemon.trainer.rounds import write_json
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import TargetRows, TargetSpec

log = structlog.get_logger()

MAX_TENSOR_BYTES = 8 << 30
_PART_BYTES = 1 << 20
_ENVELOPE_BYTES = 4096
_NOT_A_NUMBER = (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError)
"""What reading a number from somebody else's JSON may raise."""


async def publish_target_rows(bus: Bus, spec: TargetSpec, model_dir: str | Path) -> int:
    """Put the target's frozen tensors on the bus unless they are there; returns how many messages were published.

    Rows of another target under the same model name are purged first. Cut off, it can be called again.

    Raises:
        StoreError: the target's files cannot be read.
        BusError: the broker is away or full; call again.
    """
    marker = await _read(bus, spec.model, "config", 0)
    if marker is not None and marker.spec == spec:
        return 0
    if marker is not None:
        await bus.purge(subjects.all_target_rows(spec.model))
    frozen = await asyncio.to_thread(read_frozen, model_dir)
    tensors = {"embed_tokens": frozen.embed_tokens, "norm": frozen.norm[None]}
    if frozen.lm_head is not frozen.embed_tokens:
        tensors["lm_head"] = frozen.lm_head
    if frozen.last_layer is not None:
        flat = torch.cat([frozen.last_layer[name].flatten() for name in LAYER_TENSORS])
        tensors["last_layer"] = flat.view(-1, spec.hidden_size)
    num_messages = 0
    for name, tensor in tensors.items():
        num_messages += await _publish(bus, spec, name, tensor.shape[1], tensor.contiguous().view(torch.uint8).numpy())
    text = json.dumps(frozen.config).encode()
    text += b" " * (len(text) % 2)
    num_messages += await _publish(bus, spec, "config", 1, torch.frombuffer(bytearray(text), dtype=torch.uint8).numpy())
    log.info("target_rows_published", messages=num_messages)
    return num_messages


def read_frozen(model_dir: str | Path) -> FrozenTarget:
    """A target's frozen tensors, with the last layer when it is a plain Llama-like one. Raises StoreError."""
    try:
        return load_frozen(model_dir)
    except StoreError:
        return load_frozen(model_dir, last_layer=False)


async def _publish(bus: Bus, spec: TargetSpec, name: str, width: int, data: Any) -> int:
    """Publish a tensor's bytes (uint8, any shape) in parts of whole rows."""
    flat = memoryview(data.reshape(-1))
    row_bytes = 2 * width
    rows_per_part = max(1, min(_PART_BYTES, bus.max_payload - _ENVELOPE_BYTES) // row_bytes)
    total = len(flat) // row_bytes
    starts = range(0, total, rows_per_part)
    for first in starts:
        count = min(rows_per_part, total - first)
        part = bytes(flat[first * row_bytes : (first + count) * row_bytes])
        record = TargetRows(spec, name, first, count, total, width, part)
        message = await asyncio.to_thread(envelope.encode, record)
        # No message id: the stream keeps one message a subject, and after a purge the broker would take the same
        # bytes for a repetition and drop them.
        await bus.publish(subjects.subject_of(spec.model, record), message)
    return len(starts)


async def fetch_target_rows(bus: Bus, spec: TargetSpec, folder: Path) -> bool:
    """Fetch the target's frozen tensors into `folder`; False when no server has published them yet.

    Raises:
        WireError: what is on the bus is damaged, incomplete or for another target.
        StoreError: the disk refused.
        BusError: the broker is away; call again.
    """
    marker = await _read(bus, spec.model, "config", 0)
    if marker is None:
        return False
    try:
        config = json.loads(await _collect(bus, spec, "config", 1, 1 << 20))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the target's config.json on the bus is not JSON: {error}") from None
    if not isinstance(config, dict) or (config.get("hidden_size"), config.get("vocab_size")) != (
        spec.hidden_size,
        spec.vocab_size,
    ):
        raise WireError("the target's config.json on the bus is not this target's")
    width = spec.hidden_size
    tensors = {
        "model.embed_tokens.weight": await _tensor(bus, spec, "embed_tokens", (spec.vocab_size, width)),
        "model.norm.weight": await _tensor(bus, spec, "norm", (width,)),
    }
    if await _read(bus, spec.model, "lm_head", 0) is not None:
        tensors["lm_head.weight"] = await _tensor(bus, spec, "lm_head", (spec.vocab_size, width))
    if await _read(bus, spec.model, "last_layer", 0) is not None:
        shapes = layer_shapes(config)
        flat = await _tensor(bus, spec, "last_layer", (sum(prod(shape) for shape in shapes.values()),))
        parts = torch.split(flat, [prod(shape) for shape in shapes.values()])
        layer = f"model.layers.{last_layer(config)}."
        tensors |= {
            f"{layer}{name}.weight": part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
    await asyncio.to_thread(_write, folder, config, tensors)
    log.info("target_rows_fetched", folder=str(folder), tensors=len(tensors))
    return True


def layer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of LAYER_TENSORS in their order, from a target's config.json.

    Raises:
        WireError: the config lacks a field, or has one that cannot be.
    """
    try:
        hidden, heads, inner = (int(config[n]) for n in ("hidden_size", "num_attention_heads", "intermediate_size"))
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head = int(config.get("head_dim") or hidden // heads)
    except _NOT_A_NUMBER as error:
        raise WireError(f"the target's config.json on the bus is not a Llama-like one: {error!r}") from None
    if min(hidden, heads, inner, kv_heads, head) < 1:
        raise WireError("the target's config.json on the bus is not a Llama-like one: it has sizes below 1")
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (kv_heads * head, hidden),
        "self_attn.v_proj": (kv_heads * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {name: shapes[name] for name in LAYER_TENSORS}


def last_layer(config: dict[str, Any]) -> int:
    """Index of the last decoder layer, from a target's config.json.

    Raises:
        WireError: the config does not tell.
    """
    try:
        return int(config["num_hidden_layers"]) - 1
    except _NOT_A_NUMBER as error:
        raise WireError(f"the target's config.json on the bus does not tell its layers: {error!r}") from None


async def _tensor(bus: Bus, spec: TargetSpec, name: str, shape: tuple[int, ...]) -> Tensor:
    data = await _collect(bus, spec, name, spec.hidden_size, prod(shape) * 2)
    if len(data) != prod(shape) * 2:
        raise WireError(f"{name} on the bus has {len(data)} bytes, {prod(shape) * 2} were expected")
    return torch.frombuffer(data, dtype=torch.bfloat16).view(shape)


async def _collect(bus: Bus, spec: TargetSpec, name: str, width: int, max_bytes: int) -> bytearray:
    """All rows of a tensor, as bytes."""
    data = bytearray()
    first, total = 0, 1
    while first < total:
        rows = await _read(bus, spec.model, name, first)
        if rows is None:
            raise WireError(f"rows from {first} of the target's {name} are not on the bus")
        if rows.spec != spec or rows.width != width:
            raise WireError(f"the target's {name} on the bus is for another target")
        total = rows.total_rows
        if total * 2 * width > min(max_bytes, MAX_TENSOR_BYTES):
            raise WireError(f"the target's {name} on the bus has {total} rows, more than it can have")
        data += rows.data
        first += rows.num_rows
    return data


async def _read(bus: Bus, model: str, name: str, first_row: int) -> TargetRows | None:
    subject = subjects.target_rows(model, name, first_row)
    message = await bus.last(subject)
    if message is None:
        return None
    record = await asyncio.to_thread(envelope.decode, message.data)
    subjects.verify(subject, record)
    assert isinstance(record, TargetRows)
    return record


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put the folder in place, whole; digest.json lets a later start trust it."""
    temporary = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_json(temporary / "config.json", config)
        save_file(tensors, temporary / SINGLE_FILE)
        write_json(temporary / "digest.json", {SINGLE_FILE: file_digest(temporary / SINGLE_FILE)})
        replace_directory(temporary, folder)
    except OSError as error:
        raise StoreError(f"cannot write the target's rows to {folder}: {error}") from error


def is_intact(folder: Path) -> bool:
    """Whether a fetched folder holds what was fetched."""
    try:
        stated = json.loads((folder / "digest.json").read_text(encoding="utf-8"))
        return bool(stated[SINGLE_FILE] == file_digest(folder / SINGLE_FILE))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def file_digest(path: Path) -> str:
    """sha256 hex of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
