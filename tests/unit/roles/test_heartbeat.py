"""A loop that does not come round is late, one that does is not, whatever else it does."""

from tide_daemon.roles.heartbeat import Heartbeat


def test_late_is_over_the_limit() -> None:
    """Each loop has its own limit and is heard by itself."""
    now = 0.0
    heartbeat = Heartbeat({"fast": 1.0, "slow": 10.0}, lambda: now)
    heartbeat.start()
    now = 1.0
    assert heartbeat.late() == {}
    now = 5.0
    assert heartbeat.late() == {"fast": 5.0}
    heartbeat.beat("fast")
    assert heartbeat.late() == {}
    now = 15.0
    assert heartbeat.late() == {"fast": 10.0, "slow": 15.0}


def test_a_first_turn_that_never_ends_is_late() -> None:
    """Counted from the start of the run; before it nothing is."""
    now = 100.0
    heartbeat = Heartbeat({"loop": 1.0}, lambda: now)
    assert heartbeat.late() == {}
    heartbeat.start()
    now = 102.0
    assert heartbeat.late() == {"loop": 2.0}
