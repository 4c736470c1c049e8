import concurrent.futures
import dataclasses
import struct
import subprocess
import sys
import tracemalloc

import msgpack
import pytest
import zstandard

from schemas.examples import EXAMPLES
from tests.unit.wire.equality import assert_same
from tests.unit.wire.forge import envelope_of_body, envelope_of_frame, envelope_of_map
from tide_daemon.errors import WireError
from tide_daemon.wire import records
from tide_daemon.wire.envelope import PREFIX_BYTES, decode, decode_map, encode, peek_kind, read_header
from tide_daemon.wire.kinds import KIND_BY_RECORD, KINDS

CLAIM = EXAMPLES["draft_claim"]
LOSSLESS = {name: record for name, record in EXAMPLES.items() if name != "hidden_chunk_int8_block64"}


def entries_of(record: records.Record) -> dict[str, object]:
    return decode_map(encode(record))[1]


def code_of(record: records.Record) -> int:
    return KIND_BY_RECORD[type(record)].code


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_kind_survives_a_round_trip(name: str) -> None:
    assert_same(EXAMPLES[name], decode(encode(EXAMPLES[name])))


def test_every_kind_has_an_example() -> None:
    assert {type(record) for record in EXAMPLES.values()} == {kind.record for kind in KINDS}


def test_kinds_and_codes_are_unique() -> None:
    assert len({kind.code for kind in KINDS}) == len({kind.record for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_encoding_is_deterministic(name: str) -> None:
    assert encode(EXAMPLES[name]) == encode(EXAMPLES[name])


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: memoryview(bytes(2 * len(data)))[::2]])
def test_any_buffer_is_decoded_or_refused(wrap: object) -> None:
    """A strided view is as good as bytes; this one holds zeros and is refused for its magic."""
    data = encode(CLAIM)
    buffer = wrap(data)  # type: ignore[operator]
    if bytes(buffer) == data:
        assert decode(buffer) == CLAIM
    else:
        with pytest.raises(WireError, match="not a tide-daemon message"):
            decode(buffer)


def test_the_header_is_read_without_decompressing() -> None:
    data = encode(CLAIM)
    assert peek_kind(data[:PREFIX_BYTES]) == "DraftClaim"
    assert read_header(data).body_bytes == len(msgpack.packb(entries_of(CLAIM)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_truncation_is_refused(name: str) -> None:
    data = encode(EXAMPLES[name])
    for length in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:length])


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_flipped_byte_is_refused(name: str) -> None:
    """CRC-32 finds any change of one byte, and the prefix is under it too."""
    data = encode(EXAMPLES[name])
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        with pytest.raises(WireError):
            decode(damaged)


def test_trailing_bytes_are_refused_after_the_envelope_the_frame_and_the_map() -> None:
    data = encode(CLAIM)
    frame, body = data[PREFIX_BYTES:], msgpack.packb(entries_of(CLAIM))
    with pytest.raises(WireError, match="checksum"):
        decode(data + b"x")
    for extra in (b"x", frame, zstandard.ZstdCompressor().compress(b""), b"\x50\x2a\x4d\x18\x01\x00\x00\x00x"):
        with pytest.raises(WireError, match="zstd frame is damaged"):
            decode(envelope_of_frame(frame + extra, len(body), kind=4))
    with pytest.raises(WireError, match="ends at byte"):
        decode(envelope_of_body(body + b"\xc0", kind=4))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, b"XIDE", "not a tide-daemon message"),
        (4, b"\x02", "wire version is 2"),
        (5, b"\x00", "kind 0 is not known"),
        (5, b"\xff", "kind 255 is not known"),
        (6, b"\x01\x00", "flags are 0x0001"),
        (8, struct.pack("<I", 2**32 - 1), "over the limit"),
        (12, b"\x00\x00\x00\x00", "checksum"),
    ],
)
def test_a_wrong_prefix_is_named(position: int, value: bytes, message: str) -> None:
    data = bytearray(encode(CLAIM))
    data[position : position + len(value)] = value
    with pytest.raises(WireError, match=message):
        decode(data)


def test_a_callers_limit_is_kept() -> None:
    with pytest.raises(WireError, match="over the limit of 10 bytes"):
        decode(encode(CLAIM), max_bytes=10)


