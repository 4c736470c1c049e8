import dataclasses

import numpy as np
import pytest

from schemas.examples import hidden_chunk
from tests.unit.wire.equality import assert_same
from tests.unit.wire.forge import envelope_of_map
from tide_daemon.errors import WireError
from tide_daemon.wire.envelope import decode, decode_map, encode
from tide_daemon.wire.records import HiddenChunk

CHUNK = hidden_chunk("bf16")


def without_rows(num_topk: int) -> HiddenChunk:
    return dataclasses.replace(
        CHUNK,
        token_ids=np.zeros(0, np.int32),
        loss_mask=np.zeros(0, np.uint8),
        topk_ids=np.zeros((0, num_topk), np.int32),
        topk_logprobs=np.zeros((0, num_topk), np.float16),
        aux=np.zeros((0, 12), np.uint16),
    )


@pytest.mark.parametrize("codec", ["bf16", "bf16-planes", "int8-block64"])
@pytest.mark.parametrize("num_topk", [0, 5])
def test_a_chunk_without_rows_keeps_its_shapes(codec: str, num_topk: int) -> None:
    """A request's last chunk may hold no rows; readers concatenate the tensors of all its chunks."""
    chunk = dataclasses.replace(without_rows(num_topk), codec=codec)
    assert_same(chunk, decode(encode(chunk)))


def test_a_chunk_without_topk_survives() -> None:
    chunk = dataclasses.replace(CHUNK, topk_ids=np.zeros((3, 0), np.int32), topk_logprobs=np.zeros((3, 0), np.float16))
    assert_same(chunk, decode(encode(chunk)))


@pytest.mark.parametrize("codec", ["bf16", "bf16-planes"])
def test_states_that_are_not_finite_survive_lossless_codecs(codec: str) -> None:
    aux = CHUNK.aux.copy()
    aux[0, :4] = (0x7F80, 0xFF80, 0x7FC0, 0xFFFF)  # infinities and NaNs
    chunk = dataclasses.replace(CHUNK, codec=codec, aux=aux)
    assert_same(chunk, decode(encode(chunk)))


