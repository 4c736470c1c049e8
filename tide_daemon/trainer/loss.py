"""Cross-entropy of the draft's distribution against soft targets, fused with the LM head.

Forward KL up to a constant: sum over rows of w * -(q . log_softmax(logits)). Softmax and log in
float32. Sums and counts are returned; the caller divides.

Logits over the draft's vocabulary are by far the largest tensor of training. So head, softmax and the
gradient are computed together, some hundred rows at a time, in the forward pass (the gradient of a
weighted sum is (softmax - q) * w, whatever comes after), and no logits are kept. The head's own gradient is
as large as the head: it is made once for all rows of a block, and never copied. With a gradient a chunk, summed in
float32, and another for each step of the unroll a training step took twice as long (SmolLM2's draft, 470 rows).
`cross_entropy_reference` is the slow, obvious twin that the tests hold this against.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_ROWS = 128
"""128 rows of 4,096 float32 logits are 2 MB: they stay in the second-level cache."""

BLOCK_CHUNKS = 16
"""Chunks whose gradients are kept for one product: 2,048 rows, more than an optimizer step has by default."""


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
        grad_head = None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        for block in _parts(0, states.shape[0], BLOCK_CHUNKS * CHUNK_ROWS):
            grad = states.new_empty(block.stop - block.start, head.shape[0]) if need_states or need_head else None
            for part in _parts(block.start, block.stop, CHUNK_ROWS):
                q, w = targets(part), weights[part]
                log_p = functional.linear(states[part], head).log_softmax(-1, dtype=torch.float32)
                total -= ((q * log_p).sum(-1) * w).sum()
                if grad is None:
                    continue
                chunk = grad[part.start - block.start : part.stop - block.start]
                chunk.copy_(log_p.exp_().sub_(q).mul_(w.unsqueeze(-1)))
                if grad_states is not None:
                    torch.mm(chunk, head, out=grad_states[part])
            if need_head and grad is not None:
                grad_head = _added(grad_head, grad.t(), states[block])
        ctx.save_for_backward(grad_states, grad_head)
        return total

    @staticmethod
    def backward(ctx, upstream):
        if bool(upstream == 1):
            return *ctx.saved_tensors, None, None
        grads = (None if grad is None else grad * upstream.to(grad.dtype) for grad in ctx.saved_tensors)
        return *grads, None, None


def _parts(first: int, stop: int, size: int) -> Iterator[slice]:
    for start in range(first, stop, size):
        yield slice(start, min(start + size, stop))


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left, right) if total is None else total.addmm_(left, right)


def cross_entropy_reference(states: Tensor, head: Tensor, q: Tensor, weights: Tensor) -> Tensor:
    """The same sum, written as its definition."""
    log_p = functional.linear(states, head).float().log_softmax(-1)
    return -((q * log_p).sum(-1) * weights).sum()
