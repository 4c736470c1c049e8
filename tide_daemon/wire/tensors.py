"""Codecs for the aux hidden states of a chunk: uint16 bit patterns of bf16, [n, W], to bytes and back.

Letters: n rows, W = A*H width of a row, B = ceil(W / 64) blocks in a row.

| codec        | bytes                                                             | lossless |
|--------------|-------------------------------------------------------------------|----------|
| bf16         | n*W little-endian uint16                                          | yes      |
| bf16-planes  | n*W low bytes, then n*W high bytes                                | yes      |
| int8-block64 | n*B little-endian float16 scales, then n*W int8; value = scale*int| no       |

The envelope's zstd compresses the result. Planes put the sign and exponent bytes, which repeat, side
by side. A block is 64 consecutive values of one row; the last block of a row may be shorter.

int8-block64 cannot carry NaN or infinity, nor values over 127 * 65504: encoding refuses them. Decoding
never fails on content: a hostile scale may give NaN or infinity, so the trainer checks for finite
states whatever the codec.
"""

import numpy as np
from numpy.typing import NDArray

from tide_daemon.wire.kinds import CODECS, MAX_ROWS

BLOCK = 64
_MAX_SCALE = 65504.0  # largest finite float16
HEADER_BYTES = 2048
"""Room for everything in a chunk's message but its rows, about twice the longest possible."""


def encode(aux: NDArray[np.uint16], codec: str) -> bytes:
    """Bytes of `aux` [n, W] under a codec. Thread-safe.

    Raises:
        ValueError: unknown codec, wrong dtype or shape, or values that int8-block64 cannot carry.
    """
    if aux.dtype != np.uint16 or aux.ndim != 2:
        raise ValueError(f"aux must be uint16 [n, W], not {aux.dtype} {list(aux.shape)}")
    if codec == "bf16":
        return aux.astype("<u2", copy=False).tobytes()
    if codec == "bf16-planes":
        planes = np.empty((2, aux.size), np.uint8)
        flat = aux.reshape(-1)
        np.copyto(planes[0], flat, casting="unsafe")  # keeps the low byte
        np.copyto(planes[1], flat >> 8, casting="unsafe")
        return planes.tobytes()
    if codec == "int8-block64":
        return _encode_int8(aux)
    raise ValueError(f"codec must be one of {', '.join(CODECS)}, not {codec!r}")


def decode(data: bytes, num_rows: int, width: int, codec: str) -> NDArray[np.uint16]:
    """aux [n, W] from bytes. Read-only and without a copy for "bf16". Thread-safe.

    Raises:
        ValueError: unknown codec, or `data` is not exactly as long as n, W and the codec demand.
    """
    expected = num_bytes(num_rows, width, codec)
    if len(data) != expected:
        raise ValueError(f"{num_rows} rows of {width} values in {codec} have {expected} bytes, not {len(data)}")
    if codec == "bf16":
        return np.frombuffer(data, "<u2").astype(np.uint16, copy=False).reshape(num_rows, width)
    if codec == "bf16-planes":
        low, high = np.frombuffer(data, np.uint8).reshape(2, num_rows * width)
        aux = np.multiply(high, 256, dtype=np.uint16)
        aux += low
        return aux.reshape(num_rows, width)
    return _decode_int8(data, num_rows, width)


def num_bytes(num_rows: int, width: int, codec: str) -> int:
    """Length of the encoded aux. Raises ValueError for an unknown codec."""
    if codec in ("bf16", "bf16-planes"):
        return num_rows * width * 2
    if codec == "int8-block64":
        return num_rows * (2 * _num_blocks(width) + width)
    raise ValueError(f"codec must be one of {', '.join(CODECS)}, not {codec!r}")


def rows_per_chunk(limit_bytes: int, width: int, num_topk: int, codec: str) -> int:
    """How many rows certainly fit into a message of `limit_bytes`, even if nothing compresses.

    Args:
        limit_bytes: largest payload, the bus's `max_payload`.
        width: W = A*H.
        num_topk: log-probabilities a row.

    Raises:
        ValueError: not even one row fits; the message says what to change.
    """
    row = num_bytes(1, width, codec) + 4 + 1 + 6 * num_topk  # aux, token id, loss mask, top-k ids and values
    room = limit_bytes - HEADER_BYTES
    # zstd's bound for incompressible input is n + n/256 + 64 (ZSTD_COMPRESSBOUND in zstd.h).
    rows = max(0, (room - 64) * 256 // (257 * row))
    if rows < 1:
        raise ValueError(
            f"a row of {row} bytes ({width} values in {codec}, top-{num_topk}) does not fit into {limit_bytes} bytes: "
            f"raise the broker's max_payload or capture fewer layers"
        )
    return min(rows, MAX_ROWS)


def bf16_to_float32(aux: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of bf16 bit patterns, exactly; any shape."""
    wide = aux.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def float32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bf16, ties to even; NaN stays NaN; any shape."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding would carry a NaN with a full mantissa into zero.
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _num_blocks(width: int) -> int:
    return -(-width // BLOCK)


def _blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, W] as [n, B, 64], the last block filled up with zeros."""
    num_rows, width = values.shape
    padding = _num_blocks(width) * BLOCK - width
    if padding:
        values = np.pad(values, ((0, 0), (0, padding)))
    return values.reshape(num_rows, _num_blocks(width), BLOCK)


def _encode_int8(aux: NDArray[np.uint16]) -> bytes:
    num_rows, width = aux.shape
    blocks = _blocks(bf16_to_float32(aux))
    largest = np.abs(blocks).max(axis=2, initial=0.0) / 127.0  # [n, B]; NaN and infinity stay visible
    if not np.all(largest <= _MAX_SCALE):
        raise ValueError("aux holds NaN, infinity or values too large for int8-block64: send it as bf16")
    scales = largest.astype("<f2")
    divisors = scales.astype(np.float32)
    divisors[divisors == 0.0] = np.inf  # a block of zeros, or of values below float16's range
    quantised = np.rint(blocks / divisors[:, :, None])
    np.clip(quantised, -127, 127, out=quantised)  # a scale rounded down would give 128
    rows = quantised.astype(np.int8).reshape(num_rows, _num_blocks(width) * BLOCK)[:, :width]
    return b"".join((scales.tobytes(), rows.tobytes()))


def _decode_int8(data: bytes, num_rows: int, width: int) -> NDArray[np.uint16]:
    num_blocks = _num_blocks(width)
    split = 2 * num_rows * num_blocks
    scales = np.frombuffer(data[:split], "<f2").astype(np.float32).reshape(num_rows, num_blocks)
    values = np.frombuffer(data, np.int8, offset=split).astype(np.float32).reshape(num_rows, width)
    with np.errstate(invalid="ignore"):  # infinity times zero, from a hostile scale
        values *= np.repeat(scales, BLOCK, axis=1)[:, :width]
    return float32_to_bf16(values)
