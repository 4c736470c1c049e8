"""The figures of a run: per phase, tokens a second and accept length of plain, frozen and TIDE.

Each comparison is made of pairs: the same slice of prompts, the same greedy answers, one server
after the other. A ratio is the other side's total time over TIDE's total time of the pairs.
"""

import math
import statistics
from dataclasses import dataclass, field

from demo_run.load import SliceResult

MODES = ("plain", "frozen", "tide")


@dataclass(frozen=True, slots=True)
class Measured:
    """One slice under one mode. `group` numbers the slices that were run on the same prompts."""

    phase: str
    group: int
    mode: str
    at: float
    result: SliceResult
    accept_length: float | None


@dataclass(slots=True)
class Results:
    """All slices measured so far."""

    slices: list[Measured] = field(default_factory=list)

    def paired(self, phase: str | None, mode: str) -> list[tuple[Measured, Measured]]:
        """(TIDE, other) slices with the same prompts, whole answers only; of all phases where `phase` is None."""
        chosen = [m for m in self.slices if phase in (None, m.phase) and not m.result.num_failed]
        tide = {m.group: m for m in chosen if m.mode == "tide"}
        return [(tide[m.group], m) for m in chosen if m.mode == mode and m.group in tide]

    def ratio(self, phase: str | None, mode: str) -> float | None:
        """Token rate of TIDE over that of `mode` on the same prompts, None without pairs; `phase` None: all of them."""
        pairs = self.paired(phase, mode)
        if not pairs:
            return None
        tide = sum(t.result.num_tokens for t, _ in pairs) / sum(t.result.wall_s for t, _ in pairs)
        other = sum(o.result.num_tokens for _, o in pairs) / sum(o.result.wall_s for _, o in pairs)
        return tide / other

    def ratio_error(self, phase: str, mode: str) -> float | None:
        """Standard error of `ratio`, from how much the pairs differ; None below three pairs."""
        logs = [
            math.log((t.result.num_tokens / t.result.wall_s) / (o.result.num_tokens / o.result.wall_s))
            for t, o in self.paired(phase, mode)
        ]
        if len(logs) < 3:
            return None
        return statistics.stdev(logs) / math.sqrt(len(logs)) * (self.ratio(phase, mode) or 1.0)

    def rate(self, phase: str, mode: str) -> float | None:
        """Tokens a second over all slices of one phase and mode."""
        chosen = [m.result for m in self.slices if m.phase == phase and m.mode == mode]
        wall = sum(r.wall_s for r in chosen)
        return sum(r.num_tokens for r in chosen) / wall if wall else None

    def accept_length(self, phase: str, mode: str, last: int = 0) -> float | None:
        """Mean accept length over the slices of a phase, or over the `last` ones of it."""
        values = [m.accept_length for m in self.slices if m.phase == phase and m.mode == mode and m.accept_length]
        values = values[-last:] if last else values
        return sum(values) / len(values) if values else None

    def to_map(self, phases: list[str]) -> dict[str, object]:
        """Machine-readable form: figures per phase, then every slice."""
        return {
            "phases": {phase: self._phase_map(phase) for phase in phases},
            "slices": [
                {
                    "phase": m.phase,
                    "group": m.group,
                    "mode": m.mode,
                    "at": m.at,
                    "num_requests": m.result.num_requests,
                    "num_failed": m.result.num_failed,
                    "num_tokens": m.result.num_tokens,
                    "wall_s": m.result.wall_s,
                    "accept_length": m.accept_length,
                }
                for m in self.slices
            ],
        }

    def _phase_map(self, phase: str) -> dict[str, float | None]:
        figures: dict[str, float | None] = {}
        for mode in MODES:
            figures[f"{mode}_tokens_per_s"] = self.rate(phase, mode)
            figures[f"{mode}_accept_length"] = self.accept_length(phase, mode)
        figures["tide_accept_length_end"] = self.accept_length(phase, "tide", last=3)
        for mode in ("plain", "frozen"):
            figures[f"tide_over_{mode}"] = self.ratio(phase, mode)
            figures[f"tide_over_{mode}_error"] = self.ratio_error(phase, mode)
        return figures
