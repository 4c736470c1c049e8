import contextlib
import json
import struct

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.draft.conftest import random_checkpoint, small_config
from tide_daemon.draft import delta
from tide_daemon.draft.checkpoint import Checkpoint, validate
from tide_daemon.draft.vocab import map_from_ids
from tide_daemon.errors import DraftError

BASE = random_checkpoint(small_config(), 1)


def near(base: Checkpoint) -> Checkpoint:
    """A draft a little further on, with one row of the map replaced."""
    tensors = {
        name: (t.float() * 1.01).to(t.dtype) if t.dtype == torch.bfloat16 else t for name, t in base.tensors.items()
    }
    ids = base.vocab_map.target_ids.clone()
    ids[3] = next(i for i in range(base.config.vocab_size) if i not in ids.tolist())
    vocab = map_from_ids(ids, base.config.vocab_size)
    return validate(base.config, {**tensors, "d2t": vocab.d2t, "t2d": vocab.t2d})


RESULT = near(BASE)
PAYLOAD = delta.encode(RESULT, BASE)


def test_delta_rebuilds_the_result_bit_for_bit() -> None:
    """Base and delta give the very bits, the map included."""
    again = delta.apply(PAYLOAD, BASE)
    assert again.digest == RESULT.digest
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in RESULT.tensors.items())


def test_anchor_needs_no_base() -> None:
    """A dense payload rebuilds the draft alone."""
    anchor = delta.encode(RESULT)
    assert delta.read_header(anchor).is_anchor
    assert delta.apply(anchor, None).digest == RESULT.digest


def test_negative_zero_and_subnormals_survive() -> None:
    """Bits travel, not values."""
    tensors = {name: tensor.clone() for name, tensor in BASE.tensors.items()}
    tensors["norm.weight"][:3] = torch.tensor([-0.0, 1e-40, -1e-40]).to(torch.bfloat16)
    result = validate(BASE.config, tensors)
    assert delta.apply(delta.encode(result, BASE), BASE).digest == result.digest


def test_delta_of_equal_drafts_is_tiny() -> None:
    """XOR of equal bits compresses to nothing."""
    assert len(delta.encode(BASE, BASE)) < 3000


def test_a_draft_of_another_vocabulary_size_travels_whole_where_it_must() -> None:
    """Tensors whose shape changed are sent dense within the delta."""
    other = random_checkpoint(small_config(draft_vocab_size=50), 2)
    assert delta.apply(delta.encode(other, BASE), BASE).digest == other.digest


@pytest.mark.parametrize("base", [None, RESULT])
def test_wrong_base_is_refused(base: Checkpoint | None) -> None:
    """A delta is never applied to a draft other than its base."""
    with pytest.raises(DraftError, match="base"):
        delta.apply(PAYLOAD, base)


def test_draft_over_the_limit_is_refused() -> None:
    """The size is known from the header, before anything is unpacked."""
    with pytest.raises(DraftError, match="more than"):
        delta.apply(PAYLOAD, BASE, max_bytes=1000)


def test_trailing_bytes_and_truncation_are_refused() -> None:
    """Nothing may follow the last tensor, nothing may be missing."""
    for bad in (PAYLOAD + b"\0", PAYLOAD[:-1], PAYLOAD[:20], PAYLOAD[:8], b""):
        with pytest.raises(DraftError):
            delta.apply(bad, BASE)


def forged(header: dict[str, object], frames: bytes) -> bytes:
    text = json.dumps(header).encode()
    return delta.MAGIC + struct.pack("<I", len(text)) + text + frames


def test_decompression_bomb_is_refused() -> None:
    """A frame that announces another size than its tensor has is not unpacked."""
    bomb = zstandard.compress(bytes(50_000_000))
    header = delta.read_header(PAYLOAD)
    tensors = [[name, xored, len(bomb)] for name, xored, _ in header.tensors]
    payload = forged(
        {
            "base_digest": header.base_digest,
            "content_digest": header.content_digest,
            "config": header.config_json,
            "tensors": tensors,
        },
        bomb * len(tensors),
    )
    with pytest.raises(DraftError, match="unpack"):
        delta.apply(payload, BASE)


def test_config_with_absurd_sizes_is_refused() -> None:
    """A header that claims a gigantic draft is refused by its size alone."""
    header = delta.read_header(PAYLOAD)
    config = json.loads(header.config_json)
    config.update(hidden_size=65536, target_hidden_size=65536, vocab_size=4_000_000, draft_vocab_size=4_000_000)
    payload = forged(
        {"base_digest": "", "content_digest": "", "config": json.dumps(config), "tensors": list(header.tensors)}, b""
    )
    with pytest.raises(DraftError, match="more than"):
        delta.apply(payload, None)


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_random_bytes_give_the_documented_error(data: bytes) -> None:
    """No other exception, with and without the right magic number."""
    for payload in (data, delta.MAGIC + data):
        with pytest.raises(DraftError):
            delta.apply(payload, BASE)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(PAYLOAD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    """A payload with one changed byte is refused or, where the byte carries nothing, gives the same draft."""
    data = bytearray(PAYLOAD)
    data[position] ^= change
    with contextlib.suppress(DraftError):
        assert delta.apply(bytes(data), BASE).digest == RESULT.digest
