"""Chunks that name no token, and what can be told of their tokens all the same. Pure.

A server that withholds token ids says of each generated token only whether it was the first choice of the target's
top-k in the row before. Where it was, the top-k names it; elsewhere, and in the whole prompt, nobody is told. This
keeps ids from being read off; it does not make states unreadable, see PRIVACY.md.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tide_daemon.wire.records import FIRST_CHOICE, OTHER_CHOICE, HiddenChunk


def first_choices(topk_ids: NDArray[np.int32], topk_logprobs: NDArray[np.float16]) -> NDArray[np.int32]:
    """The target's most likely next token after each row, int32 [n]; -1 where nothing was captured.

    Args:
        topk_ids, topk_logprobs: [n, k], as in HiddenChunk.
    """
    if not topk_ids.shape[1]:
        return np.full(len(topk_ids), -1, np.int32)
    captured = np.where(topk_ids >= 0, topk_logprobs.astype(np.float32), -np.inf)
    best = np.argmax(captured, axis=1)
    chosen: NDArray[np.int32] = topk_ids[np.arange(len(topk_ids)), best]
    return chosen


def withhold(chunk: HiddenChunk, before: int = -1) -> HiddenChunk:
    """The chunk without token ids, and without the top-k of rows that are followed by a token of the prompt.

    Args:
        before: first choice of the row before the chunk's first one, -1 if it is not known.
    """
    said = chunk.loss_mask != 0
    expected = np.concatenate([np.array([before], np.int32), first_choices(chunk.topk_ids, chunk.topk_logprobs)[:-1]])
    told = said & (expected >= 0) & (expected == chunk.token_ids)
    before_prompt = np.zeros(len(said), bool)
    before_prompt[:-1] = ~said[1:]
    return replace(
        chunk,
        token_ids=np.where(told, FIRST_CHOICE, OTHER_CHOICE).astype(np.int32),
        next_token_id=-1,
        topk_ids=np.where(before_prompt[:, None], np.int32(-1), chunk.topk_ids),
        topk_logprobs=np.where(before_prompt[:, None], np.float16(0.0), chunk.topk_logprobs),
        withheld=True,
    )


def tell(
    token_ids: NDArray[np.int32], topk_ids: NDArray[np.int32], topk_logprobs: NDArray[np.float16]
) -> NDArray[np.int32]:
    """Token ids of consecutive rows with every first choice named; negative where the token is not told. int32 [n]."""
    named = token_ids.copy()
    named[1:] = np.where(token_ids[1:] == FIRST_CHOICE, first_choices(topk_ids, topk_logprobs)[:-1], token_ids[1:])
    return named
