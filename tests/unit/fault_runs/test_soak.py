"""What the soak calls flat."""

import os

from fault_runs.soak import SHORT, Readings
from fault_runs.table import named


def test_what_grows_is_told_and_what_swings_is_not() -> None:
    """The last quarter against the second one; a start that fills caches does not count."""
    readings = Readings()
    for number in range(40):
        readings.add("trainer", "resident_mb", 100.0 if number < 10 else 500.0 + (number % 3) * 10)
        readings.add("controller", "resident_mb", 100.0 + 5.0 * number)
        readings.add("server", "descriptors", 30.0 + (number % 2) * 6)
        readings.add("sglang", "threads", 20.0 + number // 4)
    told = readings.grown()
    assert [sentence.split(":")[0] for sentence in told] == ["controller", "sglang"]


def test_too_few_measurements_say_nothing() -> None:
    """A soak of minutes proves nothing, and does not claim to."""
    readings = Readings()
    for number in range(7):
        readings.add("trainer", "resident_mb", 1000.0 * number)
    assert readings.grown() == []


def test_a_process_is_measured_with_all_that_it_started() -> None:
    """Our own process, for one; one that has ended is left out."""
    readings = Readings()
    readings.take({"own": os.getpid(), "gone": 1 << 22})
    assert readings.series[("own", "resident_mb")][0] > 10
    assert readings.series[("own", "descriptors")][0] >= 3
    assert not [name for name, _ in readings.series if name == "gone"]


def test_the_soak_draws_from_the_table() -> None:
    """Every name is a row."""
    assert [fault.name for fault in named(list(SHORT))] == list(SHORT)
