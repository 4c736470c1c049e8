import pytest
from benches.together import while_all_run


def test_only_the_span_of_all_streams_counts() -> None:
    """Neither the early start of one stream nor the late end of another is in it."""
    early = [(0.0, 1), (1.0, 3), (2.0, 5), (3.0, 7), (4.0, 9)]
    late = [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4), (5.0, 5)]
    tokens, seconds = while_all_run([early, late])
    assert (tokens, seconds) == (pytest.approx(6.0 + 3.0), pytest.approx(3.0))


def test_pieces_of_the_last_step_count_whichever_comes_first() -> None:
    """The end of the span lies a moment before another stream's piece of the same step."""
    streams = [[(step + 0.001 * k, step + 1) for step in range(5)] for k in range(4)]
    tokens, seconds = while_all_run(streams)
    assert tokens / seconds == pytest.approx(4.0, rel=0.002)


def test_streams_one_after_the_other_are_refused() -> None:
    with pytest.raises(ValueError, match="same time"):
        while_all_run([[(0.0, 1), (1.0, 2)], [(1.5, 1), (2.0, 2)]])