def test_a_frame_must_state_the_size_that_the_header_states() -> None:
    body = msgpack.packb(entries_of(CLAIM))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(body)
    with pytest.raises(WireError, match="the zstd frame states"):
        decode(envelope_of_frame(unsized, len(body), kind=4))
    with pytest.raises(WireError, match="the zstd frame states"):
        decode(envelope_of_frame(zstandard.ZstdCompressor().compress(body), len(body) + 1, kind=4))
    with pytest.raises(WireError, match="not a zstd frame"):
        decode(envelope_of_frame(b"\x50\x2a\x4d\x18\x00\x00\x00\x00", 0, kind=4))


def test_a_frame_may_not_ask_for_a_large_window() -> None:
    """RFC 8878, 3.1.1: 4 bytes of content size, a window of 2**10 * 2**exponent, one raw block."""
    body = msgpack.packb(entries_of(CLAIM))
    block = struct.pack("<I", 1 | len(body) << 3)[:3] + body
    for exponent, fits in ((0, True), (17, False)):
        frame = b"\x28\xb5\x2f\xfd\x80" + struct.pack("<BI", exponent << 3, len(body)) + block
        if fits:
            assert decode(envelope_of_frame(frame, len(body), kind=4)) == CLAIM
        else:
            with pytest.raises(WireError, match="asks for a window of 134217728 bytes"):
                decode(envelope_of_frame(frame, len(body), kind=4))


@pytest.mark.parametrize("kind", [kind.code for kind in KINDS])
def test_a_decompression_bomb_allocates_nothing(kind: int) -> None:
    """A gigabyte of zeros in some kilobytes, whichever size the header claims."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 30)
    frame = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1 << 10)) + compressor.flush()
    for claimed in (1 << 30, 100, KINDS[kind - 1].max_bytes):
        data = envelope_of_frame(frame, claimed, kind=kind)
        tracemalloc.start()
        try:
            with pytest.raises(WireError):
                decode(data)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\xdd\x00\x01\x00\x00" * 1000, "more than there are bytes for"),
        (b"\x91" * 5000, "nested more than 20 deep"),
        (b"\xdf\xff\xff\xff\xff", "more than there are bytes for"),
        (b"\xdd\x00\x0f\x00\x00" + b"\x80" * 0xF0000, "more than 131072 values"),
        (b"\xc6\xff\xff\xff\xff", "cut off|ends at byte"),
        (b"\xc7\x01\x05x", "type 0xc7"),
        (b"\xc1", "type 0xc1"),
        (b"\x81\xa1a", "cut off"),
        (b"", "cut off"),
        (b"\x90", "must hold a map"),
        (b"\xc0", "must hold a map"),
        (b"\x81\xa1\xff\xc0", "not a valid msgpack map"),
        (b"\x81\x01\x01", "not a valid msgpack map"),
        (b"\x81\x90\x01", "not a valid msgpack map"),
    ],
)
def test_hostile_msgpack_is_refused_and_allocates_nothing(body: bytes, message: str) -> None:
    data = envelope_of_body(body)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=message):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", LOSSLESS)
def test_an_unknown_entry_is_ignored(name: str) -> None:
    record = LOSSLESS[name]
    entries = entries_of(record) | {"added_later": [1, {"a": None}]}
    assert_same(record, decode(envelope_of_map(entries, code_of(record))))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_missing_required_entry_is_named(name: str) -> None:
    record = EXAMPLES[name]
    optional = {f.name for f in dataclasses.fields(record) if has_default(f)}
    for missing in entries_of(record):
        entries = entries_of(record)
        del entries[missing]
        data = envelope_of_map(entries, code_of(record))
        if missing == "withheld" and getattr(record, missing):
            with pytest.raises(WireError, match="token_ids: must be in 0"):  # what a reader of old does
                decode(data)
        elif missing in optional:
            decode(data)
        else:
            with pytest.raises(WireError, match=f"{missing} is missing"):
                decode(data)


def has_default(field: "dataclasses.Field[object]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@pytest.mark.parametrize(
    "wrong", [-(2**62), 2**64 - 1, float("nan"), float("inf"), "\x00" * 70_000, b"?", [[]], {"": {}}]
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_wrong_value_is_refused_by_name(name: str, wrong: object) -> None:
    """No field takes any of these, but that a decision's event may be any map."""
    record = EXAMPLES[name]
    for entry in entries_of(record):
        entries = entries_of(record) | {entry: wrong}
        if entry in ("event", "data") and isinstance(wrong, dict | bytes):
            continue
        with pytest.raises(WireError, match=f"{type(record).__name__}.{entry}"):
            decode(envelope_of_map(entries, code_of(record)))


