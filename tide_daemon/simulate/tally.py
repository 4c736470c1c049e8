"""What a run adds up as it goes: tokens by phase, windows by server, series for plots, decisions."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tide_daemon.simulate.scenario import Scenario
from tide_daemon.simulate.traffic import Schedule

SETTLING_SHARE = 0.05
"""Share of each phase, from its beginning, that comparisons leave out."""
WINDOW_S = 600.0
"""Length of the windows in which TIDE may never be much worse than plain decoding."""
_SERIES_POINTS = 480


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that was decided, for people: seconds since the start, kind, sentence."""

    at_s: float
    kind: str
    text: str


@dataclass(slots=True)
class Point:
    """One point of the series: sums over the fleet.

    Attributes:
        chains: verify steps times requests; tokens over chains is the accept length.
        speculated_chains: those with at least one drafted token.
    """

    tokens: float = 0.0
    plain_tokens: float = 0.0
    chains: float = 0.0
    speculated_chains: float = 0.0
    steps_changes: int = 0


@dataclass(slots=True)
class PhaseTokens:
    """Tokens of one phase after its first share, and those plain decoding would have made in the same busy time."""

    tokens: float = 0.0
    plain_tokens: float = 0.0


@dataclass(slots=True)
class Counts:
    """Totals of a run.

    Attributes:
        pool_scorings, pool_promoted: how often earlier drafts were scored, and how many of them passed the gate.
    """

    tokens: float = 0.0
    plain_tokens: float = 0.0
    steps_changes: int = 0
    rounds: int = 0
    candidates: int = 0
    poisoned: int = 0
    promoted: int = 0
    refused: int = 0
    rolled_back: int = 0
    pool_scorings: int = 0
    pool_promoted: int = 0
    reports: int = 0
    instructions: int = 0
    messages_lost: int = 0


class Tally:
    """Sums of one run."""

    def __init__(self, scenario: Scenario, schedule: Schedule) -> None:
        self.counts = Counts()
        self.phases = [PhaseTokens() for _ in scenario.phases]
        self.point_s = max(scenario.report_s, scenario.seconds / _SERIES_POINTS)
        self.series = [Point() for _ in range(math.ceil(scenario.seconds / self.point_s))]
        self.versions: list[tuple[float, int]] = []
        self.decisions: list[Decision] = []
        self.captured_tokens: dict[str, float] = dict.fromkeys(scenario.workloads, 0.0)
        self._counted_from = [
            start + SETTLING_SHARE * phase.seconds
            for start, phase in zip(schedule.starts, scenario.phases, strict=False)
        ]
        self._schedule = schedule
        self._bucket_s = max(scenario.report_s, WINDOW_S / 20)
        self._num_buckets = math.ceil(scenario.seconds / self._bucket_s)
        self._windows: dict[str, tuple[array[float], array[float]]] = {}

    def served(
        self, server: str, at: float, to: float, tokens: float, plain_tokens: float, chains: float, num_steps: int
    ) -> None:
        """A stretch of one server; it belongs to the moment at which it began."""
        counts = self.counts
        counts.tokens += tokens
        counts.plain_tokens += plain_tokens
        phase = self._schedule.index(at)
        if at >= self._counted_from[phase]:
            sums = self.phases[phase]
            sums.tokens += tokens
            sums.plain_tokens += plain_tokens
        point = self.series[min(len(self.series) - 1, int(at / self.point_s))]
        point.tokens += tokens
        point.plain_tokens += plain_tokens
        point.chains += chains
        if num_steps > 0:
            point.speculated_chains += chains
        windows = self._windows.get(server)
        if windows is None:
            empty = bytes(8 * self._num_buckets)
            windows = self._windows[server] = (array("d", empty), array("d", empty))
        bucket = min(self._num_buckets - 1, int(0.5 * (at + to) / self._bucket_s))
        windows[0][bucket] += tokens
        windows[1][bucket] += plain_tokens

    def captured(self, mix: Mapping[str, float], tokens: float) -> None:
        """Response tokens that went to the trainers' stream."""
        for name, share in mix.items():
            self.captured_tokens[name] += share * tokens

    def steps_changed(self, at: float) -> None:
        """A server ran another number of steps at a batch size than the last time there."""
        self.counts.steps_changes += 1
        self.series[min(len(self.series) - 1, int(at / self.point_s))].steps_changes += 1

    def serving(self, at: float, version: int) -> None:
        """The fleet's serving draft is this version from now on."""
        if not self.versions or self.versions[-1][1] != version:
            self.versions.append((at, version))

    def decided(self, at: float, kind: str, text: str) -> None:
        """Keep a decision for people."""
        self.decisions.append(Decision(at, kind, text))

    def worst_window(self) -> tuple[float, str, float]:
        """(tokens over plain tokens, server, second at which it begins) of the worst window of any server."""
        worst = (math.inf, "", 0.0)
        length = max(1, round(WINDOW_S / self._bucket_s))
        for server in sorted(self._windows):
            tokens, plain = self._windows[server]
            for first, ratio in _windows(tokens, plain, length):
                if ratio < worst[0]:
                    worst = (ratio, server, first * self._bucket_s)
        return worst


def _windows(tokens: Sequence[float], plain: Sequence[float], length: int) -> list[tuple[int, float]]:
    """(first bucket, ratio) of every window of `length` buckets in which anything was served."""
    result = []
    length = min(length, len(tokens))
    made, would = math.fsum(tokens[:length]), math.fsum(plain[:length])
    for first in range(len(tokens) - length + 1):
        if first > 0:
            made += tokens[first + length - 1] - tokens[first - 1]
            would += plain[first + length - 1] - plain[first - 1]
        if would > 1.0:
            result.append((first, made / would))
    return result
