"""HiddenChunk to the map on the wire and back. The only part of the envelope that needs numpy.

The map has the record's names. Tensors are little-endian row-major bytes: token_ids and topk_ids
int32, loss_mask uint8, topk_logprobs float16, aux as its codec says (tensors.py). Two entries carry
shapes: num_rows and num_topk.

Not checked here: whether aux is finite. A reader must do so before it computes with them.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tide_daemon.wire import tensors
from tide_daemon.wire.fields import FieldError
from tide_daemon.wire.kinds import HIDDEN_CHUNK_FIELDS, HIDDEN_CHUNK_SIZES
from tide_daemon.wire.records import FIRST_CHOICE, OTHER_CHOICE, HiddenChunk
from tide_daemon.wire.structs import dump_fields, is_required, load_fields

_TENSORS: dict[str, DTypeLike] = {
    "token_ids": np.int32,
    "loss_mask": np.uint8,
    "topk_ids": np.int32,
    "topk_logprobs": np.float16,
    "aux": np.uint16,
}
_HEADER_FIELDS = {name: field for name, field in HIDDEN_CHUNK_FIELDS.items() if name not in _TENSORS}
_WIRE_FIELDS = HIDDEN_CHUNK_FIELDS | HIDDEN_CHUNK_SIZES
_OPTIONAL = {attribute.name for attribute in dataclasses.fields(HiddenChunk) if not is_required(attribute)}
REQUIRED = tuple(name for name in _WIRE_FIELDS if name not in _OPTIONAL)
"""Entries that must be there."""
_MAX_LOGPROB = 0.01  # float16 rounding may leave a log-probability a little above 0


def dump(chunk: HiddenChunk) -> dict[str, Any]:
    """The map of a chunk.

    Raises:
        FieldError: a field, shape, dtype or token id is not allowed, or the codec cannot carry the states.
    """
    if type(chunk) is not HiddenChunk:
        raise FieldError(f"must be HiddenChunk, not {type(chunk).__name__}")
    entries = dump_fields(_HEADER_FIELDS, chunk)
    for name, dtype in _TENSORS.items():
        array = getattr(chunk, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            raise FieldError(f"{name}: must be a numpy array of {np.dtype(dtype)}")
    _check(chunk)
    try:
        aux = tensors.encode(chunk.aux, chunk.codec)
    except ValueError as error:
        raise FieldError(f"aux: {error}") from None
    num_rows, num_topk = chunk.topk_ids.shape
    return entries | {
        "num_rows": num_rows,
        "num_topk": num_topk,
        "token_ids": chunk.token_ids.astype("<i4", copy=False).tobytes(),
        "loss_mask": chunk.loss_mask.tobytes(),
        "topk_ids": chunk.topk_ids.astype("<i4", copy=False).tobytes(),
        "topk_logprobs": chunk.topk_logprobs.astype("<f2", copy=False).tobytes(),
        "aux": aux,
    }


def load(value: Any) -> HiddenChunk:
    """A checked chunk. Its arrays may be read-only views of the map's bytes.

    Raises:
        FieldError: an entry is missing or wrong, or bytes do not fit the shapes.
    """
    if type(value) is not dict:
        raise FieldError(f"must be a map, not {type(value).__name__}")
    entries = load_fields(_WIRE_FIELDS, value, REQUIRED)
    num_rows = entries.pop("num_rows")
    num_topk = entries.pop("num_topk")
    spec = entries["spec"]
    width = len(spec.aux_layer_ids) * spec.hidden_size
    entries["token_ids"] = _array(entries, "token_ids", "<i4", (num_rows,))
    entries["loss_mask"] = _array(entries, "loss_mask", np.uint8, (num_rows,))
    entries["topk_ids"] = _array(entries, "topk_ids", "<i4", (num_rows, num_topk))
    entries["topk_logprobs"] = _array(entries, "topk_logprobs", "<f2", (num_rows, num_topk))
    try:
        entries["aux"] = tensors.decode(entries["aux"], num_rows, width, entries["codec"])
    except ValueError as error:
        raise FieldError(f"aux: {error}") from None
    chunk = HiddenChunk(**entries)
    _check(chunk)
    return chunk


def _array(entries: dict[str, Any], name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    data = entries[name]
    wire_dtype = np.dtype(dtype)
    expected = int(np.prod(shape)) * wire_dtype.itemsize
    if len(data) != expected:
        raise FieldError(f"{name}: {wire_dtype} {list(shape)} has {expected} bytes, not {len(data)}")
    return np.frombuffer(data, wire_dtype).astype(wire_dtype.newbyteorder("="), copy=False).reshape(shape)


def _check(chunk: HiddenChunk) -> None:
    """Raise FieldError unless shapes agree and every id can be looked up in the target's vocabulary."""
    vocab_size = chunk.spec.vocab_size
    if chunk.token_ids.ndim != 1 or chunk.topk_ids.ndim != 2:
        raise FieldError("token_ids must be [n] and topk_ids [n, k]")
    num_rows = len(chunk.token_ids)
    width = len(chunk.spec.aux_layer_ids) * chunk.spec.hidden_size
    num_topk = chunk.topk_ids.shape[1]
    for name, shape in (
        ("loss_mask", (num_rows,)),
        ("topk_ids", (num_rows, num_topk)),
        ("topk_logprobs", (num_rows, num_topk)),
        ("aux", (num_rows, width)),
    ):
        if getattr(chunk, name).shape != shape:
            raise FieldError(f"{name}: must have shape {list(shape)}, not {list(getattr(chunk, name).shape)}")
    for size, (name, field) in zip((num_rows, num_topk), HIDDEN_CHUNK_SIZES.items(), strict=True):
        try:
            field.load(size)
        except FieldError as error:
            raise FieldError(f"{name}: {error}") from None
    if chunk.next_token_id >= vocab_size:
        raise FieldError(f"next_token_id: must be below the vocabulary's {vocab_size}")
    if num_rows == 0:
        return
    if chunk.withheld:
        if chunk.next_token_id >= 0:
            raise FieldError("next_token_id: must be -1 in a chunk that withholds its tokens")
        _check_range("token_ids", chunk.token_ids, OTHER_CHOICE, FIRST_CHOICE)
    else:
        _check_range("token_ids", chunk.token_ids, 0, vocab_size - 1)
    _check_range("loss_mask", chunk.loss_mask, 0, 1)
    if num_topk == 0:
        return
    _check_range("topk_ids", chunk.topk_ids, -1, vocab_size - 1)
    captured = np.where(chunk.topk_ids >= 0, chunk.topk_logprobs, np.float16(0.0))
    if not np.all(captured <= _MAX_LOGPROB):  # False for NaN too
        raise FieldError("topk_logprobs: must be log-probabilities, at most 0 and not NaN")


def _check_range(name: str, array: NDArray[Any], low: int, high: int) -> None:
    smallest, largest = int(array.min()), int(array.max())
    if smallest < low or largest > high:
        raise FieldError(f"{name}: must be in {low}..{high}, not {smallest}..{largest}")
