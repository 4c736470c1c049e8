"""Hostile messages: one good example of every kind, and what can be made of it. Pure but for random chunks.

Bytes are made here by hand where the encoder refuses to: that is what a peer with bad intentions does.
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterator, Sequence

import msgpack
import numpy as np
import zstandard

from tide_daemon.errors import WireError
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.kinds import KIND_BY_CODE
from tide_daemon.wire.records import (
    Decision,
    DesiredServer,
    DesiredTrainer,
    DraftClaim,
    DraftManifest,
    DraftPart,
    ForgetSamples,
    HiddenChunk,
    NodeReport,
    OperatorRequest,
    PartEntry,
    Record,
    RequestScore,
    SamplesForgotten,
    TargetRows,
    TargetSpec,
    TensorEntry,
    TrainerReport,
)

NODE, TRAINER = "hostile-node", "hostile-trainer"
VERSION = 900
"""Far above what is really published, so that a damaged message cannot shadow a good one."""
Message = tuple[str, bytes]
"""Subject and payload."""
_PREFIX = struct.Struct("<4sBBHI")
_WRONG: tuple[object, ...] = (None, -1, 1 << 62, float("nan"), "\ud7ff" * 300, b"\0" * 64, [], {"a": 1}, [[[[1]]]])


def chunk(spec: TargetSpec, number: int, rows: int = 4, node: str = NODE) -> HiddenChunk:
    """A finished request of a few rows."""
    rng = np.random.default_rng(number)
    width = len(spec.aux_layer_ids) * spec.hidden_size
    return HiddenChunk(
        spec=spec,
        node=node,
        request_id=f"{number:032x}",
        workload="hostile",
        chunk_index=0,
        last=True,
        incomplete=False,
        first_position=0,
        captured_at=1.0,
        draft_version=0,
        codec="bf16",
        token_ids=rng.integers(0, spec.vocab_size, rows, dtype=np.int32),
        loss_mask=np.ones(rows, np.uint8),
        next_token_id=1,
        topk_ids=np.zeros((rows, 1), np.int32),
        topk_logprobs=np.full((rows, 1), -0.5, np.float16),
        aux=rng.integers(0x3F00, 0x3F80, (rows, width)).astype(np.uint16),
    )


def examples(spec: TargetSpec, at: float) -> list[Record]:
    """One of every kind, valid, about nodes and a version that nobody has."""
    digest = "a" * 64
    manifest = DraftManifest(
        spec, VERSION, 0, None, "", digest, 16, digest, "{}",
        (TensorEntry("fc.weight", "BF16", (1,), digest),), (PartEntry(0, 2, digest),),
        TRAINER, at, 1, 0.0, 0.0, 3, (RequestScore("0" * 16, "", 0, 1, 1.0, 1.5),),
    )  # fmt: skip
    return [
        chunk(spec, 1),
        manifest,
        DraftPart(VERSION, 0, b"ab"),
        DraftClaim(VERSION, TRAINER, digest, at),
        NodeReport(NODE, at, 1, "down", 0, "", 0, 0, 1.0, (), False, 0, 0, 0, 0, 0, 0, 1),
        TrainerReport(TRAINER, at, 1, "waiting", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0),
        DesiredServer(NODE, 1, 1, at, 0, "", (), False, 0.0, "hostile"),
        DesiredTrainer(TRAINER, 1, 1, at, 0, 0, "", "hostile"),
        Decision(1, 1, "hostile", at, {"event": "tick"}, (), "hostile", {}),
        TargetRows(spec, "norm", 0, 1, 1, spec.hidden_size, bytes(2 * spec.hidden_size)),
        OperatorRequest("f" * 32, at, "hostile", "unpin", 0, "", "hostile"),
        ForgetSamples("f" * 32, at, "hostile", "hostile"),
        SamplesForgotten("f" * 32, TRAINER, at, 0, 0),
    ]


def flipped(record: Record, model: str, most: int) -> Iterator[Message]:
    """One bit flipped in every field of the prefix, and in up to `most` places of the body, spread over all of it."""
    subject, data = subjects.subject_of(model, record), envelope.encode(record)
    places = sorted(
        {*range(envelope.PREFIX_BYTES), *np.linspace(envelope.PREFIX_BYTES, len(data) - 1, most).astype(int)}
    )
    for number, place in enumerate(places):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (number % 8)
        yield subject, bytes(damaged)


def cut_short(record: Record, model: str, most: int) -> Iterator[Message]:
    """The first bytes of a message, for up to `most` lengths, and the message with something behind it."""
    subject, data = subjects.subject_of(model, record), envelope.encode(record)
    for length in sorted({*np.linspace(0, len(data) - 1, most).astype(int)}):
        yield subject, data[:length]
    yield subject, data + b"\0"


def wrong_fields(record: Record, model: str) -> Iterator[Message]:
    """Each field in turn replaced by values that it must not have, with valid sizes and checksums."""
    subject, data = subjects.subject_of(model, record), envelope.encode(record)
    header, entries = envelope.decode_map(data)
    code = next(code for code, kind in KIND_BY_CODE.items() if kind.name == header.kind)
    for name in entries:
        without = {key: value for key, value in entries.items() if key != name}
        for changed in (without, *({**entries, name: value} for value in _WRONG)):
            message = packed(code, msgpack.packb(changed, use_bin_type=True))
            try:
                envelope.decode(message)  # optional fields may be absent, and some values suit some fields
            except WireError:
                yield subject, message


def packed(code: int, body: bytes, *, version: int = 1, flags: int = 0, claimed: int | None = None) -> bytes:
    """An envelope around any body, whatever it says of itself."""
    return around(code, zstandard.ZstdCompressor(level=1).compress(body), len(body) if claimed is None else claimed,
                  version=version, flags=flags)  # fmt: skip


def around(code: int, frame: bytes, claimed: int, *, version: int = 1, flags: int = 0) -> bytes:
    """An envelope around any frame."""
    prefix = _PREFIX.pack(b"TIDE", version, code, flags, claimed)
    return prefix + zlib.crc32(frame, zlib.crc32(prefix)).to_bytes(4, "little") + frame


def of_version(record: Record, model: str, version: int) -> Message:
    """The message as another wire version would have it."""
    data = envelope.encode(record)
    return subjects.subject_of(model, record), around(data[5], data[16:], int.from_bytes(data[8:12], "little"),
                                                      version=version)  # fmt: skip


def oversized(records: Sequence[Record], model: str) -> Iterator[Message]:
    """Claims of sizes that nobody should believe."""
    for record in records:
        subject, data = subjects.subject_of(model, record), envelope.encode(record)
        code, frame = data[5], data[16:]
        for claimed in (0xFFFFFFFF, 0x7FFFFFFF, 1 << 30):
            yield subject, around(code, frame, claimed)
        # A map, an array, a text and bytes of four billion items.
        for body in (
            b"\xdf\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
        ):
            yield subject, packed(code, body)
            yield subject, packed(code, b"\x81\xa1a" + body)


def bombs(records: Sequence[Record], model: str, num_bytes: int = 1 << 30) -> Iterator[Message]:
    """A few KB that unpack to `num_bytes`: the size stated, stated small, and not stated."""
    piece = bytes(1 << 20)
    stated = zstandard.ZstdCompressor(level=3).compressobj(size=num_bytes)
    open_end = zstandard.ZstdCompressor(level=3, write_content_size=False).compressobj()
    frames = [b"".join([*(made.compress(piece) for _ in range(num_bytes >> 20)), made.flush()])
              for made in (stated, open_end)]  # fmt: skip
    for record in records:
        subject, code = subjects.subject_of(model, record), envelope.encode(record)[5]
        for frame in frames:
            for claimed in (num_bytes, 1000):
                yield subject, around(code, frame, claimed)


def of_spec(spec: TargetSpec, **changes: object) -> TargetSpec:
    """Another target."""
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
