import itertools
import math
import random

import pytest

from tide_daemon.policy.events import StepCount
from tide_daemon.policy.speedup import CostModel, speedup


def step(batch_size: int, num_steps: int, seconds: float, target: float | None = None, num: int = 20) -> StepCount:
    target = seconds if target is None else target
    accepted = (0,) * num_steps
    return StepCount(batch_size, num_steps, num, num * batch_size, accepted, seconds * num, target * num, seconds)


def model() -> CostModel:
    return CostModel(prior_draft_cost=0.1, prior_token_cost=0.1)


def ratio(cost: CostModel, batch_size: int, num_steps: int, accept_length: float) -> float | None:
    """Of this number of steps alone."""
    return cost.ratios(batch_size, [accept_length] * num_steps).get(num_steps)


def test_speedup_is_equation_5() -> None:
    """E[l] / (c * gamma + beta), here with the break-even accept length of figures.md at batch 1."""
    assert speedup(2.0, 0.1, 3, 1.2) == pytest.approx(2.0 / 1.5)
    assert speedup(1.32, 0.0, 3, 1.32) == pytest.approx(1.0)


def test_measured_cells_are_used_as_they_are() -> None:
    """Where (batch, steps) was timed, the prediction is the ratio of the two medians."""
    cost = model()
    cost.observe(1.0, (step(8, 0, 0.0693), step(8, 3, 0.1167, 0.09)))
    assert ratio(cost, 8, 3, 2.0) == pytest.approx(2.0 * 0.0693 / 0.1167, rel=1e-6)


def test_unmeasured_cells_follow_the_formula() -> None:
    """T(b * (steps + 1)) between two measured n by a line, plus the draft's measured part."""
    cost = model()
    cost.observe(1.0, (step(1, 0, 0.040), step(4, 0, 0.049), step(8, 0, 0.069), step(1, 3, 0.061, 0.049)))
    assert cost.target_s(6) == pytest.approx(0.059, rel=1e-3)
    assert cost.draft_s(2, 1) == pytest.approx(0.004, rel=1e-3)
    assert cost.step_s(2, 2) == pytest.approx(0.059 + 2 * 0.004, rel=1e-3)


def test_what_neither_target_nor_draft_takes_is_counted_once() -> None:
    """Scheduling and results take 10 ms of each step; an unmeasured cell has them too, and D0 does not hold them."""
    cost = model()
    cost.observe(1.0, (step(1, 0, 0.050, 0.040), step(4, 0, 0.070, 0.060), step(1, 3, 0.082, 0.060)))
    assert cost.rest_s(1) == pytest.approx(0.010, rel=1e-3)
    assert cost.draft_s(1, 1) == pytest.approx(0.004, rel=1e-3)
    assert cost.step_s(2, 1) == pytest.approx(0.060 + 0.004 + 0.010, rel=1e-2)


@pytest.mark.parametrize("seen", [(1, 2), (1, 3), (2, 3), (1, 5)])
def test_the_first_drafted_token_costs_more_than_the_next(seen: tuple[int, int]) -> None:
    """Two chain lengths at batch 4 show it (draft 10 ms and 4 ms a further token); other lengths and sizes follow."""

    def of(batch_size: int, num_steps: int) -> StepCount:
        target = 0.05 + 0.001 * batch_size * (num_steps + 1)
        first = 0.01 if batch_size == 4 else 0.0125
        return step(batch_size, num_steps, target + first * (1.0 + 0.4 * (num_steps - 1)), target)

    cost = model()
    plain = [step(batch, 0, 0.05 + 0.001 * batch) for batch in (1, 4, 8, 16, 48)]
    cost.observe(1.0, (*plain, *(of(4, steps) for steps in seen), of(8, 2)))
    for num_steps in range(1, 6):
        for batch_size in (4, 8):
            wanted = of(batch_size, num_steps).median_step_s
            assert cost.step_s(batch_size, num_steps) == pytest.approx(wanted, rel=0.001)


def test_odd_draft_times_stay_within_bounds() -> None:
    """A longer chain that seems cheaper, or more than proportionally dearer, is noise: none free, none above eq. 5."""
    for short, long in ((0.010, 0.008), (0.005, 0.020), (0.010, 0.010)):
        cost = model()
        steps = (step(4, 1, 0.05 + short, 0.05), step(4, 3, 0.05 + long, 0.05))
        cost.observe(1.0, (step(4, 0, 0.05), *steps))
        assert 0.0 < cost.draft_s(4, 1) <= cost.draft_s(4, 2) <= cost.draft_s(4, 5) <= 5 * cost.draft_s(4, 1)


def test_target_time_never_falls_with_more_tokens() -> None:
    """A noisy small cell does not make larger ones look cheap."""
    cost = model()
    cost.observe(1.0, (step(1, 0, 0.050), step(2, 0, 0.045), step(4, 0, 0.049)))
    times = [cost.target_s(n) for n in range(1, 40)]
    assert all(a is not None and b is not None and a <= b for a, b in itertools.pairwise(times))
    assert times[-1] is not None and times[-1] > 0.05


