"""What speculation gains by the cost model: the ratio, where it is 1, and what it needs to know."""

import pytest

from tide_daemon.policy.events import StepCount
from tide_daemon.policy.plain_pace import plain_pace
from tide_daemon.policy.speedup import CostModel


def steps(batch_size: int, num_steps: int, num_verifies: int, num_tokens: int, step_s: float) -> StepCount:
    accepted = (num_tokens - num_verifies * batch_size, *(0,) * (num_steps - 1)) if num_steps else ()
    total_s = num_verifies * step_s
    return StepCount(batch_size, num_steps, num_verifies, num_tokens, accepted, total_s, total_s, step_s)


PLAIN = steps(4, 0, 100, 400, 0.05)
DRAFTED = steps(4, 3, 100, 800, 0.08)


def model(*counts: StepCount) -> CostModel:
    cost = CostModel(0.1, 0.1)
    cost.observe(1.0, counts)
    return cost


def test_twice_the_tokens_in_more_time() -> None:
    """800 tokens in 8 s; plainly they take 200 steps of 50 ms, 10 s: 1.25 of plain."""
    pace = plain_pace(model(PLAIN, DRAFTED), [(4, DRAFTED)])
    assert pace is not None
    assert pace.tokens_per_s == pytest.approx(100.0)
    assert pace.plain_tokens_per_s == pytest.approx(80.0)
    assert pace.of_plain == pytest.approx(1.25)


def test_plain_steps_are_plain() -> None:
    """Exactly 1, whatever they took, and a stall changes nothing."""
    stalled = steps(4, 0, 100, 400, 0.05)
    pace = plain_pace(model(PLAIN), [(4, stalled), (4, PLAIN)])
    assert pace is not None and pace.of_plain == pytest.approx(1.0)


def test_cells_add_up() -> None:
    """Plain and drafted steps side by side: seconds and tokens are summed before they are divided."""
    pace = plain_pace(model(PLAIN, DRAFTED), [(4, DRAFTED), (4, PLAIN)])
    assert pace is not None
    assert pace.of_plain == pytest.approx((10.0 + 5.0) / (8.0 + 5.0))


def test_plain_that_was_never_measured_comes_from_the_model() -> None:
    """The target's share of the drafted step says what a plain one takes."""
    cost = model(DRAFTED)
    pace = plain_pace(cost, [(4, DRAFTED)])
    plain_s = cost.step_s(4, 0)
    assert pace is not None and plain_s is not None
    assert pace.plain_tokens_per_s == pytest.approx(4 / plain_s)


def test_nothing_is_said_of_an_idle_node() -> None:
    """Nor of one whose costs nobody knows."""
    assert plain_pace(model(PLAIN), []) is None
    assert plain_pace(CostModel(0.1, 0.1), [(4, DRAFTED)]) is None
