"""Break-even: eq. 5 on measured times, and the shape that a roofline must have."""

import itertools

import pytest

from tide_daemon.policy.speedup import speedup
from tide_daemon.sizing.break_even import (
    break_even,
    break_even_by_batch,
    draft_s,
    smallest_instance,
    target_s,
)
from tide_daemon.sizing.devices import DATA_SHEETS
from tide_daemon.sizing.known_models import known_target
from tide_daemon.sizing.targets import TargetShape


def known(name: str) -> TargetShape:
    target = known_target(name)
    assert target is not None
    return target


@pytest.mark.parametrize(
    ("plain_ms", "spec_ms", "expected"), [(40.7, 53.8, 1.32), (49.3, 77.9, 1.58), (69.3, 116.7, 1.68)]
)
def test_measured_times_on_a_cpu(plain_ms: float, spec_ms: float, expected: float) -> None:
    """SmolLM2-135M on SGLang, one CPU thread, batch 1, 4, 8, chain of 3: our own measurement of step times."""
    draft_ms = 2.0
    assert break_even(plain_ms, spec_ms - 3 * draft_ms, draft_ms, 3) == pytest.approx(expected, abs=0.005)


def test_at_break_even_the_speed_up_is_1() -> None:
    """The inverse of eq. 5."""
    length = break_even(10.0, 14.0, 1.5, 4)
    assert speedup(length, 0.15, 4, 1.4) == pytest.approx(1.0)


def test_instances_hold_the_weights() -> None:
    """65 GB of gpt-oss-120b need two H100, one MI250; 470 GB of Qwen3-235B eight H100."""
    assert [
        found.num_devices
        for found in (
            smallest_instance(known("gpt-oss-120b"), DATA_SHEETS["h100"]),
            smallest_instance(known("gpt-oss-120b"), DATA_SHEETS["mi250"]),
            smallest_instance(known("Qwen3-235B-A22B"), DATA_SHEETS["h100"]),
        )
        if found is not None
    ] == [2, 1, 8]


@pytest.mark.parametrize("name", ["gpt-oss-120b", "Llama-3.3-70B", "Qwen3-8B"])
def test_target_times_rise_with_tokens(name: str) -> None:
    """T(n) never falls with the batch, the rows or the context."""
    target = known(name)
    instance = smallest_instance(target, DATA_SHEETS["h100"])
    assert instance is not None
    by_batch = [target_s(target, instance, batch, 1, 1024) for batch in (1, 2, 8, 64, 512)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(by_batch))
    assert target_s(target, instance, 8, 4, 1024) >= target_s(target, instance, 8, 1, 1024)
    assert target_s(target, instance, 8, 1, 8192) > target_s(target, instance, 8, 1, 1024)


def test_a_dense_model_breaks_even_late_when_compute_bound() -> None:
    """Low and flat while weights are read, high at large batches: section IV-A, Fig. 6."""
    target = known("Llama-3.3-70B")
    instance = smallest_instance(target, DATA_SHEETS["h100"])
    assert instance is not None
    found = break_even_by_batch(target, instance, 2.8e9, 3, 1024, (1, 8, 256))
    assert 1.0 < found[1] < 1.3 and found[8] == pytest.approx(found[1], abs=0.05)
    assert found[256] > 2.0


def test_small_drafts_are_bound_by_launching() -> None:
    instance = smallest_instance(known("Qwen3-8B"), DATA_SHEETS["h100"])
    assert instance is not None
    assert draft_s(1e6, instance) == draft_s(1e7, instance) == 0.0003
    assert draft_s(2.8e9, instance) == pytest.approx(2.8e9 / (0.7 * 3.35e12))
