import pytest
from demo_run.load import SliceResult
from demo_run.phase_run import order_of
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


def test_the_error_is_how_far_the_pairs_lie_apart(results: Results) -> None:
    """None for two pairs; 0 when all pairs say the same; by hand for ratios 2, 1 and 1/2."""
    assert results.ratio_error("a", "plain") is None
    for group, seconds in ((1, 1.0), (2, 2.0), (3, 4.0)):
        results.slices += [measured("c", group, "tide", 100, seconds), measured("c", group, "plain", 100, 2.0)]
        results.slices += [measured("d", group, "tide", 100, seconds), measured("d", group, "plain", 100, seconds)]
    assert results.ratio_error("d", "plain") == 0.0
    ratio = 6.0 / 7.0
    assert results.ratio_error("c", "plain") == pytest.approx(ratio * 0.6931 / 3**0.5, rel=1e-3)


def test_every_slice_is_compared_with_plain_and_each_side_is_first_as_often() -> None:
    orders = [order_of(group, ["plain", "frozen"]) for group in range(8)]
    assert all(order.index("tide") + order.index("plain") >= 1 for order in orders)
    assert [order[0] for order in orders] == ["tide", "tide", "frozen", "plain"] * 2
    assert ["frozen" in order for order in orders] == [True, False] * 4
    assert order_of(0, []) == ["tide"], "nothing to compare with"
