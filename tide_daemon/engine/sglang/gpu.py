"""Everything that depends on the device. The GPU part was read against SGLang 0.5.23's source and not run.

What is assumed of a GPU (paths under `sglang/srt`), and what follows:

1. The target's decode output is a view of graph buffers: `output.hidden_states[: self.raw_num_token]`
   (model_executor/runner/decode_cuda_graph_runner.py 2042) and the shared logits buffer (475). The next
   replay overwrites them. So `stage` copies inside the hook, on the stream that is current there, before
   anything else can be queued behind it.
2. With overlap scheduling, forward_batch_generation runs inside `with self.forward_stream_ctx`
   (managers/scheduler.py 4671): in our hooks `torch.cuda.current_stream()` is the forward stream. A swap
   applied there comes after every earlier batch and before the next, without waiting for either.
3. A result is processed one iteration later, from CPU copies whose event has been waited for
   (managers/scheduler_components/batch_result_processor.py, copy_done.synchronize). Our own copies
   run on a side stream of their own and may be a little later: the tap keeps batches that are not there yet in
   a short queue and never waits (tap.py).
4. Memory handed to another stream needs record_stream, or the caching allocator may reuse it
   (managers/utils.py, _async_d2h does the same). Pinned host memory comes from torch's caching host
   allocator: no page is pinned per batch after the first ones.
5. `EagleDraftWorker.hot_token_id` and all parameters are read by captured graphs at fixed addresses:
   swap.py copies in place.
6. ROCm uses the same torch.cuda names.

Tensor parallelism: hidden states and logits are the same on every rank after SGLang's own gathers, so rank 0 taps
and the others have no ring. All ranks must agree on the number of steps and on the batch before which a swap
is applied, or their collectives do not match. So with several ranks both travel through SGLang's own
`/set_internal_state`, which its scheduler broadcasts to every rank in the same iteration
(managers/scheduler.py, recv_requests and process_input_requests); see `ranks.py`.
Data parallelism: each rank is an engine of its own, with a ring and a channel of its own.
Pipeline parallelism and attention data parallelism are refused at the start (checks.py).

With adaptive steps SGLang captures graphs for every candidate number of steps: start-up takes longer and
memory grows with `max_steps`.
"""

import contextlib
import threading
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tide_daemon.engine.sglang.cpu.speed import refresh_packed
from tide_daemon.engine.sglang.staged import Staged
from tide_daemon.engine.sglang.timing import Stopwatch

cuda: Any = torch.cuda  # its stubs are partly untyped

MAX_STAGED_BYTES = 1 << 30
"""Pinned memory that may wait for its commit. Beyond, a batch is not captured (its rows count as dropped)."""


class Device:
    """On a CPU: a forward pass that returned is done, and its tensors are nobody else's.

    The draft's own passes do not write into the target's states: fc makes a new tensor (two aux layers or
    more, see draft/config.py).
    """

    defers_draft_extend = True
    """At 0 steps the draft's KV is made up for later, see catch_up.py: on a GPU it costs little and overlaps."""

    def __init__(self) -> None:
        self.clock: Any = Stopwatch()

    def stage(self, staged: Staged, topk: int) -> Staged | None:
        """Make a batch's states and logits safe from the next batch; None when there is no room."""
        return staged

    def enter_thread(self) -> None:
        """Called first in a thread that will touch tensors."""

    def weights_staged(self) -> None:
        """Return when what this thread copied into spare buffers is there."""

    def applying(self) -> AbstractContextManager[object]:
        """Around an in-place copy of weights that is not made inside a batch."""
        return contextlib.nullcontext()

    def applied(self, model: Any) -> Any:
        """Called after an in-place copy of weights; returns a mark for `wait_applied`."""
        refresh_packed(model)

    def wait_applied(self, mark: Any) -> None:
        """Return when that copy is done."""


class EventClock:
    """Times between points of the current stream; known once the device has passed them."""

    def mark(self) -> Any:
        """This point of the stream."""
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed(self, start: Any, stop: Any) -> float | None:
        """Seconds between two marks, None when the device has not passed the second one."""
        if not stop.query():
            return None
        return float(start.elapsed_time(stop)) / 1000.0


class GpuDevice(Device):
    """CUDA and ROCm."""

    defers_draft_extend = False

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.clock = EventClock()
        self._index = cuda.current_device()
        self._side = cuda.Stream()
        self._forward_stream = getattr(scheduler, "forward_stream", None) or cuda.default_stream()
        self._lock = threading.Lock()
        self._waiting_bytes = 0

    def stage(self, staged: Staged, topk: int) -> Staged | None:
        """Copy out of the graph's buffers on the forward stream, then to pinned memory on the side stream."""
        size = staged.aux.shape[0] * staged.aux.shape[1] * 2
        if self._waiting_bytes + size > MAX_STAGED_BYTES:
            return None
        aux = staged.aux.to(torch.bfloat16, copy=True)
        top = _top_on_device(staged.logits, topk) if staged.logits is not None and topk else None
        self._side.wait_stream(cuda.current_stream())
        with cuda.stream(self._side):
            host_aux = _to_pinned(aux, self._side)
            host_top = None if top is None else (_to_pinned(top[0], self._side), _to_pinned(top[1], self._side))
            done = cuda.Event()
            done.record(self._side)
        self._waiting_bytes += size

        def release() -> None:
            self._waiting_bytes -= size

        return replace(staged, aux=host_aux, logits=None, top=host_top, is_ready=done.query, release=release)

    def enter_thread(self) -> None:
        """A new thread has device 0 until told otherwise."""
        cuda.set_device(self._index)

    def weights_staged(self) -> None:
        """The loaders copied on this thread's stream."""
        cuda.current_stream().synchronize()

    def applying(self) -> AbstractContextManager[object]:
        """On the forward stream, behind everything that was queued there."""
        context: AbstractContextManager[object] = cuda.stream(self._forward_stream)
        return context

    def applied(self, model: Any) -> Any:
        """An event behind the copies on the stream that they were queued on."""
        event = cuda.Event()
        event.record()
        return event

    def wait_applied(self, mark: Any) -> None:
        """Wait in the control thread; the step loop does not."""
        mark.synchronize()


def _to_pinned(tensor: Tensor, side: Any) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    tensor.record_stream(side)
    return host


def _top_on_device(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """ids int32 and log-probabilities float16 [rows, k], queued on the current stream."""
    values = logits.float()
    top, ids = values.topk(k, dim=-1)
    return ids.to(torch.int32), (top - values.logsumexp(-1, keepdim=True)).to(torch.float16)


def device_for(name: str, scheduler: Any) -> Device:
    """The parts for a device as SGLang names it."""
    return GpuDevice(scheduler) if name in ("cuda", "hip") else Device()
