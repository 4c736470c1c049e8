"""Load that sits on the break-even point: how often steps change, and what that costs.

changes_per_minute   a server ran another number of steps than the last time at that batch size, probes
                     included; mean over the servers
loss                 1 - TIDE's tokens over those of the better side, plain or one fixed number of steps
"""

from benches.settings import Settings
from benches.simulated import tide
from tide_daemon.simulate import reading
from tide_daemon.simulate.figures import compare


def run(settings: Settings) -> dict[str, float]:
    """Figures as above."""
    scenario = reading.load("breakeven", settings.integer("seed", 0) or None)
    tally = tide(scenario)
    better = max(run.counts.tokens for each in compare(scenario) for run in each.runs.values())
    minutes = scenario.num_servers * scenario.seconds / 60.0
    return {
        "changes_per_minute": tally.counts.steps_changes / minutes,
        "loss": 1.0 - tally.counts.tokens / better,
        "over_plain": tally.counts.tokens / tally.counts.plain_tokens,
    }
