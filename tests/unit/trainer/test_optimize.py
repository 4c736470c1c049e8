import pytest
import torch
from torch import nn

from tide_daemon.trainer.optimize import MasterAdamW, OptimizerSettings

PLAIN = OptimizerSettings(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1, clip_norm=1e9, average_decay=0.0)


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(5, 3, generator=generator).to(dtype)) for name in ("a", "b")}


def set_gradients(held: dict[str, nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in held.values():
        parameter.grad = (torch.randn(5, 3, generator=generator) * scale).to(parameter.dtype)


def test_steps_equal_those_of_torch() -> None:
    """On float32 weights it is AdamW, gradients scaled as told."""
    ours, theirs = parameters(), parameters()
    optimizer = MasterAdamW(ours, PLAIN)
    reference = torch.optim.AdamW(theirs.values(), lr=1e-2, betas=PLAIN.betas, weight_decay=0.1)
    for seed in range(5):
        set_gradients(ours, seed, 4.0)
        set_gradients(theirs, seed)
        optimizer.step(0.25)
        reference.step()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name])


def test_small_updates_add_up_in_bf16() -> None:
    """Updates that a bf16 weight is too coarse for are kept in the masters."""
    held = {"a": nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))}
    settings = OptimizerSettings(learning_rate=1e-4, warmup_steps=0, average_decay=0.0)
    optimizer = MasterAdamW(held, settings)
    for _ in range(200):
        held["a"].grad = torch.ones(2, 2, dtype=torch.bfloat16)
        optimizer.step(1.0)
    assert float(held["a"].detach().float().mean()) == pytest.approx(0.98, abs=0.004)


def test_gradient_that_is_not_finite_changes_nothing() -> None:
    """One bad batch is refused whole, and its gradients are gone."""
    held = parameters()
    optimizer = MasterAdamW(held, PLAIN)
    set_gradients(held, 1)
    optimizer.step(1.0)
    before = {
        kind: {n: t.clone() for n, t in getattr(optimizer, kind).items()} for kind in ("masters", "first", "average")
    }
    set_gradients(held, 2)
    held["b"].grad[0, 0] = float("inf")
    assert optimizer.step(1.0) == float("inf")
    assert optimizer.num_steps == 1
    assert all(parameter.grad is None for parameter in held.values())
    for kind, values in before.items():
        assert all(torch.equal(getattr(optimizer, kind)[name], value) for name, value in values.items())


def test_large_gradients_are_clipped_as_a_whole() -> None:
    """The norm is over all weights; what is returned is the norm before clipping."""
    held = parameters()
    optimizer = MasterAdamW(held, OptimizerSettings(warmup_steps=0, clip_norm=1.0))
    set_gradients(held, 1, 100.0)
    expected = torch.cat([p.grad.flatten() for p in held.values()])
    norm = optimizer.step(1.0)
    assert norm == pytest.approx(float(expected.norm()), rel=1e-5)
    moments = torch.cat([optimizer.first[name].flatten() for name in held])
    torch.testing.assert_close(moments, expected / norm * (1 - optimizer.settings.betas[0]))


def test_average_follows_the_masters() -> None:
    """A young average follows quickly; an old one moves by 1 - decay of the way."""
    held = parameters()
    optimizer = MasterAdamW(held, OptimizerSettings(warmup_steps=0, average_decay=0.99))
    start = {name: value.clone() for name, value in optimizer.average.items()}
    set_gradients(held, 1)
    optimizer.step(1.0)
    for name in held:
        torch.testing.assert_close(optimizer.average[name], start[name].lerp(optimizer.masters[name], 0.9))
    optimizer.num_steps = 10_000
    start = {name: value.clone() for name, value in optimizer.average.items()}
    set_gradients(held, 2)
    optimizer.step(1.0)
    for name in held:
        torch.testing.assert_close(optimizer.average[name], start[name].lerp(optimizer.masters[name], 0.01))
