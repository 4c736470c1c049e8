"""Tries of the pool: earlier drafts scored on what is served now, before anything is trained.

A try begins once for each shift, and when held-out scores by workload promise that an earlier draft does better on
traffic as it is (a workload that comes back need not lower the acceptance, if it is an easier one), at most once in
pool_interval_s. An idle trainer is asked to score every draft of the pool and the serving one on the same newest
requests, those that were finished after it was asked. Its answer is judged draft by draft, by the gate and against the
draft that serves; of those that pass the one that gains most goes to a canary, as any candidate does.
Until then no round begins. The price is bounded: one scoring a try, dropped after pool_deadline_s, and none when the
pool is empty or no trainer is idle.

Several drafts are several chances to win by luck: with n of them each must pass at confidence 1 - (1 - c) / n.
"""

import math
from dataclasses import dataclass, replace

from tide_daemon.policy import gate, pool
from tide_daemon.policy.collection import CollectionState
from tide_daemon.policy.events import (
    NO_DRAFT,
    CandidatePublished,
    FleetState,
    PastDraft,
    PoolScored,
    TrainerFound,
)
from tide_daemon.policy.gate import Verdict
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.trainers import Trainers
from tide_daemon.policy.workloads import Workloads

_MOST_CONFIDENT = 0.9999
_MIN_KNOWN_SHARE = 0.5
"""Share of the traffic that a promise has to be about."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """A scoring of the pool that was asked for: of whom, against which serving draft, when."""

    trainer: str
    serving_version: int
    since: float


@dataclass(frozen=True, slots=True)
class PoolVerdict:
    """The gate's answer for a draft of the pool, and the scores that it rests on."""

    past: PastDraft
    verdict: Verdict
    candidate: CandidatePublished


class PoolTry:
    """Whether the pool is being tried. Changed by `adopt`, `plan` and `end` only, all called by the controller.

    Attributes:
        under_way: the scoring that is waited for, None without one.
        reason: why it was asked for, or how the last one ended.
    """

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._tried_at = -math.inf
        self.under_way: Scoring | None = None
        self.reason = ""

    def adopt(self, found: TrainerFound) -> None:
        """Go on with what an earlier leader had asked for; its time begins again."""
        if found.pool_scoring:
            self.under_way = Scoring(found.trainer, found.serving_version, found.at)
            self.reason = "an earlier leader had asked for it"

    def plan(
        self,
        at: float,
        fleet: FleetState,
        seen: CollectionState,
        workloads: Workloads,
        trainers: Trainers,
        *,
        free: bool,
    ) -> bool:
        """Begin a try when there is a reason for one, and drop one that leads to nothing.

        Args:
            free: nothing is being rolled out or waits for the gate, so that a draft that passes could be.

        Returns:
            Whether the last shift counts as tried from now on.
        """
        if self.under_way is not None:
            self._drop(at, fleet, self.under_way, trainers)
            return False
        if fleet.serving_version == NO_DRAFT or not fleet.pool:
            return seen.shifted
        if not free:
            return False
        if seen.shifted and not seen.pool_tried:
            reason = f"traffic has shifted, and {len(fleet.pool)} earlier draft(s) may know it"
        elif at - self._tried_at >= self._settings.pool_interval_s:
            reason = promise(fleet, workloads, self._settings)
        else:
            return False
        trainer = trainers.idle(at) if reason else None
        if trainer is not None:
            self._tried_at = at
            self.under_way, self.reason = Scoring(trainer, fleet.serving_version, at), reason
        return trainer is not None

    def end(self, reason: str) -> None:
        """Nothing is waited for any more."""
        self.under_way, self.reason = None, reason

    def answer(self, trainers: Trainers) -> tuple[PoolScored, ...] | None:
        """What the trainer answered, None while it has not."""
        return None if self.under_way is None else trainers.pool_answer(self.under_way.trainer)

    def _drop(self, at: float, fleet: FleetState, scoring: Scoring, trainers: Trainers) -> None:
        if fleet.serving_version != scoring.serving_version:
            self.end(f"version {fleet.serving_version} is served meanwhile")
        # A new leader has not heard of it yet.
        elif at - scoring.since > self._settings.lost_after_s and not trainers.is_alive(scoring.trainer, at):
            self.end(f"{scoring.trainer} was lost")
        elif at - scoring.since >= self._settings.pool_deadline_s:
            self.end(f"the earlier drafts were not scored within {self._settings.pool_deadline_s:g} s")


def promise(fleet: FleetState, workloads: Workloads, settings: PolicySettings) -> str:
    """Which earlier draft promises most on traffic as it is, in words; "" when none promises enough."""
    if workloads.version != fleet.serving_version:
        return ""
    known = [(workloads.expected_gain(dict(past.lengths)), past.version) for past in fleet.pool]
    enough = [(ratio, version) for (ratio, share), version in known if share >= _MIN_KNOWN_SHARE]
    ratio, version = max(enough, default=(0.0, NO_DRAFT))
    if ratio < 1.0 + settings.pool_promise:
        return ""
    return (
        f"version {version} had {ratio:.2f} of the accept length that version {fleet.serving_version} has on this mix"
    )


def judge_pool(
    scored: tuple[PoolScored, ...], fleet: FleetState, at: float, trainer: str, settings: PolicySettings
) -> list[PoolVerdict]:
    """The gate's answers for the drafts of the pool that were scored, by version."""
    known = {item.version: item for item in scored if item.scores}
    confidence = 1.0 - (1.0 - settings.gate_confidence) / max(1, len(known))
    strict = replace(settings, gate_confidence=min(_MOST_CONFIDENT, confidence))
    verdicts = []
    for version in sorted(known):
        past, item = pool.find(fleet, version), known[version]
        if past is not None:
            candidate = CandidatePublished(
                at, version, past.digest, item.serving_version, trainer, 0, item.num_steps, item.scores
            )
            verdicts.append(PoolVerdict(past, gate.judge(candidate, fleet.serving_version, strict), candidate))
    return verdicts


def best_of(verdicts: list[PoolVerdict]) -> PoolVerdict | None:
    """The one to promote, None when none passed."""
    passed = [each for each in verdicts if each.verdict.verdict == gate.PROMOTE]
    return max(passed, key=lambda each: (each.verdict.gain, each.past.version)) if passed else None


def not_held(scored: tuple[PoolScored, ...]) -> list[int]:
    """Versions that the trainer could not get while it could get others: they are gone from the bus."""
    missing = [item.version for item in scored if not item.scores]
    return missing if len(missing) < len(scored) else []