def test_an_integer_does_for_a_float_but_a_bool_for_nothing() -> None:
    entries = entries_of(CLAIM)
    decoded = decode(envelope_of_map(entries | {"claimed_at": 5}, 4))
    assert isinstance(decoded, records.DraftClaim)
    assert (decoded.claimed_at, type(decoded.claimed_at)) == (5.0, float)
    for entry in ("claimed_at", "version"):
        with pytest.raises(WireError, match=entry):
            decode(envelope_of_map(entries | {entry: True}, 4))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("draft_claim", {"version": 0}, "version: must be in 1"),
        ("draft_claim", {"trainer": "a.b"}, "trainer: must match"),
        ("draft_claim", {"trainer": "a\n"}, "trainer: must match"),
        ("draft_claim", {"content_digest": "A" * 64}, "content_digest: must match"),
        ("draft_manifest_delta", {"base_version": None}, "both or neither"),
        ("draft_manifest_delta", {"parts": EXAMPLES["draft_manifest_delta"].parts[::-1]}, "listed in order"),  # type: ignore[union-attr]
        ("draft_manifest_delta", {"num_steps": 0}, "num_steps: must be in 1"),
        ("desired_server", {"draft_digest": ""}, "draft_digest"),
        ("desired_server", {"steps_table": ((4, 1), (2, 3))}, "ascending"),
        ("desired_server", {"steps_table": ((4, 1, 1),)}, r"steps_table: \[0\]: must be an array of 2"),
        ("desired_server", {"sample_rate": 1.5}, "sample_rate: must be in 0"),
        ("desired_trainer", {"serving_version": 0}, "serving_digest"),
        ("node_report", {"engine": "fine"}, "engine: must be one of"),
        ("node_report", {"rows_dropped": -1}, "rows_dropped: must be in 0"),
        ("node_report", {"steps": (records.StepStats(1, 2, 1, 1, (1,), 0.1, 0.1, 0.1),)}, "accepted_at"),
        ("trainer_report", {"loss": float("nan")}, "loss: must be finite"),
        ("trainer_report", {"refused": {"\ud800": 1}}, "UTF-8"),
        ("decision", {"event": {"a": (1, 2)}}, "lists and maps only"),
        ("decision", {"event": {"a": float("inf")}}, "finite"),
        ("decision", {"event": {"a": 2**70}}, "64-bit"),
        ("decision", {"numbers": {"a": float("-inf")}}, r"numbers: \['a'\]: must be finite"),
        ("target_rows", {"data": b"123"}, "must have num_rows"),
        ("target_rows", {"first_row": 100, "num_rows": 1}, "total_rows"),
    ],
)
def test_encoding_refuses_what_a_peer_would_refuse(name: str, changes: dict[str, object], message: str) -> None:
    record = dataclasses.replace(EXAMPLES[name], **changes)
    with pytest.raises(ValueError, match=message):
        encode(record)


def test_encoding_refuses_what_is_no_record_or_too_large() -> None:
    with pytest.raises(ValueError, match="StepStats is not a message"):
        encode(records.StepStats(1, 0, 1, 1, (), 0.1, 0.1, 0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="over its limit"):
        encode(records.DraftPart(1, 0, bytes(32 << 20)))


def test_sentences_are_cut_rather_than_refused() -> None:
    """A report about trouble must leave whatever the trouble's text is."""
    problems = tuple(f"{index} {'x' * 3000} \ud800" for index in range(200))
    sent = decode(encode(dataclasses.replace(EXAMPLES["node_report"], problems=problems)))
    assert isinstance(sent, records.NodeReport)
    assert len(sent.problems) == 100
    assert sent.problems[-1].startswith("199 xxx")
    assert {len(problem) for problem in sent.problems} == {2000}
    desired = decode(encode(dataclasses.replace(EXAMPLES["desired_server"], reason="a\udfffb")))
    assert isinstance(desired, records.DesiredServer)
    assert desired.reason == "a?b"


def test_threads_share_nothing() -> None:
    """Encoding and decoding run in thread pools."""
    everything = list(LOSSLESS.values()) * 40
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        encoded = list(pool.map(encode, everything))
        decoded = list(pool.map(decode, encoded))
    for record, data, back in zip(everything, encoded, decoded, strict=True):
        assert data == encode(record)
        assert_same(record, back)


def test_a_process_without_numpy_reads_every_kind_but_chunks() -> None:
    """The controller is installed without numpy."""
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from tide_daemon.wire import envelope, subjects, weights, records\n"
        "report = records.DraftClaim(1, 't', '0' * 64, 1.0)\n"
        "assert envelope.decode(envelope.encode(report)) == report\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
