import pytest
from benches.shift_real import figures
from demo_run.load import SliceResult
from demo_run.phases import PHASES
from demo_run.play import Played
from demo_run.results import Measured, Results
from demo_run.timeline import Timeline

ONE, TWO, THREE = (phase.name for phase in PHASES)


def measured(phase: str, group: int, mode: str, wall_s: float) -> Measured:
    return Measured(phase, group, mode, 0.0, SliceResult(8, 0, 100, wall_s), 1.5)


def played(*slices: Measured) -> Played:
    return Played(Timeline(), Results(list(slices)), [], 0)


def test_ratios_are_of_the_whole_run() -> None:
    """Times of all pairs are added up; the frozen draft has none in the first phase."""
    found = figures(
        played(
            *(measured(ONE, 0, mode, wall) for mode, wall in (("tide", 1.0), ("plain", 1.5))),
            *(measured(TWO, 2, mode, wall) for mode, wall in (("tide", 2.0), ("plain", 2.0), ("frozen", 3.0))),
            measured(TWO, 3, "tide", 9.0),
            *(measured(THREE, 4, mode, wall) for mode, wall in (("tide", 2.0), ("plain", 3.0), ("frozen", 2.0))),
        )
    )
    assert found["over_plain"] == pytest.approx(6.5 / 5.0)
    assert found["over_frozen"] == pytest.approx(5.0 / 4.0)
    assert found["over_plain_1"] == pytest.approx(1.5)
    assert found["over_frozen_2"] == pytest.approx(1.5)
    assert "over_frozen_1" not in found
    assert (found["pairs_plain"], found["pairs_frozen"]) == (3.0, 2.0)


def test_without_a_frozen_draft_the_figure_is_missing() -> None:
    """A missing figure fails the bench; one would be made up otherwise."""
    found = figures(played(measured(ONE, 0, "tide", 1.0), measured(ONE, 0, "plain", 1.0)))
    assert found["over_plain"] == 1.0
    assert "over_frozen" not in found
