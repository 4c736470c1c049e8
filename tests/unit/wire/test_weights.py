import dataclasses
import random

import pytest

from schemas.examples import EXAMPLES
from tide_daemon.errors import WireError
from tide_daemon.wire.records import DraftManifest, DraftPart
from tide_daemon.wire.weights import join_parts, missing_parts, split_parts

PAYLOAD = random.Random(1).randbytes(1000)


def draft(payload: bytes, part_bytes: int) -> tuple[DraftManifest, list[DraftPart]]:
    manifest = EXAMPLES["draft_manifest_anchor"]
    assert isinstance(manifest, DraftManifest)
    split = split_parts(payload, part_bytes)
    parts = [DraftPart(manifest.version, entry.index, data) for entry, data in split]
    return dataclasses.replace(manifest, parts=tuple(entry for entry, _ in split)), parts


@pytest.mark.parametrize("part_bytes", [1, 7, 500, 999, 1000, 1001])
def test_parts_joined_in_any_order_and_twice_are_the_payload(part_bytes: int) -> None:
    manifest, parts = draft(PAYLOAD, part_bytes)
    shuffled = parts + parts
    random.Random(2).shuffle(shuffled)
    assert join_parts(manifest, shuffled) == PAYLOAD
    assert sum(entry.num_bytes for entry in manifest.parts) == len(PAYLOAD)


def test_an_empty_payload_has_no_parts() -> None:
    manifest, parts = draft(b"", 10)
    assert parts == []
    assert join_parts(manifest, []) == b""


def test_missing_parts_are_listed() -> None:
    manifest, parts = draft(PAYLOAD, 100)
    assert missing_parts(manifest, {0, 9}) == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(WireError, match=r"lacks 2 of 10 parts: \[3, 7\]"):
        join_parts(manifest, [part for part in parts if part.index not in (3, 7)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": PAYLOAD[100:200]}, "has digest"),
        ({"data": PAYLOAD[:99]}, "has 99 bytes, the manifest says 100"),
        ({"index": 10}, "not one of the 10 parts"),
        ({"version": 9}, "does not belong to draft 8"),
    ],
)
def test_a_wrong_part_is_refused(changes: dict[str, object], message: str) -> None:
    manifest, parts = draft(PAYLOAD, 100)
    with pytest.raises(WireError, match=message):
        join_parts(manifest, [*parts, dataclasses.replace(parts[0], **changes)])  # type: ignore[arg-type]


def test_useless_part_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        split_parts(PAYLOAD, 0)
    with pytest.raises(ValueError, match="raise part_bytes above 1"):
        split_parts(bytes(5000), 1)
