"""The GPU's parts against a stand-in for torch.cuda: which streams are used, and what is computed on the device."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tide_daemon.engine.sglang import gpu


class Cuda:
    """Remembers the streams that were entered."""

    def __init__(self) -> None:
        self.entered: list[Any] = []

    def current_device(self) -> int:
        return 0

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.entered.append(stream)
        yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(gpu, "cuda", fake)
    return fake


def test_a_swap_goes_to_the_stream_of_the_forward_passes(cuda: Cuda) -> None:
    """Without overlap that is the loop's own, which SGLang may replace after our start."""
    scheduler = SimpleNamespace(enable_overlap=True, forward_stream="forward", schedule_stream="schedule")
    device = gpu.GpuDevice(scheduler)
    with device.applying():
        pass
    scheduler.enable_overlap = False
    with device.applying():
        pass
    scheduler.schedule_stream = "another"
    with device.applying():
        pass
    assert cuda.entered == ["forward", "schedule", "another"]


def test_waiting_for_a_swap_before_any_is_no_wait(cuda: Cuda) -> None:
    gpu.GpuDevice(SimpleNamespace()).wait_applied(None)


@pytest.mark.parametrize("rows", [0, 1, 32, 70])
def test_top_in_blocks_equals_the_plain_computation(rows: int) -> None:
    logits = torch.randn(rows, 500, generator=torch.Generator().manual_seed(1))
    ids, logprobs = gpu._top_on_device(logits, 4)
    expected = torch.log_softmax(logits, -1).topk(4, dim=-1)
    assert torch.equal(ids.long(), expected.indices)
    assert logprobs.dtype == torch.float16
    assert torch.allclose(logprobs.float(), expected.values, atol=1e-2, rtol=1e-3)
