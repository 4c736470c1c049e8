"""Bytes <-> record, purely. Every message on the bus is one envelope.

All integers little-endian:

| offset | bytes | field       | value                                                          |
|--------|-------|-------------|----------------------------------------------------------------|
| 0      | 4     | magic       | "TIDE"                                                         |
| 4      | 1     | version     | WIRE_VERSION, 1                                                |
| 5      | 1     | kind        | code of the record's kind, see kinds.py                        |
| 6      | 2     | flags       | 0; a reader refuses others                                     |
| 8      | 4     | body size   | bytes of the msgpack map, decompressed                         |
| 12     | 4     | checksum    | CRC-32 (zlib's) of bytes 0..11 and of everything from byte 16  |
| 16     | rest  | body        | one zstd frame, content size stated, holding one msgpack map   |

The checksum finds damage, not malice: who may publish is the broker's business. ISA-L computes it, in 0.014 ms/MB
where zlib takes 0.27 (measured). What is refused is decided from the prefix and the frame's header before anything is
decompressed, and from one pass over the bytes (scan.py) before anything is built from them, so that hostile input costs
at most the kind's size limit. Optional entries that a reader does not know are ignored.

Compatibility: add optional fields with defaults; anything else is a new WIRE_VERSION and new subjects.
All functions are thread-safe: each thread has its own compressors.
"""

import struct
import threading
from dataclasses import dataclass
from typing import Any

import msgpack
import zstandard
from isal.isal_zlib import crc32

from tide_daemon.errors import WireError
from tide_daemon.wire.fields import FieldError
from tide_daemon.wire.kinds import KIND_BY_CODE, KIND_BY_NAME, KIND_BY_RECORD, Kind
from tide_daemon.wire.records import Record
from tide_daemon.wire.scan import check_structure

WIRE_VERSION = 1
MAGIC = b"TIDE"
PREFIX_BYTES = 16
MAX_OBJECTS = 131_072
MAX_DEPTH = 20

_PREFIX = struct.Struct("<4sBBHII")
_CHECKED_PREFIX_BYTES = 12
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_WINDOW_BYTES = 8 << 20  # level 1 uses 512 KiB; a frame may ask for gigabytes
_STATES_HASH_LOG = 10
"""For hidden states. Repeats among them are accidents, and looking for them costs more than they save: with the
level's own 14 bits SmolLM2-135M's states take 1.4-1.7 ms/MB, with 10 bits 0.8 ms/MB; both give 1.41x."""
_per_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Header:
    """What the prefix says, not yet checked against the body.

    Attributes:
        kind: name of the record's class.
        body_bytes: size of the decompressed body.
    """

    version: int
    kind: str
    flags: int
    body_bytes: int
    checksum: int


def encode(record: Record, level: int = 1) -> bytes:
    """The envelope of a record. Equal records give equal bytes under one zstd release.

    Args:
        level: zstd's; 1 is as good as 6 on hidden states and several times faster.

    Raises:
        ValueError: a field is not what its kind allows (the message names it), or the record is too large.
    """
    kind = KIND_BY_RECORD.get(type(record))
    if kind is None:
        raise ValueError(f"{type(record).__name__} is not a message")
    try:
        body: bytes = msgpack.packb(_dump(kind, record), use_bin_type=True)
    except FieldError as error:
        raise ValueError(f"{kind.name}.{error}") from None
    if len(body) > kind.max_bytes:
        raise ValueError(f"{kind.name} of {len(body)} bytes is over its limit of {kind.max_bytes} bytes")
    frame = _compressor(level, kind.struct is None).compress(body)
    prefix = _PREFIX.pack(MAGIC, WIRE_VERSION, kind.code, 0, len(body), 0)[:_CHECKED_PREFIX_BYTES]
    checksum = crc32(frame, crc32(prefix))
    return b"".join((prefix, checksum.to_bytes(4, "little"), frame))


def decode(data: bytes | bytearray | memoryview, *, max_bytes: int | None = None) -> Record:
    """The record in an envelope.

    Args:
        max_bytes: largest decompressed body to accept; the kind's own limit holds besides.

    Raises:
        WireError: for any input that is not exactly one valid envelope.
    """
    header, entries = decode_map(data, max_bytes=max_bytes)
    kind = KIND_BY_NAME[header.kind]
    try:
        record: Record = _load(kind, entries)
    except FieldError as error:
        raise WireError(f"{kind.name}.{error}") from None
    return record


