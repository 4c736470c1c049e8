"""AdamW on float32 masters, with clipping, a schedule and a moving average.

The draft computes in bf16 where that is fast (compute.py); updates of 1e-4 would vanish in its eight bits, so the
optimizer owns float32 masters and copies them back after each step.

The exponential moving average of the masters is what is saved and scored: it does what a decaying
learning rate does, without having to know when training ends.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.adamw import adamw


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Settings of AdamW.

    Attributes:
        learning_rate: peak.
        warmup_steps: linear ramp from 0 after a fresh start.
        betas, weight_decay: of AdamW.
        clip_norm: largest norm of the whole gradient.
        average_decay: of the moving average, per step; 0 keeps the last weights.
    """

    learning_rate: float = 5e-4
    warmup_steps: int = 20
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    average_decay: float = 0.99


class MasterAdamW:
    """Owns masters, moments and the moving average; `step` reads and clears the draft's gradients."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> None:
        self.settings = settings
        self.parameters = dict(parameters)
        self.masters = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        self.first = {name: torch.zeros_like(m) for name, m in self.masters.items()}
        self.second = {name: torch.zeros_like(m) for name, m in self.masters.items()}
        self.average = {name: m.clone() for name, m in self.masters.items()}
        # Memory for life: fresh pages at each step cost more than what is done with them.
        self._grads = {name: torch.empty_like(m) for name, m in self.masters.items()}
        self.num_steps = 0

    def step(self, scale: float) -> float:
        """Apply the gradients times `scale`; returns their norm. A gradient that is not finite changes nothing."""
        given = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        names, grads = list(given), [self._grads[name].copy_(grad) for name, grad in given.items()]
        norm = scale * float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))
        for parameter in self.parameters.values():
            parameter.grad = None
        if not math.isfinite(norm):
            return norm
        self.num_steps += 1
        settings = self.settings
        for grad in grads:
            grad.mul_(scale * settings.clip_norm / max(norm, settings.clip_norm))
        rate = settings.learning_rate * min(1.0, self.num_steps / max(1, settings.warmup_steps))
        adamw(
            [self.masters[n] for n in names],
            grads,
            [self.first[n] for n in names],
            [self.second[n] for n in names],
            [],
            # Counted up by adamw itself.
            [torch.full((), self.num_steps - 1.0, device=self.masters[n].device) for n in names],
            fused=True,
            amsgrad=False,
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            lr=rate,
            weight_decay=settings.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        # Young averages follow quickly: otherwise the start would weigh on them for 1 / (1 - decay) steps.
        decay = min(settings.average_decay, self.num_steps / (self.num_steps + 9.0))
        for name in names:
            self.average[name].lerp_(self.masters[name], 1.0 - decay)
            self.parameters[name].data.copy_(self.masters[name])
        return norm
