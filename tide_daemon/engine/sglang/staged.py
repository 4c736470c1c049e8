"""What one batch leaves behind for its commit."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _at_once() -> bool:
    return True


def _nothing() -> None:
    return


@dataclass(slots=True)
class Staged:
    """A batch's states, from the forward pass to the commit.

    Letters: n rows, A*H aux width, V vocabulary, w rows of a verify block, k log-probabilities.

    Attributes:
        aux: [n, A*H], any float type; on the CPU once `is_ready` says so.
        logits: [n, V] of a verification, [requests, V] of a prefill; None: none, or `top` instead.
        width: w for a verification, 0 for a prefill.
        prefix_lens, extend_lens: of a prefill, per request.
        top: ids int32 and log-probabilities float16, rows as of `logits`, when the device computed them.
        is_ready: whether the copies to the CPU are done.
        release: called once the tensors are no longer needed.
    """

    aux: Tensor
    logits: Tensor | None
    width: int
    prefix_lens: list[int]
    extend_lens: list[int]
    top: tuple[Tensor, Tensor] | None = None
    is_ready: Callable[[], bool] = _at_once
    release: Callable[[], None] = _nothing
