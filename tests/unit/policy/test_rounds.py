from dataclasses import replace

from tide_daemon.policy.rounds import TrainerView, next_round
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(train_min_tokens=8000, train_first_tokens=3000, train_shift_tokens=2000, train_retry_s=30.0)
IDLE = TrainerView("a", "waiting", 4, 4, 8000, None)


def test_enough_new_tokens_begin_a_round() -> None:
    """The next number after the last one begun or asked for."""
    wanted = next_round([IDLE], 0.0, 1, False, SETTINGS)
    assert wanted is not None and (wanted.trainer, wanted.round) == ("a", 5)
    assert next_round([replace(IDLE, new_tokens=7999)], 0.0, 1, False, SETTINGS) is None


def test_day_0_and_shifts_need_fewer() -> None:
    """No draft at all, or a shift, is worth an early round."""
    few = replace(IDLE, new_tokens=3000)
    assert next_round([few], 0.0, 1, False, SETTINGS) is None
    assert next_round([few], 0.0, 0, False, SETTINGS) is not None
    assert next_round([few], 0.0, 1, True, SETTINGS) is not None


def test_one_round_at_a_time() -> None:
    """While a trainer is busy, or has not yet begun what it was asked for, nobody begins another."""
    for busy in (replace(IDLE, name="b", state="training"), replace(IDLE, name="b", desired_round=5)):
        assert next_round([IDLE, busy], 0.0, 1, False, SETTINGS) is None


def test_most_data_first_then_name() -> None:
    """The trainer with most new tokens is asked; equal ones by name."""
    views = [replace(IDLE, name="b", new_tokens=9000), IDLE, replace(IDLE, name="c", new_tokens=9000)]
    wanted = next_round(views, 0.0, 1, False, SETTINGS)
    assert wanted is not None and wanted.trainer == "b"


def test_a_failed_round_waits_before_the_next() -> None:
    """A trainer that failed is asked again after a pause, not at once."""
    failed = replace(IDLE, state="failed", failed_at=100.0)
    assert next_round([failed], 120.0, 1, False, SETTINGS) is None
    assert next_round([failed], 130.0, 1, False, SETTINGS) is not None


def test_no_trainer_no_round() -> None:
    """An empty fleet waits."""
    assert next_round([], 0.0, 0, True, SETTINGS) is None
