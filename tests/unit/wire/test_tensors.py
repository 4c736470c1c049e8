import dataclasses

import numpy as np
import pytest

from schemas.examples import SPEC, hidden_chunk
from tide_daemon.wire import tensors
from tide_daemon.wire.envelope import PREFIX_BYTES, encode, read_header
from tide_daemon.wire.kinds import CODECS, MAX_ROWS
from tide_daemon.wire.tensors import bf16_to_float32, float32_to_bf16, rows_per_chunk

RNG = np.random.default_rng(7)


def random_states(num_rows: int, width: int, scale: float = 1.0) -> np.ndarray:
    return float32_to_bf16((RNG.standard_normal((num_rows, width)) * scale).astype(np.float32))


@pytest.mark.parametrize("codec", ["bf16", "bf16-planes"])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 64), (7, 1728)])
def test_lossless_codecs_keep_every_bit(codec: str, shape: tuple[int, int]) -> None:
    aux = RNG.integers(0, 65_536, shape, dtype=np.uint16)
    assert np.array_equal(tensors.decode(tensors.encode(aux, codec), *shape, codec), aux)


def test_every_bit_pattern_survives_both_layouts() -> None:
    aux = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    for codec in ("bf16", "bf16-planes"):
        assert np.array_equal(tensors.decode(tensors.encode(aux, codec), 256, 256, codec), aux)


def test_the_byte_layouts_are_as_documented() -> None:
    aux = np.array([[0x0102, 0x0304]], np.uint16)
    assert tensors.encode(aux, "bf16") == bytes([2, 1, 4, 3])
    assert tensors.encode(aux, "bf16-planes") == bytes([2, 4, 1, 3])
    one = float32_to_bf16(np.array([[127.0, -64.0]], np.float32))
    assert tensors.encode(one, "int8-block64") == np.array([1.0], "<f2").tobytes() + bytes([127, 256 - 64])


def slow_int8(aux: np.ndarray) -> np.ndarray:
    """The same codec written block by block: what decoding must give, as float32."""
    values = bf16_to_float32(aux)
    result = np.zeros_like(values)
    for row in range(values.shape[0]):
        for start in range(0, values.shape[1], 64):
            block = values[row, start : start + 64]
            scale = np.float32(np.float16(np.abs(block).max() / np.float32(127.0)))
            if scale > 0:
                result[row, start : start + 64] = np.clip(np.rint(block / scale), -127, 127).astype(np.int8) * scale
    return result


@pytest.mark.parametrize("shape", [(0, 64), (1, 1), (3, 63), (4, 64), (5, 65), (2, 576)])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e5])
def test_int8_equals_a_slow_reference(shape: tuple[int, int], scale: float) -> None:
    aux = random_states(*shape, scale)
    decoded = tensors.decode(tensors.encode(aux, "int8-block64"), *shape, "int8-block64")
    assert np.array_equal(decoded, float32_to_bf16(slow_int8(aux)))


def test_int8_is_within_half_a_step_of_the_block() -> None:
    aux = random_states(50, 1728, 3.0)
    values = bf16_to_float32(aux).reshape(50, 27, 64)
    decoded = bf16_to_float32(tensors.decode(tensors.encode(aux, "int8-block64"), 50, 1728, "int8-block64"))
    step = np.abs(values).max(axis=2, keepdims=True) / 127.0
    error = np.abs(decoded.reshape(50, 27, 64) - values)
    # half a step of the grid, the scale's float16 rounding (2**-11), and the result's bf16 rounding (2**-8)
    assert np.all(error <= 0.5 * step + np.abs(values).max(axis=2, keepdims=True) * (2**-11 + 2**-8) + 1e-9)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F00])
def test_int8_refuses_what_it_cannot_carry(bits: int) -> None:
    aux = random_states(2, 100)
    aux[1, 99] = bits
    with pytest.raises(ValueError, match="send it as bf16"):
        tensors.encode(aux, "int8-block64")


def test_rounding_to_bf16_is_to_nearest_even_and_keeps_nan() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0x80000000], np.uint32)
    expected = np.array([0x3F80, 0x3F82, 0x3F81, 0x7FC0, 0x7FC0, 0x7F80, 0x8000], np.uint16)
    assert np.array_equal(float32_to_bf16(bits.view(np.float32)), expected)


