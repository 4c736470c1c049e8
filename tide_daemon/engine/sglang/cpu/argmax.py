"""The largest value of each row, for verification on a CPU.

torch.argmax over 8 x 49152 float32 takes 0.69 ms on one thread, amax 0.04 ms (torch 2.13, AVX-512): it does not
use vector instructions. A verification of 8 requests with 3 drafts each looks at 32 such rows.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_BLOCK = 128


def argmax(logits: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """torch.argmax; rows of whole blocks in two steps: which block has the maximum, and where in it.

    The same index as torch.argmax's: of equal values the first, and NaN counts as the largest.
    """
    whole_blocks = logits.ndim == 2 and dim in (-1, 1) and logits.numel() > 0 and logits.shape[1] % _BLOCK == 0
    if not whole_blocks or keepdim or not logits.is_contiguous():
        return torch.argmax(logits, dim=dim, keepdim=keepdim)
    blocks = logits.view(logits.shape[0], -1, _BLOCK)
    block = torch.argmax(blocks.amax(-1), dim=-1)
    return block * _BLOCK + torch.argmax(blocks[torch.arange(len(block)), block], dim=-1)


class _Torch(ModuleType):
    """The torch module with our argmax."""

    argmax = staticmethod(argmax)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def use_in(module: ModuleType) -> None:
    """Let a module of SGLang's that calls `torch.argmax` call ours. No other module is touched."""
    if vars(module).get("torch") is torch:
        vars(module)["torch"] = _Torch("torch")
