"""The bytes that carry one draft version: the difference to a base version, or everything (an anchor).

Lossless: each tensor's bits are XORed with the base's, split into byte planes (low bytes of bf16
change at random, high bytes hardly at all) and compressed with zstd. An anchor is the same without
the XOR. Applying verifies the base's digest before and the result's digest after.

    offset  size  field
    0       4     magic "TDD1"
    4       4     header length n, little-endian, 2 .. 1 MiB
    8       n     header, UTF-8 JSON: base_digest ("" for an anchor), content_digest, config (the text of
                  config.json), tensors: [[name, xored, compressed length], ...] sorted by name
    8+n     ...   the tensors' zstd frames, one after another, nothing after the last

The header names no shapes: they follow from the config, whose sizes are bounded, and a frame must
declare exactly the size that follows. So hostile bytes cannot make us allocate more than
`max_bytes`, and every malformed input gives DraftError.
"""

import json
import struct
from dataclasses import dataclass
from math import prod

import torch
import zstandard
from torch import Tensor

from tide_daemon.draft.checkpoint import Checkpoint, expected_tensors, tensor_bytes, validate
from tide_daemon.draft.config import DraftConfig
from tide_daemon.errors import DraftError

MAGIC = b"TDD1"
MAX_HEADER_BYTES = 1 << 20
DEFAULT_MAX_BYTES = 8 << 30
"""Largest draft that is rebuilt, uncompressed: far above any EAGLE-3 draft in use."""


@dataclass(frozen=True, slots=True)
class DeltaHeader:
    """What a payload says about itself, not yet verified."""

    base_digest: str
    content_digest: str
    config_json: str
    tensors: tuple[tuple[str, bool, int], ...]
    first_frame: int

    @property
    def is_anchor(self) -> bool:
        """True when the payload needs no base."""
        return not self.base_digest


def encode(result: Checkpoint, base: Checkpoint | None = None, level: int = 3) -> bytes:
    """The payload that turns `base` into `result`; an anchor when base is None.

    A tensor whose shape differs from the base's (another vocabulary size, say) travels whole.
    """
    compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
    entries: list[tuple[str, bool, int]] = []
    frames: list[bytes] = []
    for name in sorted(result.tensors):
        bits = _bits(result.tensors[name])
        other = base.tensors.get(name) if base is not None else None
        xored = other is not None and other.shape == result.tensors[name].shape
        if other is not None and xored:
            bits = bits ^ _bits(other)
        frame = compressor.compress(bits.t().contiguous().numpy().tobytes())
        entries.append((name, xored, len(frame)))
        frames.append(frame)
    header = json.dumps(
        {
            "base_digest": base.digest if base is not None else "",
            "content_digest": result.digest,
            "config": result.config.to_json(),
            "tensors": entries,
        }
    ).encode()
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *frames])


def read_header(payload: bytes) -> DeltaHeader:
    """Parse a payload's header.

    Raises:
        DraftError: it is not one.
    """
    if len(payload) < 8 or payload[:4] != MAGIC:
        raise DraftError("draft payload does not begin with its magic number")
    (length,) = struct.unpack_from("<I", payload, 4)
    if not 2 <= length <= MAX_HEADER_BYTES or 8 + length > len(payload):
        raise DraftError(f"draft payload has a header of {length} bytes, which does not fit")
    try:
        data = json.loads(payload[8 : 8 + length].decode("utf-8"))
        entries = tuple((name, xored, size) for name, xored, size in data["tensors"])
        header = DeltaHeader(data["base_digest"], data["content_digest"], data["config"], entries, 8 + length)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DraftError(f"draft payload has a malformed header: {type(error).__name__}") from None
    texts = (header.base_digest, header.content_digest, header.config_json)
    if not all(isinstance(text, str) for text in texts):
        raise DraftError("draft payload has a header field of the wrong type")
    if not all(type(n) is str and type(x) is bool and type(s) is int and s >= 0 for n, x, s in entries):
        raise DraftError("draft payload lists a tensor wrongly")
    return header


def apply(payload: bytes, base: Checkpoint | None, max_bytes: int = DEFAULT_MAX_BYTES) -> Checkpoint:
    """Rebuild a draft from a payload and its base.

    Args:
        base: the draft that the payload is a delta of; ignored for an anchor.
        max_bytes: refuse a draft that would be larger than this.

    Raises:
        DraftError: the base is missing or another one, the payload is malformed, truncated or too
            large, or the result's digest is not the one it announces.
    """
    header = read_header(payload)
    if not header.is_anchor and (base is None or base.digest != header.base_digest):
        held = base.digest[:16] if base is not None else "none"
        raise DraftError(f"draft payload needs base {header.base_digest[:16]}, the base at hand is {held}")
    config = DraftConfig.from_json(header.config_json)
    expected = expected_tensors(config)
    if [name for name, _, _ in header.tensors] != sorted(expected):
        raise DraftError("draft payload does not list the tensors of its config")
    if sum(prod(shape) * dtype.itemsize for dtype, shape in expected.values()) > max_bytes:
        raise DraftError(f"draft payload would unpack to more than {max_bytes} bytes")
    if header.first_frame + sum(size for _, _, size in header.tensors) != len(payload):
        raise DraftError("draft payload is truncated or has bytes after its last tensor")
    offset = header.first_frame
    tensors: dict[str, Tensor] = {}
    for name, xored, size in header.tensors:
        dtype, shape = expected[name]
        other = base.tensors.get(name) if base is not None and not header.is_anchor else None
        if xored and (other is None or tuple(other.shape) != shape or other.dtype != dtype):
            raise DraftError(f"draft payload has {name} as a difference, but the base has no such tensor")
        bits = _unpack(name, payload[offset : offset + size], prod(shape), dtype.itemsize)
        if xored and other is not None:
            bits = bits ^ _bits(other)
        tensors[name] = _from_bits(name, bits, dtype, shape)
        offset += size
    return validate(config, tensors, header.content_digest)


def _unpack(name: str, frame: bytes, count: int, itemsize: int) -> Tensor:
    """Byte planes back to uint8 [count, itemsize]."""
    try:
        if zstandard.frame_content_size(frame) != count * itemsize:
            raise DraftError(f"draft payload: {name} does not unpack to {count * itemsize} bytes")
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        data = decompressor.decompress(frame, max_output_size=count * itemsize, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DraftError(f"draft payload: {name} is no valid zstd frame: {error}") from None
    if len(data) != count * itemsize:
        raise DraftError(f"draft payload: {name} does not unpack to {count * itemsize} bytes")
    planes = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(itemsize, count)
    return planes.t().contiguous()


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bytes, uint8 [count, itemsize]."""
    raw = torch.frombuffer(bytearray(tensor_bytes(tensor)), dtype=torch.uint8)
    return raw.view(tensor.numel(), tensor.element_size())


def _from_bits(name: str, bits: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if dtype == torch.bool:
        # Any other byte in a bool tensor is undefined behaviour for its reader.
        if bits.numel() and int(bits.max()) > 1:
            raise DraftError(f"draft payload: {name} holds a byte that is neither 0 nor 1")
        return bits.flatten().to(torch.bool).view(shape)
    return bits.flatten().view(dtype).view(shape)
