"""What tensor-parallel ranks must agree on: a rank that takes another step than the others leaves them in a collective.

Each rank runs the plug-in for itself, and on one alone a start may fail, a feature be switched off or a draft not be
staged. So before such a thing counts all ranks say what they have, by one all-reduce between CPUs over SGLang's own
group (srt/managers/scheduler.py 1246). Every rank must come to it, also one that has failed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

STEERING = ("steps", "swap", "draft_kv")
"""Features that decide how many steps a batch takes, which requests share a prefix, or when the draft runs."""


def num_ranks(scheduler: Any) -> int:
    """Tensor-parallel ranks that run the plug-in together. Over several nodes: 1, it is refused there (checks.py)."""
    return 1 if scheduler.server_args.nnodes > 1 else int(distributed.get_world_size(scheduler.tp_cpu_group))


def on_every_rank(scheduler: Any, flags: Sequence[bool]) -> list[bool]:
    """Which of these flags are set on every rank. Waits until all ranks have called it."""
    common = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(common, distributed.ReduceOp.MIN, scheduler.tp_cpu_group)
    return [bool(flag) for flag in common.tolist()]
