"""Where SGLang is hooked, and the rule that our code never breaks serving.

Every hook runs its own part inside `_guarded`: an exception is caught, counted, reported once, and
switches its feature off; SGLang's own function runs in any case, exactly once, with its own errors.
One exception: with tensor parallelism a rank without a feature that decides on steps would leave the others in a
collective for ever, so there it ends its process (Runtime.switch_off).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sglang.srt.managers.io_struct import SetInternalStateReqOutput
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from tide_daemon.engine.sglang import ranks, sampling
from tide_daemon.engine.sglang.cpu import speed
from tide_daemon.engine.sglang.runtime import Runtime

_SPECULATIVE = "sglang.srt.speculative"
_WORKER = f"{_SPECULATIVE}.eagle_worker_v2.EAGLEWorkerV2"
_PARAMS = f"{_SPECULATIVE}.adaptive_spec_params.AdaptiveSpeculativeParams"
_RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"

_runtime: Runtime | None = None
_directory: Path | None = None
_device_targets: list[str] = []


def register(directory: Path) -> None:
    """Register every hook with SGLang. The runtime itself starts with the scheduler."""
    global _directory
    _directory = directory
    for target, hook in TARGETS.items():
        HookRegistry.register(target, hook, HookType.AROUND)
    _device_targets[:] = [*speed.register(HookRegistry), *sampling.register(HookRegistry)]


def missing_hooks() -> list[str]:
    """Targets whose hook did not take."""
    return [target for target in (*TARGETS, *_device_targets) if target not in HookRegistry._patched]


def _guarded(feature: str, part: Callable[..., Any], *args: Any) -> Any:
    """Run one of our own parts; on an exception the feature goes off and None is returned, see Runtime.switch_off."""
    runtime = _runtime
    if runtime is None or not runtime.enabled(feature):
        return None
    try:
        return part(runtime, *args)
    except Exception as error:
        runtime.switch_off(feature, error)
        return None


def _after_init(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> None:
    global _runtime
    original(scheduler, *args, **kwargs)
    assert _directory is not None
    _runtime = Runtime.start(scheduler, _directory, missing_hooks())


def _add_request(original: Callable[..., Any], scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    _guarded("swap", Runtime.on_request, req)
    return original(scheduler, req, *args, **kwargs)


def _forward(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    runtime = _runtime
    if runtime is None:
        return original(worker, batch, *args, **kwargs)
    with runtime.step_lock:
        start = _guarded("timing", Runtime.begin_step)
        _guarded("swap", Runtime.before_batch, batch)
        _guarded("draft_kv", Runtime.fill_draft_kv, worker, batch)
        result = original(worker, batch, *args, **kwargs)
        _guarded("timing", Runtime.after_batch, result, start)
    return result


def _verify(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    start = _guarded("timing", Runtime.mark)
    result = original(worker, batch, *args, **kwargs)
    _guarded("timing", Runtime.after_verify, worker, result, start)
    _guarded("capture", Runtime.stage_verify, batch, result)
    _guarded("draft_kv", Runtime.remember_skipped, batch, result)
    return result


def _prefill(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(worker, batch, *args, **kwargs)
    _guarded("capture", Runtime.stage_prefill, batch, result)
    return result


def _draft_prefill(
    original: Callable[..., Any], draft_worker: Any, batch: Any, hidden: Any, next_ids: Any, *args: Any, **kwargs: Any
) -> Any:
    _guarded("draft_kv", Runtime.before_draft_prefill, batch)
    stub = _guarded("swap", Runtime.skipped_draft_prefill, draft_worker, batch, next_ids)
    return original(draft_worker, batch, hidden, next_ids, *args, **kwargs) if stub is None else stub


def _processed(
    commit: Callable[..., Any], original: Callable[..., Any], processor: Any, batch: Any, result: Any
) -> Any:
    before = _guarded("capture", Runtime.lengths, batch)
    value = original(processor, batch, result)
    _guarded("timing", Runtime.count_step, batch, result)
    _guarded("capture", commit, batch, result, before)
    return value


def _idle(original: Callable[..., Any], scheduler: Any) -> Any:
    _guarded("timing", Runtime.end_step)
    _guarded("capture", Runtime.on_idle)
    return original(scheduler)


def _internal_state(original: Callable[..., Any], scheduler: Any, request: Any) -> Any:
    if _runtime is None or not ranks.is_ours(request.server_args):
        return original(scheduler, request)
    obeyed = _guarded("steps", Runtime.on_internal_state, request.server_args)
    return SetInternalStateReqOutput(updated=bool(obeyed))


def _steps(original: Callable[..., Any], params: Any, batch_size: int) -> int:
    """Our table's answer; when that fails, plain decoding and never SGLang's own rule."""
    steps = _guarded("steps", Runtime.steps_for_batch, batch_size)
    return int(steps) if steps is not None else min(params.candidate_steps)


def _no_own_rule(original: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> None:
    """SGLang would change the number of steps by its own moving average here."""


TARGETS: Final[dict[str, Callable[..., Any]]] = {
    f"{_SCHEDULER}.__init__": _after_init,
    f"{_SCHEDULER}._add_request_to_queue": _add_request,
    f"{_SCHEDULER}.on_idle": _idle,
    f"{_SCHEDULER}.set_internal_state": _internal_state,
    f"{_WORKER}.forward_batch_generation": _forward,
    f"{_WORKER}.verify": _verify,
    f"{_WORKER}._forward_prefill_batch": _prefill,
    f"{_SPECULATIVE}.eagle_worker_v2.EagleDraftWorker._draft_extend_for_prefill": _draft_prefill,
    f"{_RESULTS}.process_batch_result_decode": functools.partial(_processed, Runtime.commit_verify),
    f"{_RESULTS}.process_batch_result_prefill": functools.partial(_processed, Runtime.commit_prefill),
    f"{_PARAMS}.get_steps_for_batch": _steps,
    f"{_PARAMS}.on_verify_complete": _no_own_rule,
}