def test_bf16_to_float32_and_back_is_exact() -> None:
    aux = np.arange(65_536, dtype=np.uint16)
    finite = aux[(aux & 0x7F80) != 0x7F80]
    assert np.array_equal(float32_to_bf16(bf16_to_float32(finite)), finite)


@pytest.mark.parametrize("codec", CODECS)
def test_a_wrong_length_is_refused(codec: str) -> None:
    data = tensors.encode(random_states(3, 70), codec)
    for wrong in (b"", data[:-1], data + b"x"):
        with pytest.raises(ValueError, match="3 rows of 70 values"):
            tensors.decode(wrong, 3, 70, codec)


def test_unknown_codecs_dtypes_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="codec must be one of"):
        tensors.encode(random_states(1, 1), "gzip")
    with pytest.raises(ValueError, match="codec must be one of"):
        tensors.decode(b"", 0, 1, "gzip")
    with pytest.raises(ValueError, match="uint16"):
        tensors.encode(np.zeros((1, 1), np.float32), "bf16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint16"):
        tensors.encode(np.zeros(4, np.uint16), "bf16")


def test_bf16_is_decoded_without_a_copy() -> None:
    data = tensors.encode(random_states(10, 100), "bf16")
    assert not tensors.decode(data, 10, 100, "bf16").flags.owndata


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("hidden_size", "num_topk", "limit"), [(576, 8, 1 << 20), (4096, 0, 1 << 20), (64, 64, 50_000)]
)
def test_as_many_rows_as_promised_fit_even_if_nothing_compresses(
    codec: str, hidden_size: int, num_topk: int, limit: int
) -> None:
    """Random bits, the longest names, and one row more would be over the limit by size alone."""
    width = 3 * hidden_size
    rows = rows_per_chunk(limit, width, num_topk, codec)
    aux = RNG.integers(0, 0x7F00, (rows, width), dtype=np.uint16)
    if codec == "int8-block64":
        aux = random_states(rows, width)
    chunk = dataclasses.replace(
        hidden_chunk(codec),
        spec=dataclasses.replace(SPEC, hidden_size=hidden_size, vocab_size=16_000_000, model="m" * 64),
        node="n" * 64,
        workload="w" * 64,
        token_ids=RNG.integers(0, 16_000_000, rows, dtype=np.int32),
        loss_mask=np.ones(rows, np.uint8),
        topk_ids=RNG.integers(0, 16_000_000, (rows, num_topk), dtype=np.int32),
        topk_logprobs=-RNG.random((rows, num_topk)).astype(np.float16),
        aux=aux,
    )
    assert len(encode(chunk)) <= limit
    row_bytes = tensors.num_bytes(1, width, codec) + 5 + 6 * num_topk
    assert (rows + 1) * row_bytes > limit * 0.9 - row_bytes


def test_the_room_kept_for_a_header_holds_the_longest() -> None:
    chunk = dataclasses.replace(
        hidden_chunk("int8-block64"),
        spec=dataclasses.replace(
            SPEC,
            model="m" * 64,
            aux_layer_ids=tuple(range(65_472, 65_536)),
            hidden_size=65_536,
            vocab_size=16_000_000,
        ),
        node="n" * 64,
        workload="w" * 64,
        chunk_index=2**31 - 1,
        first_position=2**31 - 1,
        draft_version=99_999_999,
        next_token_id=15_999_999,
        token_ids=np.zeros(0, np.int32),
        loss_mask=np.zeros(0, np.uint8),
        topk_ids=np.zeros((0, 1024), np.int32),
        topk_logprobs=np.zeros((0, 1024), np.float16),
        aux=np.zeros((0, 64 * 65_536), np.uint16),
    )
    assert PREFIX_BYTES + read_header(encode(chunk)).body_bytes + 5 * 5 < tensors.HEADER_BYTES


def test_no_more_rows_are_promised_than_a_chunk_may_have() -> None:
    assert rows_per_chunk(8 << 20, 1, 0, "bf16") == MAX_ROWS


def test_a_limit_too_small_for_one_row_says_what_to_change() -> None:
    with pytest.raises(ValueError, match="raise the broker's max_payload"):
        rows_per_chunk(10_000, 3 * 4096, 0, "bf16")
