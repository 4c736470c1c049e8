"""What is known of one server node: what it runs, its traffic, its acceptance and its costs. No decisions here.

How many steps follow from it is in speculation.py; which draft the node shall run is in rollout.py.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tide_daemon.policy.acceptance import AcceptanceMonitor, Trial
from tide_daemon.policy.events import NO_DRAFT, DraftFailed, NodeMemory, ServerReported, StepCount
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.speedup import CostModel
from tide_daemon.policy.steps import batch_edges, edge_of

_BUSY_HALF_LIFE_S = 10.0
_IDLE_BUSY_S = 0.01
"""Forgotten busy seconds below which a batch size counts as idle."""
_BASELINE_MAX_AGE_S = 120.0
"""What was seen of the draft before so long ago says nothing about today's traffic."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Live accept length of the draft that ran before, for the rollout's comparison. `at`: last evidence."""

    accept_length: float
    num_steps: int
    evidence: float
    at: float


@dataclass(frozen=True, slots=True)
class OfflineScore:
    """Held-out accept length of a draft on chains of `num_steps`, and the accept probability of eq. 2 that gives it."""

    accept_length: float
    accept_prob: float
    num_steps: int


class NodeState:
    """One server node. Changed by `report`, `score_offline`, `compare_with` and `adopt` only, all called by the
    controller.

    Attributes:
        running_since: when it first reported what it runs; running_since_busy_s the same by its busy clock.
        busy_s: seconds of all steps so far: the clock of probing.
        live_at: when the running draft was last seen at work; live_at_busy_s the same by the busy clock.
        down_since: when its engine was first reported down, -inf if it was so from the start; None while it is not.
        draft_failed: the draft that it cannot fetch or load, by its newest report.
        num_implausible: counters left out because they cannot be true.
    """

    def __init__(self, name: str, settings: PolicySettings) -> None:
        self.name = name
        self.settings = settings
        self.heard_at = -math.inf
        self.engine = "starting"
        self.down_since: float | None = None
        self.running_version = NO_DRAFT
        self.running_digest = ""
        self.running_since = -math.inf
        self.running_since_busy_s = 0.0
        self.live_at = -math.inf
        self.live_at_busy_s = -math.inf
        self.applied_generation = 0
        self.draft_failed: DraftFailed | None = None
        self.num_implausible = 0
        self.busy_s = 0.0
        self.offline_accept_length = 0.0
        self.baseline: Baseline | None = None
        self.cost = CostModel(settings.prior_draft_cost, settings.prior_token_cost)
        self.edges = batch_edges(settings.max_batch_size)
        self._busy: dict[int, float] = {}  # only edges that ever had traffic
        self._busiest: int | None = None
        self._ratios: dict[tuple[int, bool], dict[int, float]] = {}  # what was asked for, until more is known
        self._plain_seen_at_busy_s: dict[int, float] = {}
        self.acceptance, self.trial = self._new_acceptance()

    def report(self, event: ServerReported) -> tuple[tuple[int, StepCount], ...]:
        """Take in one report; returns its plausible counters, each with its batch edge."""
        if event.engine != "down":
            self.down_since = None
        elif self.down_since is None:
            self.down_since = -math.inf if self.heard_at == -math.inf else event.at
        self.heard_at, self.engine, self.applied_generation = event.at, event.engine, event.applied_generation
        self.draft_failed = event.draft_failed
        another = (event.running_version, event.running_digest) != (self.running_version, self.running_digest)
        if another:
            self._draft_changed(event)
        keep = 0.5 ** (event.interval_s / _BUSY_HALF_LIFE_S)
        for edge in self._busy:
            self._busy[edge] *= keep
        counted = []
        for step in event.steps:
            edge_or_none = edge_of(step.batch_size, self.edges)
            if not step.is_plausible:
                self.num_implausible += step.num_verifies > 0
            elif edge_or_none is not None and step.num_steps <= self.settings.max_steps:
                counted.append((edge_or_none, step))
        by_edge = (step if step.batch_size == edge else replace(step, batch_size=edge) for edge, step in counted)
        self.cost.observe(event.at, tuple(by_edge))
        for edge, step in counted:
            self.busy_s += step.step_s
            self._busy[edge] = self._busy.get(edge, 0.0) + step.step_s
            if step.num_steps == 0:
                self._plain_seen_at_busy_s[edge] = self.busy_s
            # The report in which a draft first shows still counts steps of the one before.
            elif event.running_version != NO_DRAFT and not another:
                self.acceptance.observe(step.num_proposals, step.accepted_at, step.step_s)
                self.trial.observe(step.num_proposals, step.accepted_at)
                self.live_at, self.live_at_busy_s = event.at, self.busy_s
        busiest = max(self._busy, key=lambda edge: (self._busy[edge], -edge), default=None)
        self._busiest = busiest if busiest is not None and self.is_busy(busiest) else None
        self._ratios.clear()
        return tuple(counted)

    def adopt(self, memory: NodeMemory) -> None:
        """Start from what this controller knew in its reign before; what a rollout compares is not part of it."""
        self.heard_at, self.engine = memory.heard_at, memory.engine
        self.running_version, self.running_digest = memory.running_version, memory.running_digest
        self.running_since = memory.running_since
        self.busy_s = self.running_since_busy_s = memory.busy_s
        self.cost.adopt(memory.timed)
        self._plain_seen_at_busy_s = dict(memory.plain_seen_at)
        self.acceptance.adopt(memory.num_steps, memory.lately, memory.long)

    def plain_seen_at(self) -> tuple[tuple[int, float], ...]:
        """(batch edge, when plain decoding was last timed there by the busy clock), ascending."""
        return tuple(sorted(self._plain_seen_at_busy_s.items()))

    def score_offline(self, score: OfflineScore | None) -> None:
        """Take the held-out score of the running draft, if any, as the guess where live evidence is missing."""
        if score is not None:
            self.offline_accept_length = score.accept_length
            self.acceptance.set_prior(score.accept_prob)
            self._ratios.clear()

    def compare_with(self, accept_length: float, num_steps: int) -> None:
        """What the draft before accepted here, as an earlier leader saw it. What this one saw itself stands."""
        if self.comparable is None:
            self.baseline = Baseline(accept_length, num_steps, self.settings.min_proposals, self.running_since)

    @property
    def comparable(self) -> Baseline | None:
        """Live figures of the draft before, if they are known well and were not too old when it was replaced."""
        known = self.baseline
        if known is None or known.evidence < self.settings.min_proposals:
            return None
        return known if self.running_since - known.at <= _BASELINE_MAX_AGE_S else None

    def shown_now(self, at: float) -> tuple[float, int]:
        """(live accept length, chain length) of the running draft, (0.0, 0) if not known well or too old at `at`."""
        if not self.has_evidence or at - self.live_at > _BASELINE_MAX_AGE_S:
            return 0.0, 0
        return self.acceptance.accept_length(self.acceptance.num_steps), self.acceptance.num_steps

    @property
    def can_speculate(self) -> bool:
        """Whether the engine is up and holds a draft."""
        return self.engine == "ready" and self.running_version != NO_DRAFT

    @property
    def has_evidence(self) -> bool:
        """Whether enough was seen of the running draft to decide by it."""
        return self.acceptance.evidence >= self.settings.min_proposals

    @property
    def recent_busy_s(self) -> float:
        """Busy seconds of late, all batch sizes, exponentially forgotten."""
        return math.fsum(self._busy.values())

    def is_busy(self, edge: int) -> bool:
        """Whether there was traffic at this batch edge lately."""
        return self._busy.get(edge, 0.0) > _IDLE_BUSY_S

    def busy_edges(self) -> list[int]:
        """Batch edges with traffic lately, ascending."""
        return sorted(edge for edge, busy_s in self._busy.items() if busy_s > _IDLE_BUSY_S)

    def busiest(self) -> int | None:
        """The batch edge with most recent busy time, None when the node has been idle."""
        return self._busiest

    def plain_age_s(self, edge: int) -> float | None:
        """Busy seconds since plain decoding was last timed at this batch edge, None if it never was."""
        seen = self._plain_seen_at_busy_s.get(edge)
        return None if seen is None else self.busy_s - seen

    def ratios(self, edge: int, *, offline: bool = False) -> Mapping[int, float]:
        """Predicted tokens/s over plain by num_steps >= 1; empty while no step was ever timed.

        Args:
            offline: by the held-out score alone, without what was seen live.
        """
        known = self._ratios.get((edge, offline))
        if known is None:
            s = self.acceptance.prior_survival() if offline else self.acceptance.survival(self.settings.max_steps)
            known = self.cost.ratios(edge, [1.0 + reached for reached in itertools.accumulate(s)])
            self._ratios[edge, offline] = known
        return known

    def _new_acceptance(self) -> tuple[AcceptanceMonitor, Trial]:
        s = self.settings
        monitor = AcceptanceMonitor(
            s.max_steps, s.short_half_life_s, s.long_half_life_s, s.change_z, s.prior_accept_prob
        )
        return monitor, Trial(s.max_steps, s.watch_min_steps, s.prior_accept_prob)

    def _draft_changed(self, event: ServerReported) -> None:
        """Another draft runs: what was seen becomes the baseline, and the new one has to show itself."""
        if self.acceptance.evidence > 0:
            num_steps = self.acceptance.num_steps
            length = self.acceptance.accept_length(num_steps)
            self.baseline = Baseline(length, num_steps, self.acceptance.evidence, self.live_at)
        self.running_version, self.running_digest = event.running_version, event.running_digest
        self.running_since, self.running_since_busy_s, self.live_at = event.at, self.busy_s, -math.inf
        self.live_at_busy_s = -math.inf
        self.offline_accept_length = 0.0
        self.acceptance, self.trial = self._new_acceptance()
