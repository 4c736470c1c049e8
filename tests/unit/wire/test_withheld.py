"""Chunks without token ids: what is told, what is not, and that readers who do not know them refuse them."""

import dataclasses

import numpy as np
import pytest

from schemas.examples import hidden_chunk
from tests.trainer_samples import PROMPT, RESPONSE, chunks
from tests.unit.wire.forge import envelope_of_map
from tide_daemon.errors import WireError
from tide_daemon.wire.envelope import decode, decode_map, encode
from tide_daemon.wire.records import FIRST_CHOICE, OTHER_CHOICE, HiddenChunk
from tide_daemon.wire.withheld import first_choices, tell, withhold


def whole(number: int = 3) -> HiddenChunk:
    (chunk,) = chunks(number, num_chunks=1)
    return chunk


def test_no_token_is_named_and_prompts_top_k_goes_too() -> None:
    """Each id says only whether it was the first choice; what predicts a prompt token is blank."""
    chunk = withhold(whole())
    assert set(chunk.token_ids.tolist()) == {FIRST_CHOICE, OTHER_CHOICE}
    assert (chunk.token_ids[:PROMPT] == OTHER_CHOICE).all() and (chunk.token_ids[PROMPT:] == FIRST_CHOICE).all()
    assert (chunk.topk_ids[: PROMPT - 1] == -1).all() and (chunk.topk_ids[PROMPT - 1 :] >= 0).all()
    assert chunk.next_token_id == -1 and chunk.withheld
    assert (decode(encode(chunk)).token_ids == chunk.token_ids).all()


def test_first_choices_are_told_and_others_are_not() -> None:
    """A word that the target sampled against its first choice stays unknown, and so does what nothing predicts."""
    chunk = whole()
    said = chunk.token_ids.copy()
    said[PROMPT + 5] = (said[PROMPT + 5] + 2) % 64
    withheld = withhold(dataclasses.replace(chunk, token_ids=said))
    named = tell(withheld.token_ids, withheld.topk_ids, withheld.topk_logprobs)
    known = np.ones(PROMPT + RESPONSE, bool)
    known[:PROMPT] = known[PROMPT + 5] = False
    assert (named[known] == said[known]).all() and (named[~known] < 0).all()


def test_the_first_choice_is_the_most_likely_one_whatever_the_order() -> None:
    """Columns that were not captured do not count; none at all gives -1."""
    ids = np.array([[7, 9, -1], [-1, -1, -1], [4, 5, 6]], np.int32)
    logprobs = np.array([[-2.0, -0.5, 0.0], [0.0, 0.0, 0.0], [-0.1, -3.0, -4.0]], np.float16)
    assert first_choices(ids, logprobs).tolist() == [9, -1, 4]
    assert first_choices(ids[:, :0], logprobs[:, :0]).tolist() == [-1, -1, -1]


def test_a_chunk_that_follows_needs_the_row_before() -> None:
    """Its first token is told by the last row of the chunk before, which the server remembers."""
    first, second = chunks(3)
    before = int(first_choices(first.topk_ids[-1:], first.topk_logprobs[-1:])[0])
    assert withhold(second, before).token_ids[0] == FIRST_CHOICE
    assert withhold(second).token_ids[0] == OTHER_CHOICE


@pytest.mark.parametrize(
    "entries",
    [
        {"withheld": False},
        {"next_token_id": 42},
        {"token_ids": np.array([-2, -2, 5], "<i4").tobytes()},
        {"token_ids": np.array([-2, -3, -1], "<i4").tobytes()},
    ],
)
def test_half_withheld_chunks_are_refused(entries: dict[str, object]) -> None:
    """Negative ids without the entry, as a reader that does not know it sees them; ids beside it; unknown marks."""
    chunk = withhold(hidden_chunk("bf16"))
    with pytest.raises(WireError, match=r"token_ids|next_token_id"):
        decode(envelope_of_map(decode_map(encode(chunk))[1] | entries, 1))
