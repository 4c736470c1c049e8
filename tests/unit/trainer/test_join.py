"""Chunks become samples; what is missing, doubled, foreign or damaged splits or is refused, and is counted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.trainer_samples import LAYERS, PROMPT, RESPONSE, SPEC, chunks
from tide_daemon.trainer.join import cut, decode_chunks, join, pieces, same_topk
from tide_daemon.wire import envelope
from tide_daemon.wire.records import HiddenChunk

ROWS = PROMPT + RESPONSE


def joined(parts: list[HiddenChunk]) -> tuple[list, Counter[str]]:
    refused: Counter[str] = Counter()
    return join(parts, refused), refused


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 8])
def test_chunks_of_a_request_become_one_sample(num_chunks: int) -> None:
    """However a request was cut, the sample is the same."""
    (whole,), _ = joined(list(chunks(1, num_chunks=1)))
    (sample,), refused = joined(list(chunks(1, num_chunks=num_chunks)))
    assert not refused
    assert sample.num_rows == ROWS
    assert sample.next_token_id == whole.next_token_id
    for name in ("token_ids", "loss_mask", "topk_ids", "topk_logprobs", "aux"):
        assert np.array_equal(getattr(whole, name), getattr(sample, name)), name


def test_a_missing_chunk_splits_the_sample() -> None:
    """Attention never runs over a gap."""
    parts = list(chunks(1, num_chunks=4))
    samples, _ = joined([parts[0], parts[1], parts[3]])
    assert [(s.first_position, s.num_rows) for s in samples] == [(0, ROWS // 2), (ROWS * 3 // 4, ROWS // 4)]


def test_a_cached_prefix_starts_late() -> None:
    """Positions are absolute."""
    parts = list(chunks(1, num_chunks=4))
    (sample,), _ = joined(parts[1:])
    assert sample.first_position == ROWS // 4


def test_rows_captured_twice_count_once() -> None:
    """A preempted request is prefilled again."""
    first, second = chunks(1, num_chunks=2)
    (whole,), _ = joined([first, second])
    (again,), refused = joined([first, replace(first, chunk_index=1), replace(second, chunk_index=2)])
    assert not refused
    assert np.array_equal(whole.aux, again.aux)
    everything = next(chunks(1, num_chunks=1))
    (overlapping,), _ = joined([first, replace(everything, chunk_index=1)])
    assert np.array_equal(whole.token_ids, overlapping.token_ids)


def test_a_chunk_that_does_not_continue_is_split_off_and_counted() -> None:
    """The token that a chunk announces must be the first of the next one."""
    first, second = chunks(1, num_chunks=2)
    samples, refused = joined([replace(first, next_token_id=200), second])
    assert len(samples) == 2
    assert refused == {"other_token": 1}


def test_foreign_and_damaged_chunks_are_counted_by_reason() -> None:
    """Each field of the target's record is a reason of its own."""
    good = next(chunks(1, num_chunks=1))
    infinite = good.aux.copy()
    infinite[3, 5] = 0x7F80
    huge, large = good.aux.copy(), good.aux.copy()
    huge[3, 5] = (127 + 48) << 7  # 2^48
    large[3, 5] = ((127 + 47) << 7) | 0x7F  # the largest below it
    bodies = [
        envelope.encode(good),
        envelope.encode(replace(good, spec=replace(SPEC, target_fingerprint="00" * 32))),
        envelope.encode(replace(good, spec=replace(SPEC, aux_layer_ids=(0, 1, 3)))),
        envelope.encode(replace(good, aux=infinite)),
        envelope.encode(replace(good, aux=huge)),
        envelope.encode(replace(good, aux=large)),
        envelope.encode(good)[:-3],
        b"",
    ]
    refused: Counter[str] = Counter()
    assert len(list(decode_chunks(bodies, SPEC, refused))) == 2
    assert refused == {
        "other_target_fingerprint": 1,
        "other_aux_layer_ids": 1,
        "not_finite": 1,
        "too_large": 1,
        "damaged": 2,
    }
    assert len(LAYERS) == 3


def test_pieces_keep_some_context_and_know_the_token_that_follows() -> None:
    """A long request is cut; prompt rows beyond the context are left out."""
    (sample,), _ = joined(list(chunks(1)))
    cuts = pieces([sample], max_rows=10, context_rows=4)
    assert [(p.first_position, p.num_rows) for p in cuts] == [(4, 10), (14, 10), (24, 8)]
    assert cuts[0].next_token_id == sample.token_ids[14]
    assert cuts[-1].next_token_id == sample.next_token_id
    assert sum(int(p.loss_mask.sum()) for p in cuts) == RESPONSE


def test_a_cut_inside_the_prompt_announces_no_generated_token() -> None:
    """next_token_id is the target's own token or -1."""
    (sample,), _ = joined(list(chunks(1)))
    assert cut(sample, 0, PROMPT - 2).next_token_id == -1
    assert cut(sample, 0, PROMPT).next_token_id == sample.token_ids[PROMPT]


def test_a_prompt_without_answer_teaches_nothing() -> None:
    """It makes no piece."""
    parts = [replace(c, loss_mask=np.zeros_like(c.loss_mask)) for c in chunks(1)]
    samples, _ = joined(parts)
    assert pieces(samples, 512, 128) == []


def test_different_numbers_of_log_probabilities_are_widened() -> None:
    """Chunks and samples captured with different settings can be joined and batched."""
    first, second = chunks(1, num_chunks=2)
    narrow = replace(second, topk_ids=second.topk_ids[:, :1], topk_logprobs=second.topk_logprobs[:, :1])
    (sample,), _ = joined([first, narrow])
    assert sample.topk_ids.shape == (ROWS, 2)
    assert (sample.topk_ids[-1, 1], sample.topk_logprobs[-1, 1]) == (-1, 0)
    without = [replace(c, topk_ids=c.topk_ids[:, :0], topk_logprobs=c.topk_logprobs[:, :0]) for c in chunks(2)]
    (none,), _ = joined(without)
    assert [s.topk_ids.shape[1] for s in same_topk([sample, none])] == [2, 2]
