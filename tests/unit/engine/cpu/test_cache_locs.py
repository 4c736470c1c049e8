"""The cache bookkeeping stand-ins against the sentences of their docstrings."""

import pytest
import torch


def pool(num_rows: int = 4, num_positions: int = 24) -> torch.Tensor:
    """A table of distinct slots, so that a misplaced copy shows."""
    return torch.randperm(num_rows * num_positions, dtype=torch.int32).view(num_rows, num_positions)


ROWS = torch.tensor([2, 0, 3])
STARTS = torch.tensor([5, 0, 7], dtype=torch.int32)
ENDS = torch.tensor([9, 3, 7], dtype=torch.int32)


def test_assign_req_to_token_pool_spreads_slots_over_requests() -> None:
    """Positions [start, end) take the slots in the order of the requests; nothing else changes."""
    from sgl_kernel import assign_req_to_token_pool_cpu

    table = pool()
    wanted = table.clone()
    slots = torch.arange(1000, 1007)
    wanted[2, 5:9], wanted[0, 0:3] = slots[:4].int(), slots[4:].int()
    assign_req_to_token_pool_cpu(ROWS, table, STARTS, ENDS, slots, table.shape[1])
    assert torch.equal(table, wanted)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_assign_extend_cache_locs_reads_what_was_assigned(dtype: torch.dtype) -> None:
    """The inverse: the slots of positions [start, end), back to back, with room left over behind."""
    from sgl_kernel import assign_extend_cache_locs_cpu

    table = pool()
    out = torch.full((9,), -1)
    assign_extend_cache_locs_cpu(ROWS, table, STARTS.to(dtype), ENDS.to(dtype), out, table.shape[1])
    assert out.tolist() == [*table[2, 5:9].tolist(), *table[0, 0:3].tolist(), -1, -1]


def test_assign_draft_cache_locs_takes_the_slots_behind_the_end() -> None:
    """topk * num_steps slots from each request's length on."""
    from sgl_kernel import assign_draft_cache_locs_contiguous_cpu

    table, lengths = pool(), torch.tensor([5, 0, 9])
    out = torch.empty(3 * 2 * 3, dtype=torch.int64)
    assign_draft_cache_locs_contiguous_cpu(ROWS, table, lengths, out, table.shape[1], 2, 3)
    wanted = [table[row, length : length + 6].tolist() for row, length in zip([2, 0, 3], [5, 0, 9], strict=True)]
    assert out.view(3, 6).tolist() == wanted


@pytest.mark.parametrize("topk", [1, 2, 3])
def test_draft_decode_metadata_gives_each_candidate_its_own_slots(topk: int) -> None:
    """Row b * topk + c: the prefix, then the slots at length + c * num_steps."""
    from sgl_kernel import build_draft_decode_metadata_cpu

    table, lengths, num_steps = pool(), [5, 1, 9], 4
    before = table.clone()
    made = build_draft_decode_metadata_cpu(table, ROWS, torch.tensor(lengths), topk, num_steps, 24)
    assert made.shape == (3 * topk, 24) and made.dtype == torch.int32
    for b, (row, length) in enumerate(zip([2, 0, 3], lengths, strict=True)):
        for candidate in range(topk):
            start = length + candidate * num_steps
            wanted = [*before[row, :length].tolist(), *before[row, start : start + num_steps].tolist()]
            assert made[b * topk + candidate, : length + num_steps].tolist() == wanted
    made.zero_()
    assert torch.equal(table, before)


def test_copy_all_layer_kv_cache_reads_before_it_writes() -> None:
    """Overlapping moves in buffers of different row sizes and types."""
    from sgl_kernel import copy_all_layer_kv_cache_cpu

    buffers = [torch.randn(12, 3, 8).bfloat16(), torch.randn(12, 5)]
    wanted = [buffer.clone() for buffer in buffers]
    for buffer in wanted:
        buffer[torch.tensor([4, 5, 6])] = buffer[torch.tensor([5, 6, 4])]
    copy_all_layer_kv_cache_cpu(
        torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64),
        torch.tensor([buffer[0].nbytes for buffer in buffers]),
        torch.tensor([4, 5, 6]),
        torch.tensor([5, 6, 4]),
    )
    assert all(torch.equal(*pair) for pair in zip(buffers, wanted, strict=True))


def test_fill_bonus_tokens_takes_the_last_accepted() -> None:
    """accept_tokens[b, accept_lens[b] - 1]."""
    from sgl_kernel import fill_bonus_tokens_cpu

    tokens = torch.tensor([[7, 8, 9], [4, 5, 6]], dtype=torch.int32)
    bonus = torch.empty(2, dtype=torch.int32)
    fill_bonus_tokens_cpu(tokens, torch.tensor([3, 1], dtype=torch.int32), bonus, 3)
    assert bonus.tolist() == [9, 4]


def test_fill_accept_out_cache_loc_packs_the_accepted() -> None:
    """Entries of -1 leave no gap."""
    from sgl_kernel import fill_accept_out_cache_loc_cpu

    out = torch.full((4,), -5)
    fill_accept_out_cache_loc_cpu(
        torch.tensor([[0, -1], [2, 3]], dtype=torch.int32), torch.tensor([50, 51, 52, 53]), out
    )
    assert out.tolist() == [50, 52, 53, -5]


@pytest.mark.parametrize("at", [None, [1, 3, 5]])
def test_rotate_input_ids_shifts_left(at: list[int] | None) -> None:
    """The freed place, or the one at select_index, takes the new token; an empty request takes none."""
    from sgl_kernel import rotate_input_ids_cpu

    ids = torch.tensor([10, 11, 12, 20, 30, 31])
    starts, lengths, new = torch.tensor([0, 3, 4]), torch.tensor([3, 1, 2]), torch.tensor([[97], [98], [99]])
    rotate_input_ids_cpu(ids, starts, lengths, new, None if at is None else torch.tensor(at))
    assert ids.tolist() == ([11, 12, 97, 98, 31, 99] if at is None else [11, 97, 12, 98, 31, 99])


def test_murmur_hash_agrees_with_a_scalar_reference() -> None:
    """MurmurHash3 of four words, seeds above 2^63 included."""
    import sgl_kernel  # noqa: F401

    seeds, positions = [1, 2**63 + 12345, 2**64 - 1], [0, 17, 8191]
    made = torch.ops.sgl_kernel.murmur_hash32_cpu.default(
        torch.tensor(seeds, dtype=torch.uint64), torch.tensor(positions), torch.arange(5)
    )
    assert made.dtype == torch.uint32
    assert made.tolist() == [
        [_murmur([seed & 0xFFFFFFFF, seed >> 32, position, column]) for column in range(5)]
        for seed, position in zip(seeds, positions, strict=True)
    ]


def _murmur(words: list[int]) -> int:
    def rotated(word: int, bits: int) -> int:
        return ((word << bits) | (word >> (32 - bits))) % 2**32

    state = 0
    for word in words:
        state = rotated(state ^ (rotated(word * 0xCC9E2D51 % 2**32, 15) * 0x1B873593 % 2**32), 13)
        state = (state * 5 + 0xE6546B64) % 2**32
    state ^= 4 * len(words)
    state = (state ^ (state >> 16)) * 0x85EBCA6B % 2**32
    state = (state ^ (state >> 13)) * 0xC2B2AE35 % 2**32
    return state ^ (state >> 16)
