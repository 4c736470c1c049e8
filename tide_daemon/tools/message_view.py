"""A message in plain words, for people: header, shapes, statistics. Pure; used by peek.

Shows no text of a request and no token ids unless asked to: a hidden-state chunk holds what somebody
said to the model.
"""

import dataclasses
import json
from typing import Any

from tide_daemon.wire.envelope import PREFIX_BYTES, decode, read_header
from tide_daemon.wire.records import HiddenChunk

_MAX_ITEMS = 20  # of a list, in the text form
_MAX_TEXT = 200


def summarise(data: bytes, show_tokens: bool = False) -> dict[str, Any]:
    """What is in a message, as JSON can hold it.

    Args:
        show_tokens: include token ids and the target's top-k of a chunk.

    Raises:
        WireError: the bytes are not a valid message.
    """
    header = read_header(data)
    record = decode(data)
    fields = _chunk_fields(record, show_tokens) if isinstance(record, HiddenChunk) else _fields(record)
    frame_bytes = len(data) - PREFIX_BYTES
    return {
        "kind": header.kind,
        "wire_version": header.version,
        "message_bytes": len(data),
        "body_bytes": header.body_bytes,
        "compression_ratio": round(header.body_bytes / frame_bytes, 3),
        "checksum": f"{header.checksum:08x}",
        "fields": fields,
    }


def describe(data: bytes, show_tokens: bool = False) -> str:
    """The same as lines of text, long lists cut short. Raises WireError as `summarise`."""
    return "\n".join(_lines(summarise(data, show_tokens), ""))


def describe_json(data: bytes, show_tokens: bool = False) -> str:
    """The same as one line of JSON. Raises WireError as `summarise`."""
    return json.dumps(summarise(data, show_tokens))


def _fields(value: Any) -> Any:
    """A record as maps and lists; bytes as their number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _fields(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, list | tuple):
        return [_fields(item) for item in value]
    if isinstance(value, dict):
        return {key: _fields(item) for key, item in value.items()}
    return value


def _chunk_fields(chunk: HiddenChunk, show_tokens: bool) -> dict[str, Any]:
    tensors = ("token_ids", "loss_mask", "topk_ids", "topk_logprobs", "aux")
    fields: dict[str, Any] = {
        field.name: _fields(getattr(chunk, field.name))
        for field in dataclasses.fields(chunk)
        if field.name not in tensors and (show_tokens or field.name != "next_token_id")
    }
    fields["tensors"] = {name: f"{getattr(chunk, name).dtype} {list(getattr(chunk, name).shape)}" for name in tensors}
    fields["response_rows"] = int(chunk.loss_mask.sum())
    fields["rows_with_topk"] = int((chunk.topk_ids >= 0).any(axis=1).sum())
    fields["aux_statistics"] = _aux_statistics(chunk)
    if show_tokens:
        fields["token_ids"] = "withheld" if chunk.withheld else chunk.token_ids.tolist()
        fields["topk_ids"] = chunk.topk_ids.tolist()
        fields["topk_logprobs"] = [[round(float(value), 4) for value in row] for row in chunk.topk_logprobs]
    return fields


def _aux_statistics(chunk: HiddenChunk) -> dict[str, Any]:
    """Of each aux layer: share of finite values; mean, std and largest magnitude of those."""
    import numpy as np  # other kinds are shown without it

    from tide_daemon.wire.tensors import bf16_to_float32

    layers = chunk.spec.aux_layer_ids
    if len(chunk.aux) == 0:
        return {}
    # [n, A, H]
    states = bf16_to_float32(chunk.aux).astype(np.float64).reshape(len(chunk.aux), len(layers), -1)
    statistics = {}
    for index, layer in enumerate(layers):
        values = states[:, index]
        finite = values[np.isfinite(values)]
        statistics[f"layer {layer}"] = {
            "finite_share": finite.size / values.size,
            "mean": float(finite.mean()) if finite.size else None,
            "std": float(finite.std()) if finite.size else None,
            "absmax": float(np.abs(finite).max()) if finite.size else None,
        }
    return statistics


def _lines(fields: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in fields.items():
        name = _inline(key)
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{name}:")
            lines.extend(_lines(value, indent + "  "))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{name}: {len(value)}")
            lines.extend(f"{indent}  - {_inline(item)}" for item in value[:_MAX_ITEMS])
            lines.extend([f"{indent}  ... {len(value) - _MAX_ITEMS} more"] if len(value) > _MAX_ITEMS else [])
        else:
            lines.append(f"{indent}{name}: {_inline(value)}")
    return lines


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_inline(name)} {_inline(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        shown = ", ".join(_inline(item) for item in value[:_MAX_ITEMS])
        return f"[{shown}{f', ... {len(value) - _MAX_ITEMS} more' if len(value) > _MAX_ITEMS else ''}]"
    if isinstance(value, float):
        return f"{value:.13g}"
    if isinstance(value, str):
        # One line whatever a peer put into it: control characters could rewrite a terminal.
        text = value if value.isprintable() else json.dumps(value)
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text)} characters)"
    return "none" if value is None else str(value)