def decode_map(
    data: bytes | bytearray | memoryview, *, max_bytes: int | None = None
) -> tuple[Header, dict[str, object]]:
    """The prefix and the map in an envelope, its fields unchecked: for tools. Raises WireError as `decode`."""
    view = memoryview(data).cast("B") if memoryview(data).c_contiguous else memoryview(bytes(data))
    header = read_header(view)
    kind = KIND_BY_NAME[header.kind]
    limit = kind.max_bytes if max_bytes is None else min(max_bytes, kind.max_bytes)
    if header.body_bytes > limit:
        raise WireError(f"{kind.name} of {header.body_bytes} bytes is over the limit of {limit} bytes")
    frame = view[PREFIX_BYTES:]
    checksum = crc32(frame, crc32(view[:_CHECKED_PREFIX_BYTES]))
    if checksum != header.checksum:
        raise WireError(f"checksum is {checksum:08x}, the header says {header.checksum:08x}")
    body = _decompress(frame, header.body_bytes)
    check_structure(body, MAX_OBJECTS, MAX_DEPTH)
    try:
        # The default limits of each container are the body's size; check_structure bounded their sum.
        entries = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"{kind.name} is not a valid msgpack map: {error}") from None
    if type(entries) is not dict:
        raise WireError(f"{kind.name} must hold a map, not {type(entries).__name__}")
    return header, entries


def read_header(data: bytes | bytearray | memoryview) -> Header:
    """The prefix alone: nothing is decompressed, the checksum is not verified.

    Raises:
        WireError: too short, wrong magic, version or flags, or unknown kind.
    """
    if len(data) < PREFIX_BYTES:
        raise WireError(f"{len(data)} bytes are fewer than an envelope's {PREFIX_BYTES}")
    magic, version, code, flags, body_bytes, checksum = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"starts with {bytes(magic)!r}, not with {MAGIC!r}: not a tide-daemon message")
    if version != WIRE_VERSION:
        raise WireError(f"wire version is {version}, this build reads {WIRE_VERSION}: update the older side")
    if flags != 0:
        raise WireError(f"flags are 0x{flags:04x}, this build knows none: update the older side")
    kind = KIND_BY_CODE.get(code)
    if kind is None:
        raise WireError(f"kind {code} is not known to this build")
    return Header(version, kind.name, flags, body_bytes, checksum)


def peek_kind(data: bytes | bytearray | memoryview) -> str:
    """Name of the record's class, from the prefix alone. Raises WireError as `read_header`."""
    return read_header(data).kind


def _decompress(frame: memoryview, body_bytes: int) -> bytes:
    """The frame's content, which must be exactly `body_bytes` long. Allocates nothing before the sizes are known."""
    if frame[:4] != _ZSTD_MAGIC:
        raise WireError("the body is not a zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(frame)
        if parameters.content_size != body_bytes:
            raise WireError(f"the zstd frame states {parameters.content_size} bytes, the header {body_bytes}")
        if parameters.window_size > max(_MAX_WINDOW_BYTES, body_bytes):
            raise WireError(f"the zstd frame asks for a window of {parameters.window_size} bytes")
        body: bytes = _decompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"the zstd frame is damaged: {error}") from None
    if len(body) != body_bytes:
        raise WireError(f"the zstd frame holds {len(body)} bytes, the header says {body_bytes}")
    return body


def _compressor(level: int, for_states: bool) -> zstandard.ZstdCompressor:
    made: dict[tuple[int, bool], zstandard.ZstdCompressor] | None = getattr(_per_thread, "compressors", None)
    if made is None:
        made = _per_thread.compressors = {}
    if (level, for_states) not in made:
        if for_states:
            parameters = zstandard.ZstdCompressionParameters.from_level(
                level, hash_log=_STATES_HASH_LOG, write_content_size=1
            )
            made[level, for_states] = zstandard.ZstdCompressor(compression_params=parameters)
        else:
            made[level, for_states] = zstandard.ZstdCompressor(level=level, write_content_size=True)
    return made[level, for_states]


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor: zstandard.ZstdDecompressor | None = getattr(_per_thread, "decompressor", None)
    if decompressor is None:
        decompressor = _per_thread.decompressor = zstandard.ZstdDecompressor()
    return decompressor


def _dump(kind: Kind, record: Any) -> dict[str, Any]:
    if kind.struct is not None:
        return kind.struct.dump(record)
    from tide_daemon.wire import chunk  # numpy, which a controller does without

    return chunk.dump(record)


def _load(kind: Kind, entries: dict[str, object]) -> Any:
    if kind.struct is not None:
        return kind.struct.load(entries)
    from tide_daemon.wire import chunk

    return chunk.load(entries)
