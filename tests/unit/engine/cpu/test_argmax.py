"""The quick argmax against torch's, ties and NaN included, and the module that uses it."""

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tide_daemon.engine.sglang.cpu.argmax import argmax, use_in


@given(
    rows=st.integers(1, 5), columns=st.sampled_from([128, 256, 300, 1024]), distinct=st.integers(1, 6),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_equals_torch_with_ties(rows: int, columns: int, distinct: int, seed: int) -> None:
    values = torch.randint(0, distinct, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(argmax(values, dim=-1), torch.argmax(values, dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_equals_torch_with_rare_values(dtype: torch.dtype, value: float) -> None:
    values = torch.randn(3, 384, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, 200], values[0, 300], values[1, 0] = value, value, value
    values[2] = -float("inf")
    assert torch.equal(argmax(values, dim=-1), torch.argmax(values, dim=-1))


def test_leaves_other_shapes_to_torch() -> None:
    values = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(argmax(values.t(), dim=-1), torch.argmax(values.t(), dim=-1))
    assert torch.equal(argmax(values), torch.argmax(values))
    assert torch.equal(argmax(values, dim=-1, keepdim=True), torch.argmax(values, dim=-1, keepdim=True))
    assert torch.equal(argmax(values[:0], dim=-1), torch.argmax(values[:0], dim=-1))


def test_only_the_module_that_is_named_uses_it() -> None:
    module = ModuleType("of_sglang")
    vars(module)["torch"] = torch
    use_in(module)
    use_in(module)
    assert vars(module)["torch"].argmax is argmax
    assert vars(module)["torch"].zeros is torch.zeros
    assert torch.argmax is not argmax
