"""How fast a process grows, as bench `memory` says it."""

import pytest
from benches.resident import MB, Series


def sawtooth(leak_mb_per_hour: float, minutes: float = 10.0) -> Series:
    """A collector's cycle of 95 s between 80 and 140 MB, sampled every five seconds, over a leak."""
    times = [5.0 * number for number in range(int(12 * minutes) + 1)]
    return Series("x", [(at, int(MB * (80 + 60 * (at % 95) / 95 + leak_mb_per_hour * at / 3600))) for at in times])


@pytest.mark.parametrize("leak", [0.0, 30.0, 200.0])
def test_growth_is_that_of_what_stays_after_a_collection(leak: float) -> None:
    assert sawtooth(leak).growth_mb_per_hour() == pytest.approx(leak, abs=12.0)


def test_a_short_series_uses_every_sample() -> None:
    series = sawtooth(0.0, minutes=3.0)
    assert series.lows() == series.samples
    assert series.growth_mb_per_hour() == series.slope_mb_per_hour()