def test_rows_cut_out_of_a_larger_buffer_are_encoded() -> None:
    """The ring hands out slices that are not contiguous."""
    wide = np.arange(3 * 20, dtype=np.uint16).reshape(3, 20)
    chunk = dataclasses.replace(CHUNK, aux=wide[:, :12], topk_ids=np.asfortranarray(CHUNK.topk_ids))
    assert_same(chunk, decode(encode(chunk)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": np.array([5, 17, 100], np.int32)}, "token_ids: must be in 0..99"),
        ({"token_ids": np.array([5, -1, 9], np.int32)}, "token_ids: must be in 0..99"),
        ({"token_ids": np.array([5, 17, 99], np.int64)}, "token_ids: must be a numpy array of int32"),
        ({"token_ids": [5, 17, 99]}, "token_ids: must be a numpy array"),
        ({"token_ids": np.zeros((3, 1), np.int32)}, r"token_ids must be \[n\]"),
        ({"loss_mask": np.array([0, 2, 1], np.uint8)}, "loss_mask: must be in 0..1"),
        ({"loss_mask": np.array([0, 1], np.uint8)}, "loss_mask: must have shape"),
        ({"topk_ids": np.array([[-2, 0], [0, 0], [0, 0]], np.int32)}, "topk_ids: must be in -1..99"),
        ({"topk_logprobs": np.array([[0, 0], [np.nan, 0], [0, 0]], np.float16)}, "topk_logprobs"),
        ({"topk_logprobs": np.array([[0, 0], [1, 0], [0, 0]], np.float16)}, "topk_logprobs"),
        ({"next_token_id": 100}, "next_token_id"),
        ({"next_token_id": -2}, "next_token_id"),
        ({"aux": np.zeros((3, 13), np.uint16)}, "aux: must have shape"),
        ({"aux": np.zeros((3, 12), np.float32)}, "aux: must be a numpy array of uint16"),
        ({"codec": "zip"}, "codec: must be one of"),
        ({"codec": "int8-block64", "aux": np.full((3, 12), 0x7FC0, np.uint16)}, "aux: aux holds NaN"),
        ({"request_id": "abc"}, "request_id: must match"),
        ({"workload": None}, "workload: must be text"),
        ({"spec": dataclasses.replace(CHUNK.spec, aux_layer_ids=(3, 2))}, "ascending"),
        ({"spec": dataclasses.replace(CHUNK.spec, aux_layer_ids=())}, "not empty"),
        ({"spec": dataclasses.replace(CHUNK.spec, model="A")}, "spec: model: must match"),
    ],
)
def test_encoding_refuses_a_wrong_chunk(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(dataclasses.replace(CHUNK, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("workload", "sent"),
    [("chat/v2:a.b-c_d", "chat/v2:a.b-c_d"), ("my chat\n\ud800", "my_chat__"), ("x" * 70, "x" * 64)],
)
def test_a_clients_label_is_made_to_fit(workload: str, sent: str) -> None:
    """A client chooses it; a bad one must not stop capture."""
    chunk = decode(encode(dataclasses.replace(CHUNK, workload=workload)))
    assert isinstance(chunk, HiddenChunk)
    assert chunk.workload == sent


def test_a_label_that_was_not_made_to_fit_is_refused_on_arrival() -> None:
    entries = decode_map(encode(CHUNK))[1]
    with pytest.raises(WireError, match="workload: must match"):
        decode(envelope_of_map(entries | {"workload": "my chat"}, 1))


@pytest.mark.parametrize("num_rows", [0, 1, 2, 4, 65_536, 65_537, -1])
def test_a_number_of_rows_that_the_bytes_do_not_have_is_refused(num_rows: int) -> None:
    entries = decode_map(encode(CHUNK))[1] | {"num_rows": num_rows}
    with pytest.raises(WireError):
        decode(envelope_of_map(entries, 1))


@pytest.mark.parametrize("entry", ["token_ids", "loss_mask", "topk_ids", "topk_logprobs", "aux"])
def test_tensors_of_another_length_are_refused_by_name(entry: str) -> None:
    entries = decode_map(encode(CHUNK))[1]
    for data in (b"", entries[entry][:-1], entries[entry] + b"\x00"):  # type: ignore[index,operator]
        with pytest.raises(WireError, match=entry):
            decode(envelope_of_map(entries | {entry: data}, 1))


def test_a_spec_that_does_not_fit_the_states_is_refused() -> None:
    entries = decode_map(encode(CHUNK))[1]
    spec = entries["spec"] | {"hidden_size": 65_536, "aux_layer_ids": list(range(64))}  # type: ignore[operator]
    with pytest.raises(WireError, match="aux: 3 rows of 4194304 values"):
        decode(envelope_of_map(entries | {"spec": spec}, 1))


def test_ids_outside_the_vocabulary_are_refused_on_arrival() -> None:
    """The trainer indexes the embedding with them."""
    entries = decode_map(encode(CHUNK))[1]
    hostile = np.array([5, 17, 2**31 - 1], "<i4").tobytes()
    with pytest.raises(WireError, match=r"token_ids: must be in 0\.\.99"):
        decode(envelope_of_map(entries | {"token_ids": hostile}, 1))


def test_hostile_scales_decode_to_states_that_are_not_finite() -> None:
    """Decoding never fails on content; the trainer looks before it computes."""
    entries = decode_map(encode(hidden_chunk("int8-block64")))[1]
    aux = entries["aux"]
    assert isinstance(aux, bytes)
    hostile = np.array([np.inf, np.nan, -np.inf], "<f2").tobytes() + aux[6:]
    chunk = decode(envelope_of_map(entries | {"aux": hostile}, 1))
    assert isinstance(chunk, HiddenChunk)
    assert np.all(chunk.aux[0][chunk.aux[0] != 0] & 0x7F80 == 0x7F80)
