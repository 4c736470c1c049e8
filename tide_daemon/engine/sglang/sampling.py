"""True sampling in verification on a CPU and on ROCm, where SGLang 0.5.23 verifies greedily whatever the temperature.

SGLang has sampling kernels for verification on CUDA alone (speculative/eagle_utils.py, _verify_uses_greedy): elsewhere
a request at temperature 1 would get the target's argmax as soon as speculation is on, with 0 draft steps too
(eagle_worker_v2.py, _build_trivial_verify_input). On ROCm it samples by rejection with other drafts, but not with
EAGLE-3's reduced vocabulary (arg_groups/speculative_hook.py, _should_auto_enable_hip_rejection_sampling).

The rule here: at each node of the draft tree that the walk reaches, draw one token from the target's own distribution
there (temperature, top-k, top-p, min-p, as SGLang's sampler does without speculation); follow the child that equals it,
or end with it as the bonus token. Every emitted token is then a draw from the target's distribution given the tokens
before it, so the output has the target's distribution, whatever was drafted. For a chain of drafts that are an argmax,
as EAGLE's are, this is rejection sampling with a proposal of probability one: accept draft x with probability p(x),
else draw from p without x (Leviathan et al., 2023, section 2.3).

What applies in verification, as on a GPU: logit bias, penalties (as of the last accepted token) and grammar masks are
added to the logits by SGLang before; top-k, top-p and temperature here. Unlike on a GPU min-p applies too, and seeds
(deterministic inference) give the same tokens as without speculation. Custom logit processors do not apply: SGLang does
not run them in verification at all.

Tensor-parallel ranks on ROCm draw each for themselves; SGLang then gives all of them rank 0's walk (eagle_sample). Not
run on ROCm: read against SGLang's source, and tested on a pretended device.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide_daemon.engine.sglang.cpu import argmax

_SAMPLE = "sglang.srt.speculative.eagle_utils.eagle_sample"
_WALK = "sglang.kernels.ops.speculative.spec_tree.verify_tree_greedy_func"


@dataclass(frozen=True, slots=True)
class _Verification:
    """What eagle_sample was called with, for the walk inside it."""

    logits: Tensor
    positions: Tensor
    sampling: Any


_current: _Verification | None = None


def register(registry: Any) -> list[str]:
    """Register the hooks on a CPU and on ROCm; on CUDA nothing.

    Args:
        registry: SGLang's HookRegistry.

    Returns:
        The targets hooked. If one of them is not in registry._patched once SGLang has applied its hooks, requests with
        a temperature must not be served with speculation: they would be decoded greedily.
    """
    from sglang.srt.plugins.hook_registry import HookType
    from sglang.srt.utils import is_cpu, is_hip

    if not (is_cpu() or is_hip()):
        return []
    registry.register(_SAMPLE, _eagle_sample, HookType.AROUND)
    registry.register(_WALK, _walk, HookType.AROUND)
    return [_SAMPLE, _WALK]


@functools.cache
def _use_quick_argmax() -> None:
    """Done once, when SGLang's function is first called: its module is there by then."""
    module = sys.modules.get(_SAMPLE.rpartition(".")[0])
    if module is not None:
        argmax.use_in(module)


def _eagle_sample(
    original: Callable[..., Any], verify_input: Any, batch: Any, logits_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """Keep what the walk needs; SGLang adds penalties, bias and grammar masks to these logits in place first."""
    global _current
    if logits_output.next_token_logits.device.type == "cpu":
        _use_quick_argmax()
    if batch.forward_mode.is_idle() or batch.sampling_info.is_all_greedy:
        return original(verify_input, batch, logits_output, *args, **kwargs)
    _current = _Verification(logits_output.next_token_logits, verify_input.positions, batch.sampling_info)
    try:
        return original(verify_input, batch, logits_output, *args, **kwargs)
    finally:
        _current = None


def _walk(
    original: Callable[..., Any], *args: Any, candidates: Tensor, target_predict: Tensor, topk: int = -1, **kwargs: Any
) -> Any:
    """SGLang's greedy walk over choices that are drawn rather than the argmax."""
    if _current is not None:
        target_predict = draw(_current.logits, _current.positions, _current.sampling, candidates, chain=topk == 1)
    return original(*args, candidates=candidates, target_predict=target_predict, topk=topk, **kwargs)


def draw(logits: Tensor, positions: Tensor, sampling: Any, candidates: Tensor, *, chain: bool) -> Tensor:
    """The target's drawn token at each node that a walk can reach.

    Args:
        logits: [B * N, V], penalties and bias applied. Not changed: SGLang computes logprobs from it later.
        positions: [B * N], sequence position of each node's token.
        sampling: SGLang's SamplingBatchInfo of the B requests.
        candidates: [B, N], token of each node; for a chain node i + 1 is the child of node i.
        chain: one node of each request at a time, so that a GPU needs room for B rows of probabilities. On a CPU, where
            sampling 49152 logits costs milliseconds, only where all drafts before were drawn too; a GPU would have to
            wait for the host at each node to know where that is.

    Returns:
        [B, N] int64 on the logits' device; on a CPU -1 where a chain's walk cannot get.
    """
    num_requests, num_nodes = candidates.shape
    device = logits.device
    requests = torch.arange(num_requests, device=device)
    if not chain:
        every = requests.repeat_interleave(num_nodes)
        return sample(logits, positions, sampling, every).view(num_requests, num_nodes)
    drawn = torch.full((num_requests, num_nodes), -1, dtype=torch.int64, device=device)
    for node in range(num_nodes):
        rows = requests * num_nodes + node
        tokens = sample(logits[rows], positions[rows], sampling, requests)
        drawn[requests, node] = tokens
        if device.type == "cpu" and node + 1 < num_nodes:
            requests = requests[candidates[requests, node + 1] == tokens]
            if requests.numel() == 0:
                break
    return drawn


def sample(logits: Tensor, positions: Tensor, sampling: Any, requests: Tensor) -> Tensor:
    """Draw one token a row, as sglang.srt.layers.sampler.Sampler.forward does on its PyTorch backend.

    Args:
        logits: [R, V].
        positions: [R]; with a seed, a row's token depends on seed, position and distribution alone.
        requests: [R], the request of each row.

    Returns:
        [R] int64.
    """
    from sglang.srt.layers.sampler import sampling_from_probs_torch, top_k_top_p_min_p_sampling_from_probs_torch

    seed = None if sampling.sampling_seed is None else sampling.sampling_seed[requests]
    probs = torch.softmax(logits / sampling.temperatures[requests], dim=-1)
    if not (sampling.need_top_k_sampling or sampling.need_top_p_sampling or sampling.need_min_p_sampling):
        tokens = sampling_from_probs_torch(probs, sampling_seed=seed, positions=positions)
    else:
        tokens = top_k_top_p_min_p_sampling_from_probs_torch(
            probs,
            sampling.top_ks[requests],
            sampling.top_ps[requests],
            sampling.min_ps[requests],
            sampling.need_min_p_sampling,
            seed,
            positions,
            max_top_k=sampling.max_top_k,
        )
    return tokens.to(torch.int64)