def test_nothing_is_predicted_from_nothing() -> None:
    """Before any step was timed there is no ratio."""
    assert ratio(model(), 1, 3, 2.0) is None
    assert model().measured_at(1, 0) is None


def test_a_slower_machine_keeps_the_comparison() -> None:
    """Only the speculative cell is seen while everything gets 30% slower: plain is predicted slower too."""
    cost, at = model(), 0.0
    for _ in range(30):
        at += 1.0
        cost.observe(at, (step(8, 0, 0.07), step(8, 3, 0.11, 0.09)))
    before = ratio(cost, 8, 3, 2.0)
    for _ in range(60):
        at += 1.0
        cost.observe(at, (step(8, 3, 0.143, 0.117),))
    after = ratio(cost, 8, 3, 2.0)
    assert before is not None and after == pytest.approx(before, rel=0.05)
    assert cost.step_s(8, 0) == pytest.approx(0.091, rel=0.05)


def test_an_old_cell_believes_its_own_new_timing() -> None:
    """Plain was not timed for two minutes; when it is, the difference goes to plain, not to everything."""
    cost, at = model(), 0.0
    cost.observe(at, (step(8, 0, 0.07), step(8, 3, 0.11, 0.09)))
    for _ in range(120):
        at += 1.0
        cost.observe(at, (step(8, 3, 0.11, 0.09),))
    for _ in range(3):
        at += 1.0
        cost.observe(at, (step(8, 0, 0.08),))
    plain, spec = cost.step_s(8, 0), cost.step_s(8, 3)
    assert plain == pytest.approx(0.08, rel=0.01)
    assert spec == pytest.approx(0.11, rel=0.07)


def test_one_stall_is_not_believed() -> None:
    """A single report ten times as slow moves the prediction by little."""
    cost = model()
    for second in range(60):
        cost.observe(float(second), (step(1, 0, 0.04),))
    cost.observe(60.0, (step(1, 0, 0.4),))
    assert cost.step_s(1, 0) == pytest.approx(0.04, rel=0.2)


@pytest.mark.parametrize("num", [1, 20])
def test_a_cold_first_step_is_forgotten_with_the_second(num: int) -> None:
    """The first chains take four times as long: the next observation counts nearly alone, and other cells stand."""
    cost = model()
    for second in range(10):
        cost.observe(float(second), (step(8, 0, 0.07),))
    cost.observe(10.0, (step(8, 3, 0.44, 0.36, num),))
    assert cost.step_s(8, 3) == pytest.approx(0.44)
    cost.observe(11.0, (step(8, 3, 0.11, 0.09, num),))
    assert cost.step_s(8, 3) == pytest.approx(0.11, rel=0.05)
    assert cost.step_s(8, 0) == pytest.approx(0.07, rel=0.01)


def test_unusable_timings_are_left_out() -> None:
    """Zero, infinite or empty counters change nothing."""
    cost = model()
    cost.observe(1.0, (step(1, 0, 0.0), step(1, 0, math.inf), step(1, 0, 0.04, num=0)))
    assert cost.step_s(1, 0) is None


def test_noise_averages_out() -> None:
    """With 10% noise a step the ratio of two cells timed together is within 2% after a minute."""
    cost, rng = model(), random.Random(1)
    for second in range(60):
        noise = [math.exp(rng.gauss(0.0, 0.1 / math.sqrt(20))) for _ in range(2)]
        cost.observe(float(second), (step(4, 0, 0.05 * noise[0]), step(4, 3, 0.08 * noise[1], 0.06)))
    assert ratio(cost, 4, 3, 1.6) == pytest.approx(1.0, abs=0.02)


def test_a_batch_size_seldom_seen_is_known_from_its_neighbour() -> None:
    """One plain step at 7, slow by chance, is not believed against hundreds at 8: no more than 8 requests take."""
    cost = model()
    for second in range(60):
        cost.observe(float(second), (step(8, 0, 0.080, num=12),))
    cost.observe(60.0, (step(7, 0, 0.100, num=1),))
    alone = cost.step_s(8, 0)
    assert alone == pytest.approx(0.080, rel=0.02)
    assert cost.step_s(7, 0) == pytest.approx(0.078, rel=0.04)


def test_neighbours_known_as_well_do_not_move_each_other_much() -> None:
    """Measured hundreds of times each: 7% off what one expects of the other stays 7%, but for a fifth."""
    cost = model()
    for second in range(200):
        cost.observe(float(second), (step(3, 0, 0.060, num=12), step(4, 0, 0.070, num=12)))
    seen = (cost.step_s(4, 0) or 0.0) / (cost.step_s(3, 0) or 1.0)
    assert seen == pytest.approx(0.070 / 0.060, rel=0.02)


def test_batch_sizes_far_apart_say_nothing_of_each_other() -> None:
    cost = model()
    cost.observe(0.0, (step(8, 0, 0.080, num=12), step(4, 0, 0.010, num=1)))
    assert cost.step_s(4, 0) == pytest.approx(0.010)
