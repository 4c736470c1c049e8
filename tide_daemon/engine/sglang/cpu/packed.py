"""A matrix product whose bfloat16 matrix is packed for oneDNN once, not at every call.

F.linear packs a bfloat16 matrix each time it is called: for a few rows that takes as long as the product itself (one
thread: 0.55 against 0.27 ms for a draft's 4096 x 576 head and one row). The packed copy is made again when the matrix
has changed: an in-place copy into the parameter raises its version counter. A write through `.data` does not, and
SGLang's own weight loaders write so: call `refresh` after them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# Rows that the packed layout is laid out for. It serves any number; figures differ by a few percent between 1 and 32.
_ROWS_HINT = 8


class PackedLinear:
    """x @ module.weight[rows].T without bias. `rows`: of the matrix [out, in], all of them or a slice."""

    def __init__(self, module: Any, rows: slice = slice(None)) -> None:
        self._module = module
        self._rows = rows
        self._packed: Tensor | None = None
        self._packed_from = (0, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] to [T, out], both of the weight's dtype. Only bfloat16 is packed: float32 runs stay F.linear."""
        weight = self._module.weight
        if x.dtype != torch.bfloat16 or weight.is_inference() or not _can_pack():
            return linear(x, weight[self._rows])
        state = (weight.data_ptr(), weight._version)
        if self._packed is None or state != self._packed_from:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach()[self._rows], _ROWS_HINT)
            self._packed_from = state
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._packed, None, "none", [], "")
        return product

    def refresh(self) -> None:
        """Pack anew at the next call."""
        self._packed = None


def _can_pack() -> bool:
    """oneDNN is built in and this processor multiplies bfloat16."""
    global _packs
    if _packs is None:
        _packs = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return _packs


_packs: bool | None = None
