"""What is known of each workload under the draft that serves: held-out scores, and live acceptance. Pure.

A workload is what a request's label says, "" without one. For each: its share of what was scored lately, the accept
length of the serving draft there (both running means over scores), and how often it was scored. Trainers score the
newest requests, so shares follow the traffic.

A workload is doing badly when its accept length is surely lower than a draft that serves or served is known to have had
there (10% by default, and until half of that is made good): while collection is off, it alone is captured in full.

Bounded: labels are the clients' choice. Beyond MAX_WORKLOADS the one with the smallest share goes, of equals the
one with the fewest chains; what it had counts nowhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tide_daemon.policy.events import ShadowScored, WorkloadServed
from tide_daemon.policy.settings import PolicySettings

MAX_WORKLOADS = 32
MAX_WEAK = 8
"""Workloads that are preferred at a time, those with the largest shares; see wire/kinds.py."""
_MEMORY = 0.8
"""What a new score leaves of the mean before it, as Algorithm 1's short average does."""

_LIVE_CHAINS = 2000.0
"""Chains that live figures remember."""
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
        live_chains, live_tokens: drafted chains of captured requests lately, and what they gave; forgotten slowly.
    """

    share: float = 0.0
    accept_length: float = 1.0
    num_scores: int = 0
    num_requests: int = 0
    num_positions: int = 0
    live_chains: float = 0.0
    live_tokens: float = 0.0

    @property
    def live_accept_length(self) -> float | None:
        """Live accept length of whatever chains were drafted, None without any."""
        return self.live_tokens / self.live_chains if self.live_chains > 0.0 else None


class Workloads:
    """Figures by workload. Changed by `observe` and `served`; they begin again with another serving draft."""

    def __init__(self) -> None:
        self.version = 0
        self.figures: dict[str, Figure] = {}

    def observe(self, version: int, shadow: tuple[ShadowScored, ...]) -> None:
        """Take in a new score of the draft that serves, `version`."""
        self._begin(version)
        usable = {item.workload: item for item in shadow if 0 < item.num_positions <= item.num_tokens}
        total = sum(item.num_positions for item in usable.values())
        if total == 0:
            return
        first = all(figure.num_scores == 0 for figure in self.figures.values())
        names = sorted({*self.figures, *usable})
        figures = {name: _after(self.figures.get(name, Figure()), usable.get(name), total, first) for name in names}
        self._keep(figures)

    def served(self, version: int, items: tuple[WorkloadServed, ...]) -> None:
        """Take in what a node served with `version`."""
        self._begin(version)
        figures = dict(self.figures)
        for item in items:
            before = figures.get(item.workload, Figure())
            if 0 < item.num_chains <= item.num_tokens:
                keep = min(1.0, _LIVE_CHAINS / (before.live_chains + item.num_chains))
                figures[item.workload] = replace(
                    before,
                    live_chains=keep * (before.live_chains + item.num_chains),
                    live_tokens=keep * (before.live_tokens + item.num_tokens),
                )
        if len(figures) > len(self.figures):
            self._keep(figures)
        else:
            self.figures = figures

    def _begin(self, version: int) -> None:
        if version != self.version:
            self.version, self.figures = version, {}

    def _keep(self, figures: Mapping[str, Figure]) -> None:
        def worth(name: str) -> tuple[float, float, str]:
            return -figures[name].share, -figures[name].live_chains, name

        self.figures = {name: figures[name] for name in sorted(sorted(figures, key=worth)[:MAX_WORKLOADS])}

    def weak(self, best: Mapping[str, float], before: tuple[str, ...], settings: PolicySettings) -> tuple[str, ...]:
        """Workloads that are doing badly, by name.

        Args:
            best: accept length that is known to be possible, by workload.
            before: those that were doing badly until now.
        """
        found = []
        for name, figure in self.figures.items():
            fall = settings.workload_max_fall / (2.0 if name in before else 1.0)
            if figure.num_scores >= _MIN_SCORES and figure.accept_length < (1.0 - fall) * best.get(name, 0.0):
                found.append((-figure.share, name))
        return tuple(sorted(name for _, name in sorted(found)[:MAX_WEAK]))

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
        return replace(before, share=share)
    length = item.num_tokens / item.num_positions
    weight = 0.0 if before.num_scores == 0 else _MEMORY
    return replace(
        before,
        share=share,
        accept_length=weight * before.accept_length + (1.0 - weight) * length,
        num_scores=before.num_scores + 1,
        num_requests=before.num_requests + item.num_requests,
        num_positions=before.num_positions + item.num_positions,
    )
