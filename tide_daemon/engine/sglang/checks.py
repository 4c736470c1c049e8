"""What the plug-in expects of SGLang, checked at the start and at each use; the only reader of its globals.

Everything that was read in the wheel's source (0.5.23) and could change in another release is looked up
here, so that a difference becomes one clear report and not a wrong number.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.environ import envs
from sglang.srt.runtime_context import get_parallel, get_spec
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_utils import get_draft_recurrent_hidden_state_spec
from torch import Tensor

from tide_daemon.errors import EngineError


@dataclass(frozen=True, slots=True)
class Facts:
    """What this engine is.

    Attributes:
        aux_layer_ids: 0-based layers whose OUTPUT is captured. SGLang stores id + 1 (srt/models/llama.py,
            set_eagle3_layers_to_capture: input of layer id + 1 = output of layer id).
        aux_width: A*H.
        candidate_steps: numbers of draft steps with a runtime state; empty: not adaptive.
    """

    device: str
    tp_size: int
    tp_rank: int
    dp_rank: int
    model_path: str
    dtype: str
    aux_layer_ids: tuple[int, ...]
    hidden_size: int
    aux_width: int
    vocab_size: int
    draft_vocab_size: int
    candidate_steps: tuple[int, ...]


def inspect(scheduler: Any, missing_hooks: list[str]) -> Facts:
    """The facts of a scheduler that has just been built.

    Raises:
        EngineError: it is not what the plug-in was written for; the message says what to change.
    """
    if missing_hooks:
        raise EngineError(f"these hooks did not take, SGLang may be of another version than 0.5.23: {missing_hooks}")
    worker = scheduler.model_worker
    if type(worker).__name__ != "EAGLEWorkerV2" or not scheduler.spec_algorithm.is_eagle3():
        raise EngineError("SGLang was not started with --speculative-algorithm EAGLE3 (a placeholder draft will do)")
    if worker.topk != 1:
        raise EngineError(f"--speculative-eagle-topk is {worker.topk}; only chains (1) are supported")
    device = str(worker.device).split(":")[0]
    if device not in ("cpu", "cuda", "hip"):
        raise EngineError(f"the device is {device}; the plug-in knows CPUs and CUDA and ROCm devices")
    parallel = get_parallel()
    if parallel.pp_size != 1:
        raise EngineError("pipeline parallelism is not supported")
    # As it is in force: --enable-dp-attention is an old name that SGLang has cleared by now (srt/arg_groups/
    # parallel_hook.py, handle_deprecated_dp_attention).
    if parallel.attn_dp_enabled:
        raise EngineError("attention data parallelism (--attn-dp-size) is not supported: no adaptive steps with it")
    if parallel.nnodes != 1:
        raise EngineError(f"--nnodes {parallel.nnodes} is not supported: ranks on other nodes would get no draft")
    if scheduler.disaggregation_mode.name != "NULL":
        raise EngineError("prefill/decode disaggregation is not supported: its results take another way")
    target = worker.target_worker.model_runner
    draft = worker._draft_worker.draft_runner
    stored = getattr(target.model.model, "layers_to_capture", None)
    if not stored:
        raise EngineError("the target model captures no aux layers")
    layers = tuple(int(layer) - 1 for layer in stored)
    eagle = getattr(draft.model_config.hf_config, "eagle_config", None) or {}
    named = eagle.get("eagle_aux_hidden_state_layer_ids")
    if named is None or tuple(named) != layers:
        raise EngineError(f"the draft names aux layers {named}, the target captures the outputs of {list(layers)}")
    dtype = str(target.model_config.dtype).removeprefix("torch.")
    if dtype == "float16":
        raise EngineError(
            "the target runs in float16, which drafts cannot; start SGLang with --dtype bfloat16 or float32"
        )
    hidden = int(target.model_config.hidden_size)
    controller = worker.adaptive_controller
    if controller is None and get_spec().speculative_adaptive_config:
        # Asked for, as always in launch mode, and dropped (srt/arg_groups/speculative_hook.py, _maybe_disable_adaptive)
        raise EngineError(
            "SGLang has switched --speculative-adaptive off; its log says why (speculative_adaptive disabled)"
        )
    hot = worker._draft_worker.hot_token_id
    return Facts(
        device=device,
        tp_size=int(parallel.tp_size),
        tp_rank=int(parallel.tp_rank),
        dp_rank=int(parallel.dp_rank or 0),
        model_path=str(target.model_config.model_path),
        dtype=dtype,
        aux_layer_ids=layers,
        hidden_size=hidden,
        aux_width=hidden * len(layers),
        vocab_size=int(target.model_config.vocab_size),
        draft_vocab_size=int(hot.shape[0]) if hot is not None else int(target.model_config.vocab_size),
        candidate_steps=tuple(controller.candidate_steps) if controller is not None else (),
    )


def own_ranks() -> tuple[int, int]:
    """Data- and tensor-parallel rank of this process, also of one that `inspect` refuses."""
    parallel = get_parallel()
    return int(parallel.dp_rank or 0), int(parallel.tp_rank)


def check_rows(aux: Tensor | None, rows: int, width: int) -> None:
    """Raises EngineError when a batch's aux states are not [rows, width] of a float type."""
    if aux is None or tuple(aux.shape) != (rows, width) or not aux.is_floating_point():
        found = "none" if aux is None else f"{tuple(aux.shape)} {aux.dtype}"
        raise EngineError(f"aux states are {found}, expected [{rows}, {width}] of floats")


def set_skip_zero_step_extend(skip: bool) -> None:
    """At 0 steps SGLang looks this variable up for each batch (srt/speculative/eagle_worker_v2.py 1493)."""
    envs.SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND.set(skip)


def empty_draft_input(draft_worker: Any, batch: Any, next_token_ids: Tensor) -> EagleDraftInput:
    """A draft input of the right shapes that no 0-step batch reads.

    As EAGLEWorkerV2._stub_skipped_draft_extend makes after a decode step; this one follows a prefill.
    """
    size = len(batch.reqs)
    device = next_token_ids.device
    width, dtype = get_draft_recurrent_hidden_state_spec(draft_worker.draft_runner)
    return EagleDraftInput(
        topk_p=torch.zeros((size, draft_worker.topk), dtype=torch.float32, device=device),
        topk_index=torch.zeros((size, draft_worker.topk), dtype=torch.int64, device=device),
        hidden_states=torch.zeros((size, width), dtype=dtype, device=device),
        bonus_tokens=next_token_ids,
        num_tokens_per_req=1,
        num_tokens_for_logprob_per_req=1,
    )
