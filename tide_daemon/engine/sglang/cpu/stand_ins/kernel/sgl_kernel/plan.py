"""Which cache rows a forward pass attends to and what it must not see: the same for all its layers.

Letters as in attention.py: B requests, N query rows of one request, L padded keys, Hk key/value heads.
"""

from dataclasses import dataclass

import torch

_KEY_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """One pass over requests with equally many query rows.

    Attributes:
        rows: the query rows in the batch.
        num_requests: B.
        num_rows: N.
        num_keys: L.
        slots: rows of a cache that is seen as [slots * Hk, D], flat in the order [B, Hk, L].
        first_hidden: every row sees all keys before this one.
        hidden: [B, 1, N or 1, 1, L - first_hidden] bool, True where a row must not look.
    """

    rows: slice
    num_requests: int
    num_rows: int
    num_keys: int
    slots: torch.Tensor
    first_hidden: int
    hidden: torch.Tensor


class _Last:
    """The plans of the last pass, and the objects they were made from.

    The objects are kept, so that none of them can be freed and its identity be taken by another.
    """

    def __init__(self) -> None:
        self._made_from: tuple[object, ...] = ()
        self.plans: list[Plan] = []

    def holds(self, *made_from: object) -> bool:
        return len(made_from) == len(self._made_from) and all(
            one is other or (isinstance(one, (int, bool)) and one == other)
            for one, other in zip(made_from, self._made_from, strict=True)
        )

    def put(self, plans: list[Plan], *made_from: object) -> list[Plan]:
        self.plans, self._made_from = plans, made_from
        return plans


_last_decode, _last_extend = _Last(), _Last()


def plan_of_decode(
    of_pass: object,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    num_kv_heads: int,
) -> Plan:
    """Plan for one query row a request. The same `of_pass` object (not None) gives the plan of before."""
    if of_pass is None or not _last_decode.holds(of_pass, req_to_token, num_kv_heads):
        shortest, longest = (int(length) for length in seq_lens.aminmax())
        num_keys = _padded(longest)
        hidden = torch.arange(shortest, num_keys) >= seq_lens.view(-1, 1)
        plan = Plan(
            rows=slice(0, seq_lens.numel()),
            num_requests=seq_lens.numel(),
            num_rows=1,
            num_keys=num_keys,
            slots=_slots(req_to_token, req_pool_indices, longest, num_kv_heads),
            first_hidden=shortest,
            hidden=hidden.view(seq_lens.numel(), 1, 1, 1, -1),
        )
        _last_decode.put([plan], of_pass, req_to_token, num_kv_heads)
    return _last_decode.plans[0]


def plans_of_extend(
    lengths: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    tree_mask: torch.Tensor | None,
    is_causal: bool,
    num_kv_heads: int,
) -> list[Plan]:
    """Plans for several query rows a request: one for all requests if they extend by as much, else one each.

    Args:
        lengths: seq_lens, extend_seq_lens, extend_start_loc. The same objects give the plans of before.
    """
    made_from = (*lengths, req_to_token, req_pool_indices, tree_mask, is_causal, num_kv_heads)
    if _last_extend.holds(*made_from):
        return _last_extend.plans
    totals, extends, starts = (tensor.tolist() for tensor in lengths)
    if len(set(extends)) == 1 and starts == list(range(0, len(starts) * extends[0], extends[0] or 1)):
        groups = [slice(0, len(extends))]
    else:
        groups = [slice(b, b + 1) for b in range(len(extends)) if extends[b] > 0]
    plans = []
    mask_start = 0
    for group in groups:
        num_requests, num_rows, start = group.stop - group.start, extends[group.start], starts[group.start]
        shortest, longest = min(totals[group]), max(totals[group])
        first_hidden, num_keys = shortest - num_rows, _padded(longest)
        hidden = _hidden(lengths[0][group], num_rows, first_hidden, num_keys, is_causal)
        if tree_mask is not None:
            block = tree_mask[mask_start : mask_start + num_requests * num_rows * num_rows]
            mask_start += block.numel()
            _hide_by_tree(hidden, block.view(num_requests, num_rows, num_rows), totals[group], first_hidden)
        plan = Plan(
            rows=slice(start, start + num_requests * num_rows),
            num_requests=num_requests,
            num_rows=num_rows,
            num_keys=num_keys,
            slots=_slots(req_to_token, req_pool_indices[group], longest, num_kv_heads),
            first_hidden=first_hidden,
            hidden=hidden.view(num_requests, 1, num_rows, 1, -1),
        )
        plans.append(plan)
    return _last_extend.put(plans, *made_from)


def _padded(num_keys: int) -> int:
    return -(-num_keys // _KEY_MULTIPLE) * _KEY_MULTIPLE


def _slots(req_to_token: torch.Tensor, req_pool_indices: torch.Tensor, longest: int, num_heads: int) -> torch.Tensor:
    """Rows of the cache, see Plan.slots. Beyond a request's end they are stale or 0: finite numbers, hidden later."""
    slots = req_to_token[req_pool_indices, :longest].to(torch.int64) * num_heads
    slots = torch.nn.functional.pad(slots, (0, _padded(longest) - longest))
    return (slots.unsqueeze(1) + torch.arange(num_heads).view(-1, 1)).view(-1)


def _hidden(seq_lens: torch.Tensor, num_rows: int, first_hidden: int, num_keys: int, is_causal: bool) -> torch.Tensor:
    """[B, N, L - first_hidden]: row i of a request is its position seq_len - num_rows + i and sees up to itself."""
    end = seq_lens.view(-1, 1, 1).expand(-1, num_rows, 1)
    if is_causal:
        end = end - num_rows + 1 + torch.arange(num_rows).view(1, -1, 1)
    return torch.arange(first_hidden, num_keys) >= end


def _hide_by_tree(hidden: torch.Tensor, tree: torch.Tensor, totals: list[int], first_hidden: int) -> None:
    """Replace the causal mask among the last N positions of each request by its tree's. In place."""
    num_rows = tree.shape[1]
    for b, total in enumerate(totals):
        hidden[b, :, total - num_rows - first_hidden : total - first_hidden] = ~tree[b]
