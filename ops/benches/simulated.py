"""Scenarios for benches: which are run, and one run of each, told on standard error."""

import sys
import time
from collections.abc import Iterator

from benches.settings import Settings
from tide_daemon.simulate import reading
from tide_daemon.simulate.running import run_tide
from tide_daemon.simulate.scenario import Scenario
from tide_daemon.simulate.tally import Tally


def scenarios(settings: Settings) -> Iterator[Scenario]:
    """All shipped ones, or those that --set scenarios=A,B names; --set seed=N replaces their seeds."""
    names = settings.text("scenarios", ",".join(reading.shipped()))
    seed = settings.integer("seed", 0)
    for name in names.split(","):
        yield reading.load(name, seed or None)


def tide(scenario: Scenario) -> Tally:
    """TIDE on a scenario."""
    started = time.monotonic()
    tally = run_tide(scenario)
    told(f"{scenario.name}: {scenario.seconds / 3600:g} hours in {time.monotonic() - started:.0f} s")
    return tally


def told(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr)


def key(scenario: Scenario) -> str:
    """A scenario's name in a figure's name."""
    return scenario.name.replace("-", "_")
