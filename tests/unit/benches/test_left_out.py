"""Cells are predicted from the others: what a cell itself reports changes nothing for it."""

import pytest
from benches.left_out import Cell, Compared, LeftOut, figures

from tide_daemon.policy.events import ServerReported, StepCount
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.speedup import speedup

CELLS = [(batch, steps) for batch in (1, 2, 4, 8) for steps in (1, 2, 3)]
SURVIVAL = (0.6, 0.4, 0.25)


def target_s(num_tokens: int) -> float:
    """A line over n: what is interpolated is then exact."""
    return 0.04 + 0.001 * num_tokens


def seconds(batch: int, steps: int) -> float:
    return target_s(batch * (steps + 1)) + 0.003 * steps


def count(batch: int, steps: int, factor: float = 1.0) -> StepCount:
    """A thousand steps at one cell."""
    chains = 1000 * batch
    accepted = tuple(round(chains * alive) for alive in SURVIVAL[:steps])
    step_s = factor * seconds(batch, steps)
    target = factor * target_s(batch * (steps + 1))
    return StepCount(batch, steps, 1000, chains + sum(accepted), accepted, 1000 * step_s, 1000 * target, step_s)


def reported(sequence: int, *steps: StepCount) -> ServerReported:
    return ServerReported(float(sequence), "bench", sequence, "ready", 1, "d", 0, 1.0, steps)


def told(spoilt: Cell | None = None) -> LeftOut:
    """All cells reported twice; the steps of one take ten times as long as they should and accept nothing."""
    left_out = LeftOut(CELLS, PolicySettings())
    left_out.report(reported(1))
    for sequence in (2, 3):
        counts = [count(batch, steps) for batch in (1, 2, 4, 8) for steps in range(4)]
        for index, each in enumerate(counts):
            if (each.batch_size, each.num_steps) == spoilt:
                counts[index] = count(*spoilt, factor=10.0)
        left_out.report(reported(sequence, *counts))
    return left_out


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_predicted_from_the_others(cell: Cell) -> None:
    """With costs that the formula describes exactly, the prediction is the truth."""
    batch, steps = cell
    truth = speedup(1.0 + sum(SURVIVAL[:steps]), 0.0, steps, seconds(batch, steps) / seconds(batch, 0))
    assert told().predicted(cell) == pytest.approx(truth, rel=0.02)


@pytest.mark.parametrize("cell", CELLS)
def test_its_own_reports_do_not_matter(cell: Cell) -> None:
    assert told(spoilt=cell).predicted(cell) == told().predicted(cell)


def test_errors_are_shares_of_what_was_measured() -> None:
    """Rates are totals over turns, not means of ratios."""
    good = Compared([1.2, 1.0], plain=[(10.0, 1.0), (30.0, 3.0)], drafted=[(10.0, 0.5), (30.0, 3.5)])
    poor = Compared([1.5], plain=[(10.0, 1.0)], drafted=[(10.0, 1.0)])
    found = figures({(1, 1): good, (8, 3): poor})
    assert found["measured_b1_s1"] == pytest.approx(1.0)
    assert found["predicted_b1_s1"] == pytest.approx(1.1)
    assert (found["error_b1_s1"], found["error_b8_s3"]) == (pytest.approx(0.1), pytest.approx(0.5))
    assert (found["median_error"], found["worst_error"]) == (pytest.approx(0.3), pytest.approx(0.5))
