"""A draft's payload as parts that fit into messages, and back, verified.

What the payload is (dense tensors or a delta) is draft/'s business. Parts are at most a few MiB, are
published before the manifest that lists them, and may arrive in any order and more than once.
"""

import hashlib
from collections.abc import Container, Iterable

from tide_daemon.errors import WireError
from tide_daemon.wire.kinds import MAX_PARTS
from tide_daemon.wire.records import DraftManifest, DraftPart, PartEntry


def split_parts(payload: bytes, part_bytes: int) -> list[tuple[PartEntry, bytes]]:
    """The payload cut into parts of `part_bytes`, the last one shorter; no parts for an empty payload.

    Raises:
        ValueError: `part_bytes` is not positive, or there would be more than MAX_PARTS parts.
    """
    if part_bytes < 1:
        raise ValueError(f"part_bytes must be positive, not {part_bytes}")
    num_parts = -(-len(payload) // part_bytes)
    if num_parts > MAX_PARTS:
        raise ValueError(f"{num_parts} parts are more than {MAX_PARTS}: raise part_bytes above {part_bytes}")
    parts = []
    for index in range(num_parts):
        data = payload[index * part_bytes : (index + 1) * part_bytes]
        parts.append((PartEntry(index, len(data), hashlib.sha256(data).hexdigest()), data))
    return parts


def missing_parts(manifest: DraftManifest, have: Container[int]) -> list[int]:
    """Indexes, ascending, that the manifest lists and `have` lacks."""
    return [entry.index for entry in manifest.parts if entry.index not in have]


def verify_part(manifest: DraftManifest, part: DraftPart) -> None:
    """Return if the part is the one that the manifest lists.

    Raises:
        WireError: another version, an index that is not listed, or other bytes.
    """
    name = f"part {part.index} of draft {part.version}"
    if part.version != manifest.version:
        raise WireError(f"{name} does not belong to draft {manifest.version}")
    if part.index >= len(manifest.parts):
        raise WireError(f"{name} is not one of the {len(manifest.parts)} parts that the manifest lists")
    entry = manifest.parts[part.index]
    if len(part.data) != entry.num_bytes:
        raise WireError(f"{name} has {len(part.data)} bytes, the manifest says {entry.num_bytes}")
    digest = hashlib.sha256(part.data).hexdigest()
    if digest != entry.digest:
        raise WireError(f"{name} has digest {digest}, the manifest says {entry.digest}")


def join_parts(manifest: DraftManifest, parts: Iterable[DraftPart]) -> bytes:
    """The payload. Order does not matter and duplicates are fine; every part is verified.

    Raises:
        WireError: a part is wrong, or some are missing (the message lists them).
    """
    by_index: dict[int, bytes] = {}
    for part in parts:
        verify_part(manifest, part)
        by_index[part.index] = part.data
    missing = missing_parts(manifest, by_index)
    if missing:
        raise WireError(f"draft {manifest.version} lacks {len(missing)} of {len(manifest.parts)} parts: {missing[:20]}")
    return b"".join(by_index[entry.index] for entry in manifest.parts)
