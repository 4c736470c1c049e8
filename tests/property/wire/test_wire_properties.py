import contextlib
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.examples import EXAMPLES
from tests.property.wire.strategies import BY_KIND
from tests.schema_check import assert_valid
from tests.unit.wire.equality import assert_same
from tests.unit.wire.forge import envelope_of_body, envelope_of_frame, envelope_of_map
from tide_daemon.errors import WireError
from tide_daemon.wire import subjects, tensors
from tide_daemon.wire.envelope import decode, decode_map, encode, peek_kind
from tide_daemon.wire.kinds import KINDS
from tide_daemon.wire.records import DraftManifest, DraftPart, HiddenChunk
from tide_daemon.wire.scan import check_structure
from tide_daemon.wire.weights import join_parts, split_parts

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
MANY = settings(max_examples=400, deadline=None)
GOLDEN = [encode(record) for record in EXAMPLES.values()]
CODES = st.sampled_from([kind.code for kind in KINDS])
MSGPACK_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


def decode_or_refuse(data: bytes) -> None:
    with contextlib.suppress(WireError):
        decode(data)


@pytest.mark.parametrize("kind", BY_KIND)
def test_every_record_survives_and_is_what_its_schema_says(kind: str) -> None:
    """And stands on the one subject that it is verified on."""

    @FEW
    @given(BY_KIND[kind])
    def check(record: object) -> None:
        data = encode(record)  # type: ignore[arg-type]
        assert peek_kind(data) == kind
        back = assert_valid(data)
        if isinstance(record, HiddenChunk) and record.codec == "int8-block64":
            assert encode(back)[:12] == data[:12]
        else:
            assert_same(record, back)  # type: ignore[arg-type]
        spec = getattr(record, "spec", None)
        subjects.verify(subjects.subject_of("m" if spec is None else spec.model, back), back)

    check()


@MANY
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


@MANY
@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), CODES)
def test_arbitrary_bytes_under_a_right_prefix_are_refused(frame: bytes, body_bytes: int, kind: int) -> None:
    with pytest.raises(WireError):
        decode(envelope_of_frame(frame, body_bytes, kind=kind))


@MANY
@given(st.binary(max_size=200), CODES)
def test_an_arbitrary_body_is_refused(body: bytes, kind: int) -> None:
    """No record has so few fields that chance would spell their names."""
    with pytest.raises(WireError):
        decode(envelope_of_body(body, kind))


@MANY
@given(st.data())
def test_a_mutated_body_gives_a_record_or_the_one_error(data: st.DataObject) -> None:
    """Behind a right checksum: bytes flipped, put in or taken out of the msgpack map."""
    golden = data.draw(st.sampled_from(GOLDEN))
    _, entries = decode_map(golden)
    body = bytearray(msgpack.packb(entries))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        how = data.draw(st.sampled_from(["flip", "put in", "take out"]))
        if how == "flip":
            body[position] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "put in":
            body[position:position] = data.draw(st.binary(min_size=1, max_size=8))
        elif len(body) > 8:
            del body[position : position + data.draw(st.integers(1, 8))]
    decode_or_refuse(envelope_of_body(bytes(body), golden[5]))


@MANY
@given(st.data())
def test_any_value_in_any_field_gives_a_record_or_the_one_error(data: st.DataObject) -> None:
    golden = data.draw(st.sampled_from(GOLDEN))
    entries = decode_map(golden)[1]
    name = data.draw(st.sampled_from(sorted(entries)))
    value = data.draw(MSGPACK_VALUE)
    inner = entries[name]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        value = inner | {data.draw(st.sampled_from(sorted(inner))): value}
    decode_or_refuse(envelope_of_map(entries | {name: value}, golden[5]))


@MANY
@given(st.sampled_from(GOLDEN), st.data())
def test_any_damage_to_an_envelope_is_found(golden: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(golden) - 1))
    damaged = bytearray(golden)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    for wrong in (bytes(damaged), golden[:position], golden + data.draw(st.binary(min_size=1, max_size=9))):
        with pytest.raises(WireError):
            decode(wrong)


@MANY
@given(st.binary(max_size=64))
def test_the_scan_agrees_with_msgpack(body: bytes) -> None:
    """What passes is one value for msgpack too, and msgpack takes nothing that the scan finds cut off."""
    try:
        check_structure(body, 1000, 20)
    except WireError as error:
        if "cut off" in str(error) or "ends at byte" in str(error):
            with pytest.raises((ValueError, TypeError, msgpack.UnpackException)):  # or a key that cannot be hashed
                msgpack.unpackb(body, raw=True, strict_map_key=False)
        return
    with contextlib.suppress(TypeError):  # a map key that cannot be hashed
        msgpack.unpackb(body, raw=True, strict_map_key=False)


@MANY
@given(MSGPACK_VALUE)
def test_the_scan_takes_everything_that_msgpack_writes(value: object) -> None:
    check_structure(msgpack.packb(value), 1000, 20)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 255), st.integers(1, 60), st.binary(max_size=8), CODES)
def test_no_small_message_allocates_much(first: int, megabytes: int, tail: bytes, kind: int) -> None:
    """A long run of one byte is the cheapest bomb for zstd, and for msgpack of every container type."""
    body = bytes([first]) * (megabytes << 16) + tail
    data = envelope_of_body(body, kind)
    tracemalloc.start()
    try:
        decode_or_refuse(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= len(body) + (16 << 20)


BITS = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=130))


@FEW
@given(BITS, st.sampled_from(["bf16", "bf16-planes"]))
def test_lossless_codecs_keep_any_bits(aux: np.ndarray, codec: str) -> None:
    assert np.array_equal(tensors.decode(tensors.encode(aux, codec), *aux.shape, codec), aux)


@FEW
@given(BITS, st.data())
def test_int8_refuses_or_decodes_to_finite_states(aux: np.ndarray, data: st.DataObject) -> None:
    """And any bytes of the right length decode without an error."""
    noise = data.draw(st.binary(max_size=40))
    length = tensors.num_bytes(*aux.shape, "int8-block64")
    tensors.decode((noise * length)[:length].ljust(length, b"\xff"), *aux.shape, "int8-block64")
    try:
        encoded = tensors.encode(aux, "int8-block64")
    except ValueError:
        values = tensors.bf16_to_float32(aux)
        assert not np.all(np.abs(values) <= 65504.0 * 127.0)
        return
    decoded = tensors.decode(encoded, *aux.shape, "int8-block64")
    assert np.all(np.isfinite(tensors.bf16_to_float32(decoded)))


@FEW
@given(st.binary(max_size=500), st.integers(1, 600), st.randoms(use_true_random=False))
def test_parts_in_any_order_and_twice_join_to_the_payload(payload: bytes, part_bytes: int, random: object) -> None:
    anchor = EXAMPLES["draft_manifest_anchor"]
    assert isinstance(anchor, DraftManifest)
    split = split_parts(payload, part_bytes)
    parts = [DraftPart(anchor.version, entry.index, data) for entry, data in split] * 2
    random.shuffle(parts)  # type: ignore[attr-defined]
    manifest = DraftManifest(
        **{name: getattr(anchor, name) for name in anchor.__slots__ if name != "parts"},
        parts=tuple(entry for entry, _ in split),
    )
    assert join_parts(manifest, parts) == payload


@MANY
@given(st.text(max_size=80) | st.from_regex(r"tide\.v1\.[a-z]+(\.[a-z0-9*>]+){1,4}", fullmatch=True))
def test_parsing_any_subject_gives_an_address_or_the_one_error(subject: str) -> None:
    with contextlib.suppress(WireError):
        subjects.parse(subject)
