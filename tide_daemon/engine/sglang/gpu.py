"""Everything that depends on the device. The GPU part was read against SGLang 0.5.23's source and not run.

What is assumed of a GPU (paths under `sglang/srt`), and what follows:

1. The target's decode output is a view of graph buffers: `output.hidden_states[: self.raw_num_token]`
   (model_executor/runner/decode_cuda_graph_runner.py 2042) and the shared logits buffer (475). The next
   replay overwrites them. So `stage` copies inside the hook, on the stream that is current there, before
   anything else can be queued behind it.
2. With overlap scheduling, forward_batch_generation runs inside `with self.forward_stream_ctx`
   (managers/scheduler.py 4671): in our hooks `torch.cuda.current_stream()` is the forward stream. Without it
   (--disable-overlap-schedule) it runs on the loop's own `schedule_stream` (2008, 4822). A swap applied on the
   stream of the forward passes comes after every earlier batch and before the next, without waiting for either.
3. A result is processed one iteration later, from CPU copies whose event has been waited for
   (managers/scheduler_components/batch_result_processor.py, copy_done.synchronize). Our own copies
   run on a side stream of their own and may be a little later: the tap keeps batches that are not there yet in
   a short queue and never waits (tap.py).
4. Memory handed to another stream needs record_stream, or the caching allocator may reuse it
   (managers/utils.py, _async_d2h does the same). Pinned host memory comes from torch's caching host
   allocator: no page is pinned per batch after the first ones.
5. `EagleDraftWorker.hot_token_id` and all parameters are read by captured graphs at fixed addresses:
   swap.py copies in place. The spare copy of the draft lies in pinned host memory: SGLang has given what the device
   had to its KV pool by the time the first draft is staged. The copy of a swap then takes the forward stream some
   40 ms a GB, and the step loop no time.
6. The target's logits of a prefill lie in the same shared buffer, one for each vocabulary size
   (model_executor/graph_shared_output.py 48, prefill_cuda_graph_runner.py 732). `_forward_prefill_batch` runs the
   draft's prefill before our hook sees the result: with a draft of the target's whole vocabulary the buffer holds the
   draft's logits by then (layers/logits_processor.py 1358), so none are taken. With a smaller one its shape differs
   and it gets memory of its own.
7. ROCm uses the same torch.cuda names. SGLang verifies EAGLE-3 greedily there; sampling.py draws instead.

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

_TOP_ROWS = 32
"""Rows at a time: temporaries as large as a whole batch's logits would have to come out of the KV pool's reserve."""


class Device:
    """On a CPU: a forward pass that returned is done, and its tensors are nobody else's.

    The draft's own passes do not write into the target's states: fc makes a new tensor (two aux layers or
    more, see draft/config.py).
    """

    shares_logits = False
    """The draft's prefill may overwrite the target's logits."""

    defers_draft_extend = True
    """At 0 steps the draft's KV is made up for later, see catch_up.py: on a GPU it costs little and overlaps."""

    def __init__(self) -> None:
        self.clock: Any = Stopwatch()

    def stage(self, staged: Staged, topk: int) -> Staged | None:
        """Make a batch's states and logits safe from the next batch; None when there is no room."""
        return staged

    def enter_thread(self) -> None:
        """Called first in a thread that will touch tensors."""

    def spare_like(self, live: Tensor) -> Tensor:
        """Memory for what will be copied over `live`; written by the control thread."""
        return torch.empty_like(live)

    def applying(self) -> AbstractContextManager[object]:
        """Around an in-place copy of weights that is not made inside a batch."""
        return contextlib.nullcontext()

    def applied(self, model: Any) -> Any:
        """Called after an in-place copy of weights; returns a mark for `wait_applied`."""
        refresh_packed(model)

    def wait_applied(self, mark: Any) -> None:
        """Return when that copy is done; None: there has been none."""


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

    shares_logits = True
    defers_draft_extend = False

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.clock = EventClock()
        self._index = cuda.current_device()
        self._scheduler = scheduler
        self._side: Any = None
        self._lock = threading.Lock()
        self._waiting_bytes = 0

    def stage(self, staged: Staged, topk: int) -> Staged | None:
        """Copy out of the graph's buffers on the forward stream, then to pinned memory on the side stream."""
        size = staged.aux.shape[0] * staged.aux.shape[1] * 2
        if self._waiting_bytes + size > MAX_STAGED_BYTES:
            return None
        if self._side is None:  # not before the first batch: the event loop may draw its own stream again
            self._side = self._own_stream()
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

    def _own_stream(self) -> Any:
        """A stream that is none of SGLang's: torch deals them out of a small pool, again and again."""
        from sglang.srt.managers.utils import allocate_distinct_stream  # takes seconds, so only where it is used

        scheduler = self._scheduler
        return allocate_distinct_stream(
            cuda, (scheduler.forward_stream, scheduler.schedule_stream, scheduler.copy_stream)
        )

    def enter_thread(self) -> None:
        """A new thread has device 0 until told otherwise."""
        cuda.set_device(self._index)

    def spare_like(self, live: Tensor) -> Tensor:
        """Pinned host memory, so that the copy to the device waits for nothing."""
        return torch.empty_like(live, device="cpu", pin_memory=True)

    def applying(self) -> AbstractContextManager[object]:
        """On the stream of the forward passes, behind everything that was queued there.

        Looked up each time: SGLang may put another `schedule_stream` in place when its loop starts
        (managers/scheduler.py 1993-2008).
        """
        scheduler = self._scheduler
        stream = scheduler.forward_stream if scheduler.enable_overlap else scheduler.schedule_stream
        context: AbstractContextManager[object] = cuda.stream(stream)
        return context

    def applied(self, model: Any) -> Any:
        """An event behind the copies on the stream that they were queued on."""
        event = cuda.Event()
        event.record()
        return event

    def wait_applied(self, mark: Any) -> None:
        """Wait in the control thread; the step loop does not."""
        if mark is not None:
            mark.synchronize()


def _to_pinned(tensor: Tensor, side: Any) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    tensor.record_stream(side)
    return host


def _top_on_device(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """ids int32 and log-probabilities float16 [rows, k], queued on the current stream; `logits` are not changed."""
    ids = torch.empty(len(logits), k, dtype=torch.int32, device=logits.device)
    logprobs = torch.empty(len(logits), k, dtype=torch.float16, device=logits.device)
    for start in range(0, len(logits), _TOP_ROWS):
        part = slice(start, start + _TOP_ROWS)
        values = logits[part].float()
        top, ids[part] = values.topk(k, dim=-1)
        logprobs[part] = top - values.logsumexp(-1, keepdim=True)
    return ids, logprobs


def device_for(name: str, scheduler: Any) -> Device:
    """The parts for a device as SGLang names it."""
    return GpuDevice(scheduler) if name in ("cuda", "hip") else Device()
