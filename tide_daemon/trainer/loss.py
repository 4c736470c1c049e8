"""Cross-entropy of the draft's distribution against soft targets, fused with the LM head.

Forward KL up to a constant: sum over rows of w * -(q . log_softmax(logits)). Softmax and log in
float32. Sums and counts are returned; the caller divides.

Logits over the draft's vocabulary are by far the largest tensor of training. So head, softmax and the
gradient are computed together, some hundred rows at a time, in the forward pass (the gradient of a
weighted sum is (softmax - q) * w, whatever comes after), and no logits are kept.
`cross_entropy_reference` is the slow, obvious twin that the tests hold this against.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_ROWS = 256
"""256 rows of 4,096 float32 logits are 4 MB: they stay in the second-level cache."""


@dataclass(frozen=True, eq=False)
class LossSum:
    """A sum over rows, to be divided by the caller.

    Attributes:
        loss: scalar, sum of w * cross-entropy; differentiable.
        weight: sum of w.
    """

    loss: Tensor
    weight: float


TargetChunk = Callable[[slice], Tensor]
"""slice of rows -> q, float32 [c, Vd]."""


def head_cross_entropy(states: Tensor, head: Tensor, targets: TargetChunk, weights: Tensor) -> LossSum:
    """Weighted sum of soft cross-entropies.

    Args:
        states: [C, H] after the final norm.
        head: [Vd, H], same dtype. No gradient is computed for it when it does not require one.
        targets: called once per chunk of rows, in order.
        weights: float32 [C]; rows with 0 contribute nothing.
    """
    return LossSum(_HeadCrossEntropy.apply(states, head, targets, weights), float(weights.sum()))


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, head, targets, weights):
        need_states, need_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_states = torch.empty_like(states) if need_states else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if need_head else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        for first in range(0, states.shape[0], CHUNK_ROWS):
            part = slice(first, min(first + CHUNK_ROWS, states.shape[0]))
            q, w = targets(part), weights[part]
            logits = functional.linear(states[part], head).float()
            log_norm = logits.logsumexp(-1, keepdim=True)
            # q sums to one, so q . log_softmax = q . logits - log_norm.
            total += ((log_norm[:, 0] - (q * logits).sum(-1)) * w).sum()
            if need_states or need_head:
                grad = logits.sub_(log_norm).exp_().sub_(q).mul_(w.unsqueeze(-1)).to(states.dtype)
                if grad_states is not None:
                    torch.mm(grad, head, out=grad_states[part])
                if grad_head is not None:
                    grad_head += torch.mm(grad.t(), states[part]).float()
        ctx.save_for_backward(grad_states, grad_head)
        ctx.head_dtype = head.dtype
        return total

    @staticmethod
    def backward(ctx, upstream):
        grad_states, grad_head = ctx.saved_tensors
        if grad_states is not None:
            grad_states = grad_states * upstream.to(grad_states.dtype)
        if grad_head is not None:
            grad_head = (grad_head * upstream).to(ctx.head_dtype)
        return grad_states, grad_head, None, None


def cross_entropy_reference(states: Tensor, head: Tensor, q: Tensor, weights: Tensor) -> Tensor:
    """The same sum, written as its definition."""
    log_p = functional.linear(states, head).float().log_softmax(-1)
    return -((q * log_p).sum(-1) * weights).sum()
