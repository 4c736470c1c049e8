"""Deferred draft-extend: at 0 steps the draft's KV cache is filled later, many tokens at a time.

SGLang fills it at each step with one pass of the draft over one token a request. On a CPU such a pass costs
as much as a pass over dozens of tokens: 4% of a plain step at batch 1, 6% at batch 8 (measured; see
ops/decisions/0005-draft-kv-at-zero-steps.md). So on a CPU it is skipped at 0 steps, the aux states of the
skipped positions are copied aside, and one prefill-like pass makes up for them:

- for every request of a batch that is about to draft, and
- while speculation is in use at some batch size, for requests that have `FLUSH_AT` positions to make up
  for, so that a later resumption is short and few slots that the prefix cache keeps are empty.

A request with more than `KEEP_AT_MOST` such positions becomes cold (cold.py). A request that ends leaves up
to FLUSH_AT slots of its tail unfilled in the prefix cache: a follow-up of that conversation drafts a
little worse over them, losslessly.

The pass is SGLang's own EagleDraftWorker._draft_extend_for_prefill (srt/speculative/eagle_worker_v2.py): rotation
of token ids by one, KV at the given slots, and the first draft token from the last position. It is given a
batch that looks like a chunk of a prefill. Only without overlap scheduling: draft inputs must be at hand.
"""

import copy
from collections.abc import Sequence
from typing import Any, Final

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.spec_utils import draft_tp_context
from torch import Tensor

from tide_daemon.engine.sglang import cold
from tide_daemon.engine.sglang.spans import tokens_of

ATTRIBUTE: Final = "tide_skipped"
FLUSH_AT: Final = 128
KEEP_AT_MOST: Final = 256


class Skipped:
    """Consecutive positions of one request whose draft KV is missing.

    The states are copies: a reference to each step's own tensor would leave small blocks that live long all over the
    heap, and the forward passes' large ones would have to go around them.

    Attributes:
        start: the first position.
        count: how many.
    """

    __slots__ = ("_states", "count", "start")

    def __init__(self, start: int, like: Tensor) -> None:
        self.start = start
        self.count = 0
        self._states = like.new_empty((FLUSH_AT, like.shape[-1]))

    @property
    def end(self) -> int:
        """The first position behind them."""
        return self.start + self.count

    @property
    def states(self) -> Tensor:
        """[count, A*H]."""
        return self._states[: self.count]

    def add(self, state: Tensor) -> None:
        """The state [A*H] of the next position."""
        if self.count == len(self._states):
            self._states = torch.cat([self._states, torch.empty_like(self._states)])
        self._states[self.count].copy_(state)
        self.count += 1


def remember(reqs: Sequence[Any], positions: Sequence[int], aux: Tensor) -> None:
    """Note a 0-step batch: row i of `aux` is the state of request i at `positions[i]`."""
    for row, (req, position) in enumerate(zip(reqs, positions, strict=True)):
        if cold.is_cold(req):
            continue
        skipped = req.__dict__.get(ATTRIBUTE)
        if skipped is None:
            skipped = Skipped(position, aux)
            setattr(req, ATTRIBUTE, skipped)
        if skipped.end != position or skipped.count >= KEEP_AT_MOST:
            give_up([req])
        else:
            skipped.add(aux[row])


def give_up(reqs: Sequence[Any]) -> None:
    """Forget what was to be made up for; these requests are cold now."""
    for req in reqs:
        if req.__dict__.pop(ATTRIBUTE, None) is not None:
            cold.mark_cold([req])


def forget(reqs: Sequence[Any], decoding: Sequence[Any]) -> None:
    """A prefill fills the draft's cache for these requests, but not what `decoding` ones among them lack."""
    give_up(decoding)
    for req in reqs:
        req.__dict__.pop(ATTRIBUTE, None)


def due(reqs: Sequence[Any], num_steps: int, in_use: bool) -> list[int]:
    """Which requests of a coming batch must be made up for now."""
    least = 1 if num_steps else FLUSH_AT
    if not num_steps and not in_use:
        return []
    found = ((index, req.__dict__.get(ATTRIBUTE)) for index, req in enumerate(reqs))
    return [index for index, skipped in found if skipped is not None and skipped.count >= least]


def run(draft_worker: Any, batch: Any, which: Sequence[int]) -> None:
    """Fill the draft's cache for these requests of a decode batch, and its draft input with their first draft token."""
    reqs = [batch.reqs[index] for index in which]
    skipped = [req.__dict__[ATTRIBUTE] for req in reqs]
    index = torch.tensor(which)
    if batch.seq_lens_cpu[index].tolist() != [one.end for one in skipped]:
        give_up(reqs)
        return
    aux = torch.cat([one.states for one in skipped])
    made_up = _like_a_prefill(batch, reqs, index, [one.start for one in skipped], [one.count for one in skipped])
    spec = batch.spec_info
    with draft_tp_context(draft_worker.parallel_layout):
        filled = draft_worker._draft_extend_for_prefill(made_up, aux, spec.bonus_tokens[index])
    for name in ("topk_p", "topk_index", "hidden_states"):
        column = getattr(spec, name)
        setattr(spec, name, column.index_copy(0, index, getattr(filled, name).to(column.dtype)))
    for req in reqs:
        req.__dict__.pop(ATTRIBUTE, None)


def _like_a_prefill(batch: Any, reqs: list[Any], index: Tensor, starts: list[int], lengths: list[int]) -> Any:
    """A copy of the batch that holds these requests alone, extending each by `lengths` tokens from `starts`."""
    made = copy.copy(batch)
    pool = batch.req_pool_indices[index]
    slots = batch.req_to_token_pool.req_to_token
    ends = [start + count for start, count in zip(starts, lengths, strict=True)]
    ranges = list(zip(pool.tolist(), starts, ends, strict=True))
    ids = [torch.from_numpy(tokens_of(r, a, b)) for r, a, b in zip(reqs, starts, ends, strict=True)]
    made.reqs = reqs
    made.forward_mode = ForwardMode.EXTEND
    made.input_ids = torch.cat(ids).to(torch.int64)
    made.req_pool_indices = pool
    made.req_pool_indices_cpu = pool
    made.seq_lens = batch.seq_lens[index]
    made.seq_lens_cpu = batch.seq_lens_cpu[index]
    made.seq_lens_sum = sum(ends)
    made.orig_seq_lens = made.seq_lens.to(torch.int32)
    made.out_cache_loc = torch.cat([slots[row, a:b] for row, a, b in ranges]).to(torch.int64)
    made.prefix_lens = starts
    made.extend_lens = lengths
    made.extend_num_tokens = sum(lengths)
    made.extend_logprob_start_lens = lengths
    made.return_logprob = False
    made.multimodal_inputs = [None] * len(reqs)
    made.decoding_reqs = made.chunked_req = made.chunked_req_next_prompt_token = None
    made.sampling_info = copy.copy(batch.sampling_info)
    return made
