"""Envelopes that no honest peer would send: right prefix and checksum around any body or frame."""

import struct
import zlib

import msgpack
import zstandard


def envelope_of_frame(frame: bytes, body_bytes: int, *, kind: int = 5, version: int = 1, flags: int = 0) -> bytes:
    """A frame under a prefix whose checksum fits."""
    prefix = struct.pack("<4sBBHI", b"TIDE", version, kind, flags, body_bytes)
    return prefix + struct.pack("<I", zlib.crc32(frame, zlib.crc32(prefix))) + frame


def envelope_of_body(body: bytes, kind: int = 5) -> bytes:
    """Any bytes as the decompressed body."""
    return envelope_of_frame(zstandard.ZstdCompressor(level=1).compress(body), len(body), kind=kind)


def envelope_of_map(entries: object, kind: int = 5) -> bytes:
    """Any msgpack value as the body."""
    return envelope_of_body(msgpack.packb(entries), kind)
