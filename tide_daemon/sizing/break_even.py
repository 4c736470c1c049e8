"""The accept length at which speculation pays, by batch size, before anything was measured.

TIDE eq. 5: speculation gains when E[l] > c(b) g + beta(b), with b running requests, g drafted tokens,
T(n) seconds of the target for n tokens, D0 seconds of one draft step, c = D0 / T(b) and
beta = T(b (g + 1)) / T(b). T comes from a roofline: the larger of
reading the weights (of a mixture of experts only those that n tokens choose) and the KV cache, and of
multiplying; plus a constant for each layer (launches, all-reduces, norms, routing), which matters most where
the weights read are few. These figures are a guess that says where to look: routing is not independent,
kernels differ. The running node's own timings replace them (policy/speedup.py).
"""

from dataclasses import dataclass

from tide_daemon.policy.speedup import speedup
from tide_daemon.sizing.devices import MEMORY_FOR_WEIGHTS, DataSheet
from tide_daemon.sizing.targets import TargetShape

REACHED_BANDWIDTH = 0.7
REACHED_FLOPS = 0.5
"""Shares of the data sheet's peaks that decoding is taken to reach. Assumptions."""
DRAFT_LAUNCH_S = 0.0003
"""Least seconds of one draft step: the paper finds drafts bound by launching kernels (section IV-A) and gives
no number. An assumption."""
LAYER_OVERHEAD_S = 0.00006
"""Seconds of a layer that depend neither on weights nor on tokens. An assumption: with it one request on
gpt-oss-120b decodes at about 300 tokens/s on H100s."""
MAX_TENSOR_PARALLEL = 64


@dataclass(frozen=True, slots=True)
class Instance:
    """One serving instance: `num_devices` equal devices in tensor parallel."""

    sheet: DataSheet
    num_devices: int


def smallest_instance(target: TargetShape, sheet: DataSheet) -> Instance | None:
    """The least power of two of devices that holds the target's weights; None above MAX_TENSOR_PARALLEL."""
    num_devices = 1
    while target.weight_bytes() > MEMORY_FOR_WEIGHTS * sheet.memory * num_devices:
        num_devices *= 2
        if num_devices > MAX_TENSOR_PARALLEL:
            return None
    return Instance(sheet, num_devices)


def target_s(target: TargetShape, instance: Instance, batch_size: int, rows_each: int, context: int) -> float:
    """Seconds of one target pass: `rows_each` tokens for each of `batch_size` requests of `context` positions."""
    num_tokens = batch_size * rows_each
    read = target.weight_bytes(num_tokens) + batch_size * context * target.kv_bytes_per_token
    seconds_reading = read / (REACHED_BANDWIDTH * instance.sheet.bandwidth * instance.num_devices)
    multiplied = 2.0 * target.active_params * num_tokens
    seconds_multiplying = multiplied / (REACHED_FLOPS * instance.sheet.flops * instance.num_devices)
    return max(seconds_reading, seconds_multiplying) + target.num_layers * LAYER_OVERHEAD_S


def draft_s(draft_bytes: float, instance: Instance) -> float:
    """Seconds of one draft step: reading the draft on one device, but at least DRAFT_LAUNCH_S."""
    return max(DRAFT_LAUNCH_S, draft_bytes / (REACHED_BANDWIDTH * instance.sheet.bandwidth))


def break_even(plain_s: float, verify_s: float, draft_step_s: float, num_steps: int) -> float:
    """Accept length at which a chain of `num_steps` drafts is as fast as plain decoding. Source: TIDE eq. 5."""
    return 1.0 / speedup(1.0, draft_step_s / plain_s, num_steps, verify_s / plain_s)


def break_even_by_batch(
    target: TargetShape,
    instance: Instance,
    draft_bytes: float,
    num_steps: int,
    context: int,
    batch_sizes: tuple[int, ...],
) -> dict[int, float]:
    """break_even for each batch size, times from the roofline. A figure above num_steps + 1 cannot be reached."""
    step = draft_s(draft_bytes, instance)
    return {
        batch: break_even(
            target_s(target, instance, batch, 1, context),
            target_s(target, instance, batch, num_steps + 1, context),
            step,
            num_steps,
        )
        for batch in batch_sizes
    }
