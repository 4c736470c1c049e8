"""The counter-based random numbers of SGLang's seeded sampling.

Caller: sglang/kernels/ops/sampling/murmur_hash.py, murmur_hash32, which asks for a real operator (`.default`).
"""

import torch

_MASK = 0xFFFFFFFF


def murmur_hash32_cpu(seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor) -> torch.Tensor:
    """MurmurHash3 (x86, 32 bits) of the 16 bytes (seed low, seed high, position, column), started at 0.

    Args:
        seed: [n] uint64.
        positions: [n] int64 or uint64, below 2^32.
        col_indices: [m] int64, below 2^32.

    Returns:
        [n, m] uint32.

    Source: Appleby, MurmurHash3.cpp, MurmurHash3_x86_32; the layout of the words is SGLang's.
    """
    seed = seed.view(torch.int64).unsqueeze(1)
    words = (seed & _MASK, (seed >> 32) & _MASK, positions.to(torch.int64).unsqueeze(1), col_indices.unsqueeze(0))
    state = torch.zeros_like(seed)
    for word in words:
        mixed = (_rotated((word * 0xCC9E2D51) & _MASK, 15) * 0x1B873593) & _MASK
        state = _rotated(state ^ mixed, 13)
        state = (state * 5 + 0xE6546B64) & _MASK
    state = state ^ 16
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _MASK
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _MASK
    return (state ^ (state >> 16)).to(torch.uint32)


def _rotated(word: torch.Tensor, bits: int) -> torch.Tensor:
    return ((word << bits) | (word >> (32 - bits))) & _MASK
