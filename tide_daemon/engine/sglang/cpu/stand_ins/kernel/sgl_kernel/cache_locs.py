"""Bookkeeping of KV cache slots for speculative decoding. All outputs are written in place.

`req_to_token` [rows, positions] int32 says which cache slot holds position p of a request; row numbers come from
`req_pool_indices` [B]. Lengths and offsets [B] may be int32 or int64.
"""

import ctypes

import torch


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Give positions [start, end) of each request the next slots of `out_cache_loc`, which lists them back to back.

    Caller: sglang/srt/mem_cache/allocation.py, assign_req_to_token_pool_func.
    """
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start]
        taken += end - start


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Copy the slots of positions [start, end) of each request into `out_cache_loc`, back to back.

    Caller: sglang/kernels/ops/speculative/cache_locs.py, assign_extend_cache_locs_func, fill_front_out_cache_loc_func.
    """
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        out_cache_loc[taken : taken + end - start] = req_to_token[row, start:end]
        taken += end - start


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    num_steps: int,
) -> None:
    """Copy the topk * num_steps slots behind each request's end into `out_cache_loc` [B * topk * num_steps].

    Caller: sglang/kernels/ops/speculative/cache_locs.py, assign_draft_cache_locs_contiguous_func.
    """
    num_slots = topk * num_steps
    columns = seq_lens.to(torch.int64).unsqueeze(1) + torch.arange(num_slots)
    out_cache_loc.view(-1, num_slots).copy_(req_to_token[req_pool_indices.unsqueeze(1), columns])


def build_draft_decode_metadata_cpu(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    topk: int,
    num_steps: int,
    pool_len: int,
) -> torch.Tensor:
    """Rows of `req_to_token` for each of the topk candidates of a request.

    Row b * topk + c is the request's seq_lens[b] slots, then the num_steps slots of candidate c, which begin at
    position seq_lens[b] + c * num_steps. What follows is undefined.

    Caller: sglang/srt/layers/attention/intel_amx_backend.py, IntelAMXMultiStepDraftBackend.

    Returns:
        [B * topk, pool_len], dtype of `req_to_token`.
    """
    rows = req_to_token[req_pool_indices]
    if topk == 1:
        return rows
    expanded = rows.repeat_interleave(topk, dim=0)
    for b, length in enumerate(seq_lens.tolist()):
        for candidate in range(1, topk):
            start = length + candidate * num_steps
            expanded[b * topk + candidate, length : length + num_steps] = rows[b, start : start + num_steps]
    return expanded


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, tgt_loc: torch.Tensor, src_loc: torch.Tensor
) -> None:
    """Move cache rows src_loc -> tgt_loc in every buffer, as if all were read before any is written.

    `data_ptrs` are addresses of contiguous buffers and `strides` the bytes of one row in each, so this copies memory.
    Caller: sglang/kernels/ops/kvcache/cache_move.py, copy_all_layer_kv_cache_func (accepted tree paths, topk > 1).
    """
    sources, targets = src_loc.tolist(), tgt_loc.tolist()
    for address, row_bytes in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        rows = [ctypes.string_at(address + source * row_bytes, row_bytes) for source in sources]
        for target, row in zip(targets, rows, strict=True):
            ctypes.memmove(address + target * row_bytes, row, row_bytes)


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor, accept_lens: torch.Tensor, bonus_tokens: torch.Tensor, accept_stride: int
) -> None:
    """Write each request's last accepted token: accept_tokens[b, accept_lens[b] - 1], rows of accept_stride tokens.

    Caller: sglang/kernels/ops/speculative/eagle.py, fill_bonus_tokens_func.
    """
    last = torch.arange(accept_lens.numel()) * accept_stride + accept_lens.to(torch.int64) - 1
    bonus_tokens.copy_(accept_tokens.view(-1)[last])


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor, out_cache_loc: torch.Tensor, accept_out_cache_loc: torch.Tensor
) -> None:
    """Pack out_cache_loc[accept_index], entries of -1 left out, at the front of `accept_out_cache_loc`.

    Caller: sglang/kernels/ops/speculative/eagle.py, fill_accept_out_cache_loc_func.
    """
    kept = accept_index[accept_index >= 0].to(torch.int64)
    accept_out_cache_loc[: kept.numel()] = out_cache_loc[kept]


def rotate_input_ids_cpu(
    input_ids: torch.Tensor,
    extend_start_loc: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    topk_index: torch.Tensor,
    select_index: torch.Tensor | None = None,
) -> None:
    """Shift each request's ids one to the left and put its new token at its end, or at `select_index` when given.

        ids [a b c | d e], new [x y]  ->  [b c x | e y]

    Caller: sglang/kernels/ops/speculative/multi_layer_eagle.py, rotate_input_ids.
    """
    new_tokens = topk_index.view(-1).tolist()
    ends = None if select_index is None else select_index.tolist()
    for b, (start, length) in enumerate(zip(extend_start_loc.tolist(), extend_seq_lens.tolist(), strict=True)):
        if length == 0:
            continue
        input_ids[start : start + length - 1] = input_ids[start + 1 : start + length].clone()
        input_ids[start + length - 1 if ends is None else ends[b]] = new_tokens[b]
