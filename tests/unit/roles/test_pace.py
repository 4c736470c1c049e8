"""Accept length, speed and steps in force, from one report and one table."""

from tide_daemon.roles.pace import RecentAcceptLength, accept_length, steps_at, tokens_per_s
from tide_daemon.wire.records import NodeReport, StepStats


def report(*steps: StepStats, interval_s: float = 2.0) -> NodeReport:
    return NodeReport(
        node="n1",
        at=0.0,
        sequence=1,
        engine="ready",
        running_version=1,
        running_digest="",
        applied_generation=1,
        num_running=2,
        interval_s=interval_s,
        steps=steps,
        collecting=True,
        rows_written=0,
        rows_dropped=0,
        rows_published=0,
        bytes_published=0,
        requests_opted_out=0,
        num_swaps=0,
        engine_starts=1,
    )


def step(batch_size: int, num_steps: int, num_verifies: int, num_tokens: int) -> StepStats:
    return StepStats(batch_size, num_steps, num_verifies, num_tokens, (0,) * num_steps, 1.0, 0.8, 0.1)


def test_accept_length_counts_speculative_steps_of_each_request() -> None:
    """10 steps of 2 requests with 50 tokens and 10 of 1 with 25: 75 tokens in 30 chains; plain steps do not count."""
    assert accept_length(report(step(2, 3, 10, 50), step(1, 2, 10, 25), step(4, 0, 100, 400))) == 2.5


def test_an_accept_length_is_shown_for_a_minute() -> None:
    """Reports in which nothing was drafted leave it as it is, but an idle night is not shown the evening's."""
    recent = RecentAcceptLength()
    assert recent.value(0.0) is None
    recent.take(report(step(2, 3, 10, 50)), 100.0)
    recent.take(report(), 101.0)
    assert recent.value(159.0) == 2.5
    assert recent.value(161.0) is None
    recent.take(report(step(1, 2, 10, 10)), 500.0)
    assert recent.value(500.0) == 1.0


def test_no_speculation_has_no_accept_length() -> None:
    """None, not 1.0: nothing was measured."""
    assert accept_length(report(step(4, 0, 100, 400))) is None


def test_speed_counts_every_token() -> None:
    """Plain or not; a first report spans no time."""
    assert tokens_per_s(report(step(2, 3, 10, 50), step(4, 0, 10, 40))) == 45.0
    assert tokens_per_s(report(step(2, 3, 10, 50), interval_s=0.0)) == 0.0


def test_steps_follow_the_table() -> None:
    """The first entry that is large enough; plain above the last; an idle engine counts as one request."""
    table = ((1, 5), (4, 3))
    assert [steps_at(table, size) for size in (0, 1, 2, 4, 5)] == [5, 5, 3, 3, 0]
    assert steps_at((), 1) == 0
