"""Wall time of the largest shipped scenario: 1,000 servers and 50 trainers over 24 simulated hours, on one core."""

import time

from benches.settings import Settings
from benches.simulated import tide
from tide_daemon.simulate import reading


def run(settings: Settings) -> dict[str, float]:
    """Seconds of the wall clock and of the processor."""
    scenario = reading.load("fleet", settings.integer("seed", 0) or None)
    wall, cpu = time.monotonic(), time.process_time()
    tally = tide(scenario)
    return {
        "wall_s": time.monotonic() - wall,
        "cpu_s": time.process_time() - cpu,
        "servers": float(scenario.num_servers),
        "hours": scenario.seconds / 3600.0,
        "reports": float(tally.counts.reports),
    }
