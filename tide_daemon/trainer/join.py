"""Chunks of one request -> samples (runs of consecutive rows), and samples -> pieces to train on. Pure.

Rules, each for something that happens in production:

- a sample ends where rows are missing (drops, retention, a lost chunk): attention over a gap would be wrong;
- a sample may start late (cached prefix): positions are absolute, training copes;
- rows captured twice (a preempted request is prefilled again) count once, the first ones;
- of a request whose server withholds token ids only those stretches are samples whose tokens its top-k tell;
- a chunk of another target, with states that are not finite or absurdly large, or whose first token is not the one
  that the chunk before announced is refused and counted; what it would have joined is split there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tide_daemon.errors import WireError
from tide_daemon.trainer.sample import Sample
from tide_daemon.wire import envelope
from tide_daemon.wire.records import HiddenChunk, TargetSpec
from tide_daemon.wire.withheld import tell

MIN_ROWS = 3
"""The shortest piece with a position to learn from: a row at p predicts the token at p+2."""

_BF16_EXPONENT = 0x7F80
_MAX_EXPONENT = (127 + 48) << 7
"""States from 2^48 on are refused. Norms square what the draft's first layer makes of them, and above 2^64 a square is
infinite in float32: one such row would make every round that it is in fail. Real states stay below 2^17."""


def refusal(chunk: HiddenChunk, spec: TargetSpec) -> str | None:
    """Why a chunk cannot be used with this target, None if it can. The words are counters' names."""
    if chunk.spec != spec:
        differing = [f.name for f in fields(spec) if getattr(chunk.spec, f.name) != getattr(spec, f.name)]
        return f"other_{differing[0]}"
    if chunk.withheld and not chunk.topk_ids.shape[1]:
        return "tokens_withheld"
    largest = int((chunk.aux & _BF16_EXPONENT).max(initial=0))
    if largest < _MAX_EXPONENT:
        return None
    return "not_finite" if largest == _BF16_EXPONENT else "too_large"


def decode_chunks(bodies: Iterable[bytes], spec: TargetSpec, refused: Counter[str]) -> Iterator[HiddenChunk]:
    """Usable chunks of the envelopes, in their order; others are counted in `refused`."""
    for body in bodies:
        try:
            record = envelope.decode(body)
        except WireError:
            refused["damaged"] += 1
            continue
        if not isinstance(record, HiddenChunk):
            refused["other_kind"] += 1
        elif (reason := refusal(record, spec)) is not None:
            refused[reason] += 1
        else:
            yield record


def join(chunks: Iterable[HiddenChunk], refused: Counter[str]) -> list[Sample]:
    """Samples of one request's chunks, which come in chunk order. Empty chunks are skipped."""
    runs: list[list[HiddenChunk]] = []
    for chunk in chunks:
        before = runs[-1][-1] if runs else None
        end = before.first_position + len(before.token_ids) if before is not None else chunk.first_position
        rest = _without_first(chunk, end - chunk.first_position)
        if rest is None:
            continue
        follows = before is not None and rest.first_position == end
        if follows and before is not None and before.next_token_id not in (-1, int(rest.token_ids[0])):
            refused["other_token"] += 1
            follows = False
        if follows:
            runs[-1].append(rest)
        else:
            runs.append([rest])
    return [part for run in runs for part in _told(_concatenate(run))]


def _told(sample: Sample) -> list[Sample]:
    """The stretches of a sample whose tokens are known: all of it, unless its server withholds them."""
    if not (sample.token_ids < 0).any():
        return [sample]
    named = replace(sample, token_ids=tell(sample.token_ids, sample.topk_ids, sample.topk_logprobs))
    known = np.concatenate([[False], named.token_ids >= 0, [False]])
    starts, ends = np.flatnonzero(~known[:-1] & known[1:]), np.flatnonzero(known[:-1] & ~known[1:])
    parts = [cut(named, int(start), int(end)) for start, end in zip(starts, ends, strict=True)]
    # What follows a stretch is a token that is not told.
    return [replace(part, next_token_id=max(part.next_token_id, -1)) for part in parts]


def _without_first(chunk: HiddenChunk, num_rows: int) -> HiddenChunk | None:
    """The chunk without rows that an earlier one brought already, None if nothing is left."""
    if num_rows <= 0:
        return chunk if len(chunk.token_ids) else None
    if num_rows >= len(chunk.token_ids):
        return None
    arrays = ("token_ids", "loss_mask", "topk_ids", "topk_logprobs", "aux")
    cut = {name: getattr(chunk, name)[num_rows:] for name in arrays}
    return replace(chunk, first_position=chunk.first_position + num_rows, **cut)


def _concatenate(run: list[HiddenChunk]) -> Sample:
    first, final = run[0], run[-1]
    width = max(chunk.topk_ids.shape[1] for chunk in run)
    # After a row that was itself generated the next token is generated too; after a prompt row it may be either.
    is_generated = bool(final.loss_mask[-1]) or (final.last and final.next_token_id >= 0)
    return Sample(
        request_id=first.request_id,
        workload=first.workload,
        first_position=first.first_position,
        token_ids=np.concatenate([chunk.token_ids for chunk in run]),
        loss_mask=np.concatenate([chunk.loss_mask for chunk in run]),
        topk_ids=np.concatenate([_widen(chunk.topk_ids, width, -1) for chunk in run]),
        topk_logprobs=np.concatenate([_widen(chunk.topk_logprobs, width, 0) for chunk in run]),
        aux=np.concatenate([chunk.aux for chunk in run]),
        next_token_id=final.next_token_id if is_generated else -1,
    )


def _widen(array: NDArray[Any], width: int, fill: int) -> NDArray[Any]:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)


def same_topk(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with as many log-probabilities a row as the widest has; batches need one width."""
    width = max((sample.topk_ids.shape[1] for sample in samples), default=0)
    return [
        sample
        if sample.topk_ids.shape[1] == width
        else replace(
            sample,
            topk_ids=_widen(sample.topk_ids, width, -1),
            topk_logprobs=_widen(sample.topk_logprobs, width, 0),
        )
        for sample in samples
    ]


def cut(sample: Sample, start: int, end: int) -> Sample:
    """Rows start..end-1 of a sample; views, nothing is copied."""
    following = sample.next_token_id
    if end < sample.num_rows:
        following = int(sample.token_ids[end]) if sample.loss_mask[end] else -1
    rows = slice(start, end)
    return Sample(
        request_id=sample.request_id,
        workload=sample.workload,
        first_position=sample.first_position + start,
        token_ids=sample.token_ids[rows],
        loss_mask=sample.loss_mask[rows],
        topk_ids=sample.topk_ids[rows],
        topk_logprobs=sample.topk_logprobs[rows],
        aux=sample.aux[rows],
        next_token_id=following,
    )


def pieces(samples: Iterable[Sample], max_rows: int, context_rows: int) -> list[Sample]:
    """Samples cut for training: at most `max_rows` each, every one with something to learn.

    Args:
        context_rows: rows kept before the first generated token. What comes earlier costs compute and teaches
            nothing but attention over a long prompt.
    """
    result = []
    for sample in samples:
        generated = np.flatnonzero(sample.loss_mask)
        if not len(generated):
            continue
        start = max(0, int(generated[0]) - context_rows)
        end = int(generated[-1]) + 1
        for first in range(start, end, max_rows):
            piece = cut(sample, first, min(first + max_rows, end))
            if piece.num_rows >= MIN_ROWS and piece.num_response_tokens:
                result.append(piece)
    return result
