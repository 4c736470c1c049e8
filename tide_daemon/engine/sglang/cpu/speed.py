"""Hook that runs EAGLE-3 drafts on a CPU through `draft_pass` instead of SGLang's module tree.

Only drafting is touched, not the target: plain decoding runs exactly as SGLang has it. What was tried on the target and
left out, with figures: ops/decisions/0004-speed-on-a-cpu.md.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

from tide_daemon.engine.sglang.cpu.draft_pass import DraftPass, unsupported

_FORWARD = "sglang.srt.model_executor.model_runner.ModelRunner.forward"
_LOAD = "sglang.srt.models.llama_eagle3.LlamaForCausalLMEagle3.load_weights"
_ATTRIBUTE = "tide_draft_pass"
_PREFILL = "EXTEND"
"""ForwardMode of the draft's pass over a prompt, or over what was skipped (catch_up.py); is_extend() is wider."""
_logger = logging.getLogger(__name__)


def register(registry: Any) -> list[str]:
    """Register the hook on a CPU run; on a GPU nothing.

    Args:
        registry: SGLang's HookRegistry.

    Returns:
        The targets hooked, to be found in registry._patched once SGLang has applied them.
    """
    from sglang.srt.plugins.hook_registry import HookType
    from sglang.srt.utils import is_cpu

    if not is_cpu():
        return []
    registry.register(_FORWARD, _forward, HookType.AROUND)
    registry.register(_LOAD, _load_weights, HookType.AROUND)
    return [_FORWARD, _LOAD]


def refresh_packed(model: Any) -> None:
    """Drop the packed copies of a draft's matrices, after its weights were written through `.data`.

    In-place operations on the parameters themselves need no call: they are noticed.
    """
    draft = vars(model).get(_ATTRIBUTE)
    if draft is not None:
        draft.refresh()


def _forward(original: Callable[..., Any], runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
    if runner.is_draft_worker:
        mode = forward_batch.forward_mode
        ours = mode.is_decode() or mode.is_draft_extend_v2() or mode.name == _PREFILL
        if ours and (draft := _pass_of(runner)) is not None:
            return (_fill if mode.name == _PREFILL else _run)(draft, runner, forward_batch)
    return original(runner, forward_batch, *args, **kwargs)


def _load_weights(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """SGLang's own weight updates end here; its loaders write through `.data`."""
    try:
        return original(model, *args, **kwargs)
    finally:
        refresh_packed(model)


def _pass_of(runner: Any) -> DraftPass | None:
    """The runner's pass, made at its first batch; None when SGLang's own code must run."""
    model = runner.model
    if _ATTRIBUTE not in vars(model):
        from sglang.srt.runtime_context import get_parallel, get_spec

        reason = unsupported(model)
        if reason is None and (get_spec().speculative_eagle_topk != 1 or get_parallel().tp_size != 1):
            reason = "topk is above 1, or tensor parallel"
        if reason is not None:
            _logger.info("the draft runs in SGLang's own code: %s", reason)
        vars(model)[_ATTRIBUTE] = None if reason else DraftPass(model)
    draft: DraftPass | None = vars(model)[_ATTRIBUTE]
    return draft


def _run(draft: DraftPass, runner: Any, forward_batch: Any) -> Any:
    """What ModelRunner.forward returns for a draft's decoding: logits and the states of the next pass, one row a token.

    Of a draft extend (EagleDraftWorker._draft_extend_for_decode) the caller reads the row of each request's last
    accepted token and no other: only those are computed, the others are zero.
    """
    from sglang.srt.model_executor.forward_context import get_attn_backend

    extends = forward_batch.forward_mode.is_draft_extend_v2()
    backend = runner.attn_backend if extends else get_attn_backend()
    rows = _last_accepted(forward_batch) if extends else None

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        layer = draft.attention_layer
        k, v = (x.unflatten(-1, (layer.tp_k_head_num, -1)) for x in (k, v))
        attended: torch.Tensor = backend.forward(q.contiguous(), k, v, layer, forward_batch)
        return attended

    logits, hidden = draft.run(
        forward_batch.input_ids, forward_batch.positions, forward_batch.spec_info.hidden_states, attend, rows
    )
    if rows is not None:
        num_rows = forward_batch.input_ids.shape[0]
        logits, hidden = (x.new_zeros(num_rows, x.shape[1]).index_copy_(0, rows, x) for x in (logits, hidden))
    return _output(runner, logits, hidden)


def _fill(draft: DraftPass, runner: Any, forward_batch: Any) -> Any:
    """The same for a prefill (EagleDraftWorker._draft_extend_for_prefill): one row a request, its last token's.

    That token sees every key of its request, as in decoding: the attention is that of a decode batch.
    """
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    backend = runner.attn_backend
    # As EagerRunner._execute_extend; the callers of the other passes have planned theirs.
    if forward_batch.needs_forward_metadata_init():
        backend.init_forward_metadata(forward_batch)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        layer = draft.attention_layer
        k, v = (x.unflatten(-1, (layer.tp_k_head_num, -1)) for x in (k, v))
        where = KVWriteLoc(forward_batch.out_cache_loc, backend.swa_out_cache_loc)
        runner.token_to_kv_pool.set_kv_buffer(layer, where, k, v, layer.k_scale_float, layer.v_scale_float)
        attended: torch.Tensor = backend.forward_decode(q, None, None, layer, forward_batch, save_kv_cache=False)
        return attended

    hidden, last = forward_batch.spec_info.hidden_states, forward_batch.extend_seq_lens.cumsum(0) - 1
    return _output(runner, *draft.fill(forward_batch.input_ids, forward_batch.positions, hidden, attend, last))


def _output(runner: Any, logits: torch.Tensor, hidden: torch.Tensor) -> Any:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.model_runner import ModelRunnerOutput

    runner.forward_pass_id += 1
    output = LogitsProcessorOutput(next_token_logits=logits, hidden_states=hidden)
    return ModelRunnerOutput(logits_output=output, can_run_graph=False)


def _last_accepted(forward_batch: Any) -> torch.Tensor:
    """Row of each request's last accepted token, [B] int64."""
    spec = forward_batch.spec_info
    num_requests = spec.num_accept_tokens.shape[0]
    return torch.arange(num_requests) * spec.num_tokens_per_req + spec.num_accept_tokens - 1
