"""Which workloads arrive, and how many requests run, at any second of a scenario."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tide_daemon.simulate.scenario import Phase


@dataclass(frozen=True, slots=True)
class Traffic:
    """At one moment: the phase's index, shares by workload, and the load (closed loop or arrivals)."""

    phase: int
    mix: Mapping[str, float]
    running: float
    arrivals_per_s: float
    running_spread: float


class Schedule:
    """The phases one after another."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = phases
        self.starts = [0.0]
        for phase in phases:
            self.starts.append(self.starts[-1] + phase.seconds)

    def index(self, at: float) -> int:
        """Index of the phase that holds this second; the last one's at and after the end."""
        return min(bisect_right(self.starts, at) - 1, len(self.phases) - 1)

    def at(self, at: float) -> Traffic:
        """Traffic at this second."""
        index = self.index(at)
        phase = self.phases[index]
        into = at - self.starts[index]
        share = min(1.0, into / phase.seconds)
        moved = share
        if phase.wave_s > 0.0:
            moved = float(int(into / phase.wave_s) % 2)
        return Traffic(
            index,
            _between(phase.mix, phase.mix_end, moved),
            phase.running + (phase.running_end - phase.running) * share,
            phase.arrivals_per_s + (phase.arrivals_per_s_end - phase.arrivals_per_s) * share,
            phase.running_spread,
        )


def _between(first: Mapping[str, float], second: Mapping[str, float], share: float) -> Mapping[str, float]:
    if share == 0.0 or first == second:
        return first
    if share == 1.0:
        return second
    names = sorted({*first, *second})
    mixed = {name: (1.0 - share) * first.get(name, 0.0) + share * second.get(name, 0.0) for name in names}
    return {name: part for name, part in mixed.items() if part > 0.0}
