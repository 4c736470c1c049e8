import pytest
from demo_run.load import SliceResult
from demo_run.results import Measured, Results


def measured(phase: str, group: int, mode: str, tokens: int, wall_s: float, failed: int = 0) -> Measured:
    return Measured(phase, group, mode, 0.0, SliceResult(8, failed, tokens, wall_s), 1.0)


@pytest.fixture
def results() -> Results:
    return Results(
        [
            measured("a", 0, "tide", 100, 1.0),
            measured("a", 0, "plain", 100, 2.0),
            measured("a", 1, "tide", 300, 9.0),
            measured("a", 2, "tide", 100, 3.0),
            measured("a", 2, "plain", 100, 2.0),
            measured("b", 3, "tide", 100, 1.0),
        ]
    )


def test_ratio_counts_pairs_only(results: Results) -> None:
    """A TIDE slice without a partner on the same prompts does not enter the ratio."""
    assert results.ratio("a", "plain") == pytest.approx((200 / 4.0) / (200 / 4.0))


def test_ratio_of_the_whole_run_has_all_phases(results: Results) -> None:
    """Pairs of every phase, their times added up."""
    results.slices += [measured("b", 3, "plain", 100, 5.0)]
    assert results.ratio(None, "plain") == pytest.approx((300 / 5.0) / (300 / 9.0))


def test_rate_counts_every_slice(results: Results) -> None:
    """The token rate of a phase is over all its slices."""
    assert results.rate("a", "tide") == pytest.approx(500 / 13.0)


def test_slices_with_failed_requests_are_not_compared(results: Results) -> None:
    """A slice that lost requests did less work; it enters no ratio, on either side."""
    results.slices += [measured("a", 4, "tide", 100, 1.0), measured("a", 4, "plain", 10, 0.1, failed=7)]
    results.slices += [measured("a", 5, "tide", 10, 0.1, failed=7), measured("a", 5, "plain", 100, 9.0)]
    assert results.ratio("a", "plain") == pytest.approx(1.0)


def test_nothing_measured_is_none(results: Results) -> None:
    """No figure is made up for what was not measured."""
    assert results.ratio("b", "plain") is None
    assert results.rate("b", "frozen") is None
    assert results.to_map(["b"])["phases"]["b"]["tide_over_plain"] is None
