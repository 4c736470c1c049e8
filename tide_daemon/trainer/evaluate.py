"""Accept length of a draft on held-out requests: what SGLang's greedy chain would have accepted.

Every position of a response is taken as the start of a chain of `num_steps` drafts; the accept length
there is one (the target's own token) plus the leading drafts that equal what the target said. The
serving draft and a candidate are scored by this same function on the same samples. Starts too near
the end of the sample, where part of the chain's answers is unknown, are left out, as are starts in
the prompt.

`walked_*` counts the starts that serving would really visit: the first response token, then always
the position after the accepted ones. Its mean is the accept length an engine reports; the mean over
all starts has less noise and is what drafts are compared by.

Starts are summed by their place in the response as well, see positions.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tide_daemon.draft.model import Eagle3Draft
from tide_daemon.trainer.batch import pack
from tide_daemon.trainer.positions import BUCKETS, bucket_of, response_starts
from tide_daemon.trainer.sample import Sample
from tide_daemon.trainer.unroll import unroll

BATCH_ROWS = 2048


@dataclass(frozen=True, slots=True)
class SampleScore:
    """One sample under one draft.

    Attributes:
        num_positions: chain starts scored; 0 when the sample is too short.
        num_tokens: sum of their accept lengths, at least num_positions.
        accepted_at: for each step, starts whose drafts were right up to and with that step.
        first_position: position of the first start, -1 without any.
        walked_positions, walked_tokens: the same for the starts that serving would visit.
        by_position: (starts, sum of their accept lengths) of each bucket of positions.BUCKETS.
    """

    num_positions: int
    num_tokens: int
    accepted_at: tuple[int, ...]
    first_position: int
    walked_positions: int
    walked_tokens: int
    by_position: tuple[tuple[int, int], ...]


def score(
    draft: Eagle3Draft, embed_tokens: Tensor, target_ids: Tensor, samples: Sequence[Sample], num_steps: int
) -> list[SampleScore]:
    """Score samples, in their order.

    Args:
        draft: on the device and in the dtype to compute in.
        embed_tokens: [V, H], the same.
        target_ids: int64 [Vd], the target token of each row of the draft's head.
        num_steps: chain length, at least 1.
    """
    begins = response_starts(samples)
    order = sorted(range(len(samples)), key=lambda i: samples[i].num_rows)
    scores: dict[int, SampleScore] = {}
    group: list[int] = []
    rows = 0
    for i in order:
        if group and rows + samples[i].num_rows > BATCH_ROWS:
            scores.update(_score_group(draft, embed_tokens, target_ids, samples, begins, group, num_steps))
            group, rows = [], 0
        group.append(i)
        rows += samples[i].num_rows
    if group:
        scores.update(_score_group(draft, embed_tokens, target_ids, samples, begins, group, num_steps))
    return [scores[i] for i in range(len(samples))]


@torch.inference_mode()
def _score_group(
    draft: Eagle3Draft,
    embed_tokens: Tensor,
    target_ids: Tensor,
    samples: Sequence[Sample],
    begins: list[int],
    group: list[int],
    num_steps: int,
) -> dict[int, SampleScore]:
    batch = pack([samples[i] for i in group], num_steps).to(embed_tokens.device)
    target_ids = target_ids.to(embed_tokens.device)
    # A chain starts after a generated token, and all its answers must be known.
    starts = (batch.generated[:, 0] & (batch.tokens[:, num_steps] >= 0)).nonzero().flatten()
    alive = torch.ones_like(starts, dtype=torch.bool)
    accepted = alive.new_zeros(starts.numel(), num_steps)
    for step, states in enumerate(unroll(draft, embed_tokens, batch, num_steps, starts)):
        hidden = states.hidden[starts] if step == 0 else states.hidden
        drafted = torch.cat([target_ids[draft.logits(part).argmax(-1)] for part in hidden.split(512)])
        alive = alive & (drafted == batch.tokens[starts, step + 1])
        accepted[:, step] = alive
    starts, accepted = starts.cpu(), accepted.cpu()
    result = {}
    first_row = 0
    for i, length in zip(group, batch.lengths, strict=True):
        mine = (starts >= first_row) & (starts < first_row + length)
        result[i] = _one(starts[mine] - first_row, accepted[mine], samples[i].first_position, begins[i])
        first_row += length
    return result


def _one(rows: Tensor, accepted: Tensor, first_position: int, begins: int) -> SampleScore:
    """Score of one sample from its starts (rows, ascending) and bool [starts, num_steps].

    Args:
        begins: position of the first chain start of its request.
    """
    tokens = (1 + accepted.sum(-1)).tolist()
    by_row = dict(zip(rows.tolist(), tokens, strict=True))
    buckets = [[0, 0] for _ in BUCKETS]
    for place, num_tokens in by_row.items():
        bucket = buckets[bucket_of(first_position + place - begins)]
        bucket[0] += 1
        bucket[1] += num_tokens
    walked_positions = walked_tokens = 0
    row = int(rows[0]) if rows.numel() else 0
    while row in by_row:
        walked_positions += 1
        walked_tokens += by_row[row]
        row += by_row[row]
    return SampleScore(
        num_positions=len(tokens),
        num_tokens=sum(tokens),
        accepted_at=tuple(accepted.sum(0).tolist()),
        first_position=first_position + int(rows[0]) if rows.numel() else -1,
        walked_positions=walked_positions,
        walked_tokens=walked_tokens,
        by_position=tuple((starts, num_tokens) for starts, num_tokens in buckets),
    )
