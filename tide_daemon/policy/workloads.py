"""What is known of each workload under the draft that serves, from the trainers' held-out scores. Pure.

A workload is what a request's label says, "" without one. For each: its share of what was scored lately, the accept
length of the serving draft there (both running means over scores), and how often it was scored. Trainers score the
newest requests, so shares follow the traffic.

Bounded: labels are the clients' choice. Beyond MAX_WORKLOADS the one with the smallest share goes, and the first by
name of equals; what it had counts nowhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tide_daemon.policy.events import ShadowScored

MAX_WORKLOADS = 32
_MEMORY = 0.8
"""What a new score leaves of the mean before it, as Algorithm 1's short average does."""

_MIN_SCORES = 3
"""Scores before a workload's figure says anything."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One workload under the serving draft.

    Attributes:
        share: of the chain starts that were scored lately, 0..1.
        accept_length: of the serving draft, held-out, at least 1.
        num_scores: scores it was part of.
        num_requests, num_positions: of all of them.
    """

    share: float = 0.0
    accept_length: float = 1.0
    num_scores: int = 0
    num_requests: int = 0
    num_positions: int = 0


class Workloads:
    """Figures by workload. Changed by `observe` only; they begin again with another serving draft."""

    def __init__(self) -> None:
        self.version = 0
        self.figures: dict[str, Figure] = {}

    def observe(self, version: int, shadow: tuple[ShadowScored, ...]) -> None:
        """Take in a new score of the draft that serves, `version`."""
        if version != self.version:
            self.version, self.figures = version, {}
        usable = {item.workload: item for item in shadow if 0 < item.num_positions <= item.num_tokens}
        total = sum(item.num_positions for item in usable.values())
        if total == 0:
            return
        first = not self.figures
        names = sorted({*self.figures, *usable})
        figures = {name: _after(self.figures.get(name, Figure()), usable.get(name), total, first) for name in names}
        kept = sorted(names, key=lambda name: (-figures[name].share, name))[:MAX_WORKLOADS]
        self.figures = {name: figures[name] for name in sorted(kept)}

    def lengths_of(self, scored: tuple[tuple[str, float, float], ...]) -> tuple[tuple[str, float], ...]:
        """Accept lengths of another draft by workload, on the same footing as the figures.

        A ratio of two drafts on the same requests is known much better than either: it is applied to the figure.

        Args:
            scored: (workload, accept length of the serving draft, of the other one) on the same requests.
        """
        found = []
        for workload, serving, other in scored:
            figure = self.figures.get(workload)
            found.append((workload, other if figure is None else figure.accept_length * other / serving))
        return tuple(found)

    def expected_gain(self, lengths: Mapping[str, float]) -> tuple[float, float]:
        """What a draft with these accept lengths by workload gains on traffic as it is.

        Returns:
            (accept length over that of the serving draft, share of the traffic that both are known on); (1.0, 0.0)
            when that is none.
        """
        known = [
            (figure, lengths[name])
            for name, figure in self.figures.items()
            if name in lengths and figure.num_scores >= _MIN_SCORES
        ]
        share = sum(figure.share for figure, _ in known)
        if share <= 0.0:
            return 1.0, 0.0
        serving = sum(figure.share * figure.accept_length for figure, _ in known)
        return sum(figure.share * length for figure, length in known) / serving, share


def _after(before: Figure, item: ShadowScored | None, total: int, first: bool) -> Figure:
    memory = 0.0 if first else _MEMORY
    share = memory * before.share + (1.0 - memory) * (0 if item is None else item.num_positions) / total
    if item is None:
        return Figure(share, before.accept_length, before.num_scores, before.num_requests, before.num_positions)
    length = item.num_tokens / item.num_positions
    weight = 0.0 if before.num_scores == 0 else _MEMORY
    return Figure(
        share,
        weight * before.accept_length + (1.0 - weight) * length,
        before.num_scores + 1,
        before.num_requests + item.num_requests,
        before.num_positions + item.num_positions,
    )
