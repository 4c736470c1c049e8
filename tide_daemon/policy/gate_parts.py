"""The gate, part by part: no workload and no stretch of the response may pay for the others. Pure.

Each workload, and each stretch of positions in the response (first_index of the scores: 0-63, 64-255, ...), that has
enough held-out requests and chain starts by itself is judged by the formula of gate.py. With g = gate_max_loss, a
share of what the serving draft has there:

    D + t * se < -g    surely a greater loss than that: reject
    D < -g             it looks like one: need more data

A part with less data has no say: it would forbid every candidate by chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tide_daemon.policy.events import NO_DRAFT, PositionScored, RequestScored
from tide_daemon.policy.paired import Gain, Pair, gain_of
from tide_daemon.policy.settings import PolicySettings

MAX_WORKLOADS = 16
"""Workloads with most chain starts that are judged by themselves: labels are the clients' choice."""


@dataclass(frozen=True, slots=True)
class Part:
    """A workload or a stretch of the response with enough data.

    Attributes:
        name: for people, "code" or "positions 64-255".
        workload: its label, None for a stretch.
    """

    name: str
    workload: str | None
    gain: Gain

    def excess(self, settings: PolicySettings) -> float:
        """By how much it loses more than is allowed, as a share of the serving draft's; at most 0 when it does not."""
        return -self.gain.mean / self.gain.serving_length - settings.gate_max_loss


def parts_of(scores: Sequence[RequestScored], serving_version: int, settings: PolicySettings) -> list[Part]:
    """All parts with enough data, workloads by name and then stretches in their order.

    Args:
        scores: usable ones, see gate.py.
    """
    by_workload: dict[str, list[Pair]] = {}
    by_index: dict[int, list[Pair]] = {}
    for score in scores:
        by_workload.setdefault(score.workload, []).append(pair_of(score, serving_version))
        for stretch in score.by_position if _fits(score) else ():
            by_index.setdefault(stretch.first_index, []).append(pair_of(stretch, serving_version))
    largest = sorted(by_workload, key=lambda name: (-_positions(by_workload[name]), name))[:MAX_WORKLOADS]
    ends = dict(zip(sorted(by_index), sorted(by_index)[1:], strict=False))
    found = [(workload or "unlabelled requests", workload, by_workload[workload]) for workload in sorted(largest)]
    return [
        Part(name, workload, gain_of(pairs, settings.gate_confidence))
        for name, workload, pairs in [*found, *((_named(i, ends.get(i)), None, by_index[i]) for i in sorted(by_index))]
        if len(pairs) >= settings.gate_min_requests and _positions(pairs) >= settings.gate_min_positions
    ]


def worst_of(parts: Iterable[Part], settings: PolicySettings) -> Part | None:
    """The part that loses most of those that lose more than is allowed, None without one."""
    losing = [part for part in parts if part.excess(settings) > 0.0]
    return max(losing, key=lambda part: part.excess(settings)) if losing else None


def pair_of(score: RequestScored | PositionScored, serving_version: int) -> Pair:
    """Day 0: no draft has accept length 1, whatever the trainer wrote."""
    serving = float(score.num_positions) if serving_version == NO_DRAFT else score.serving_tokens
    return Pair(score.num_positions, serving, score.candidate_tokens)


def _fits(score: RequestScored) -> bool:
    """Whether its stretches can be parts of it, each accept length at least 1. A trainer's mistake must not vote."""
    stretches = score.by_position
    if any(
        stretch.num_positions < 1 or not stretch.num_positions <= tokens
        for stretch in stretches
        for tokens in (stretch.serving_tokens, stretch.candidate_tokens)
    ):
        return False
    sums = [
        (sum(getattr(stretch, name) for stretch in stretches), getattr(score, name))
        for name in ("num_positions", "serving_tokens", "candidate_tokens")
    ]
    return all(part <= whole * (1.0 + 1e-9) for part, whole in sums)


def _positions(pairs: Iterable[Pair]) -> int:
    return sum(pair.num_positions for pair in pairs)


def _named(first_index: int, end: int | None) -> str:
    return f"positions {first_index}-{end - 1}" if end is not None else f"positions from {first_index}"
