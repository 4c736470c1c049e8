"""Where drafts are trained and scored, and in what numbers.

On a GPU (CUDA, or ROCm, which torch calls by the same name) in bfloat16. On a CPU in bfloat16 where torch multiplies it
fast, else in float32: without AVX-512 a step in bfloat16 takes several times as long (ops/decisions/0047). Either way
masters are float32 and what is published is bfloat16. Only the draft, the target's embedding and the batch at hand go
to the device; samples, files and first weights stay on the host.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tide_daemon.errors import StoreError


@dataclass(frozen=True, slots=True)
class Compute:
    """A device, and the dtype of weights and states there."""

    device: torch.device
    dtype: torch.dtype


HOST = Compute(torch.device("cpu"), torch.bfloat16)


def choose(device: str) -> Compute:
    """What `trainer.device` means on this machine.

    Args:
        device: "cpu", "cuda", or "auto": a GPU if there is one.

    Raises:
        StoreError: a GPU is asked for and torch finds none.
    """
    if device != "cpu" and torch.cuda.is_available():
        return Compute(torch.device("cuda"), torch.bfloat16)
    if device == "cuda":
        raise StoreError(
            "trainer.device is 'cuda' and torch finds no GPU: install torch's build for it (CUDA or ROCm) and see that "
            "this user may open its device files, or set trainer.device to 'cpu'"
        )
    return Compute(HOST.device, torch.bfloat16 if _multiplies_bf16() else torch.float32)


@contextmanager
def told_of_memory() -> Iterator[None]:
    """In the block a GPU whose memory is used up raises StoreError, which says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StoreError(
            f"the GPU's memory is used up: lower trainer.batch_tokens, or set trainer.device to 'cpu' ({error})"
        ) from error


def _multiplies_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
