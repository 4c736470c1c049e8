"""Segment files: append-only runs of records, each a wire envelope exactly as it arrived.

A segment is named `<first sequence, 16 digits>-<generation, 4 digits>.seg`. Sequences are given by the store
and only grow. Records are appended and never changed; deleting one request writes the segment anew under the
next generation and then unlinks the old one, so that a reader sees either the old file or the new one whole.

Record, little endian:

    offset  size  what
    0       4     magic "TSR1"
    4       4     m, bytes of the meta map
    8       4     b, bytes of the body
    12      4     crc32 of bytes 0..12 and the meta
    16      4     crc32 of the body
    20      m     meta: msgpack array, fields of ChunkMeta in their order
    20+m    b     body: the envelope

No torch and no wire decoding here: a scan reads headers and metas and skips bodies. See store.py for what is
kept and for how long, join.py for what the bodies become.
"""

import dataclasses
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgpack
from isal.isal_zlib import crc32

from tide_daemon.errors import StoreError

MAGIC = b"TSR1"
_HEADER = struct.Struct("<4sIIII")
_MAX_META_BYTES = 16 * 1024
_MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChunkMeta:
    """What the store knows of a chunk without decoding it.

    Attributes:
        sequence: position in the store, grows by one with every record, never used twice.
        num_rows: token positions in the chunk.
        num_response: how many of those tokens the target generated (loss mask 1).
        captured_at, stored_at: unix seconds.
    """

    sequence: int
    request_id: str
    chunk_index: int
    last: bool
    incomplete: bool
    first_position: int
    num_rows: int
    num_response: int
    captured_at: float
    stored_at: float
    workload: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a record's body lies."""

    path: Path
    offset: int
    num_bytes: int
    crc: int
    meta: ChunkMeta


@dataclass(frozen=True, slots=True)
class SegmentName:
    """Parsed name of a segment file."""

    first_sequence: int
    generation: int

    def __str__(self) -> str:
        return f"{self.first_sequence:016d}-{self.generation:04d}.seg"


def parse_name(name: str) -> SegmentName | None:
    """The parsed name, None for a file that is not a segment (a temporary one, say)."""
    stem, dot, suffix = name.partition(".")
    first, dash, generation = stem.partition("-")
    if suffix != "seg" or not dot or not dash or not (first.isdigit() and generation.isdigit()):
        return None
    parsed = SegmentName(int(first), int(generation))
    return parsed if str(parsed) == name else None


def encode_record(meta: ChunkMeta, body: bytes) -> bytes:
    """One record. Raises StoreError when the body is over the format's limit."""
    return record_head(meta, body) + body


def record_head(meta: ChunkMeta, body: bytes) -> bytes:
    """What stands before the body of a record. Raises as `encode_record`."""
    packed: bytes = msgpack.packb(dataclasses.astuple(meta))
    if len(body) > _MAX_BODY_BYTES or len(packed) > _MAX_META_BYTES:
        raise StoreError(f"a record of {len(packed)} + {len(body)} bytes is over the store's limit")
    lengths = struct.pack("<4sII", MAGIC, len(packed), len(body))
    header = _HEADER.pack(MAGIC, len(packed), len(body), crc32(packed, crc32(lengths)), crc32(body))
    return header + packed


def scan(path: Path, *, check_bodies: bool) -> tuple[list[Entry], int]:
    """Entries of a segment and the length of its valid prefix in bytes.

    The scan ends at the first record that is short or whose checksum is wrong: what follows a torn write
    cannot be trusted to begin where it seems to.

    Args:
        check_bodies: read and check bodies too; for the newest segment, whose tail may be torn. Sealed segments
            were synced, and a body is checked again when it is read.

    Raises:
        StoreError: the file cannot be read. FileNotFoundError passes through: retention may have removed it.
    """
    entries: list[Entry] = []
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            valid = 0
            while (entry := _read_entry(file, path, valid, total, check_bodies)) is not None:
                entries.append(entry)
                valid = entry.offset + entry.num_bytes
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    return entries, valid


def _read_entry(file: BinaryIO, path: Path, start: int, total: int, check_body: bool) -> Entry | None:
    file.seek(start)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    magic, num_meta, num_body, crc_meta, crc_body = _HEADER.unpack(header)
    offset = start + _HEADER.size + num_meta
    if magic != MAGIC or num_meta > _MAX_META_BYTES or num_body > _MAX_BODY_BYTES or offset + num_body > total:
        return None
    packed = file.read(num_meta)
    if crc32(packed, crc32(header[:12])) != crc_meta:
        return None
    if check_body and crc32(file.read(num_body)) != crc_body:
        return None
    return Entry(path, offset, num_body, crc_body, ChunkMeta(*msgpack.unpackb(packed)))


def read_body(entry: Entry) -> bytes:
    """The body of a record.

    Raises:
        StoreError: its checksum is wrong. FileNotFoundError passes through: retention may have removed it.
    """
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        body = file.read(entry.num_bytes)
    if len(body) != entry.num_bytes or crc32(body) != entry.crc:
        raise StoreError(f"record {entry.meta.sequence} in {entry.path} is damaged")
    return body


def list_segments(folder: Path) -> dict[SegmentName, Path]:
    """Segments in order of their first sequence; of several generations only the newest."""
    newest: dict[int, SegmentName] = {}
    for path in folder.iterdir():
        name = parse_name(path.name)
        if name is not None and name.generation >= newest.get(name.first_sequence, name).generation:
            newest[name.first_sequence] = name
    return {newest[first]: folder / str(newest[first]) for first in sorted(newest)}


def sync_folder(folder: Path) -> None:
    """Make created, renamed and removed names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
