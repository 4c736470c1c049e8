"""What was last asked of each server node and trainer, so that only differences become instructions."""

from dataclasses import dataclass

from tide_daemon.policy.events import (
    NO_DRAFT,
    DraftName,
    NodeMemory,
    ServerFound,
    StepsTable,
    TrainerFound,
    TrainerReported,
)
from tide_daemon.policy.rounds import TrainerView
from tide_daemon.policy.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class Asked:
    """What a server node was last asked for; generation 0 when nothing was asked yet."""

    generation: int = 0
    draft_version: int = NO_DRAFT
    draft_digest: str = ""
    steps_table: StepsTable = ()
    collect: bool = False
    sample_rate: float = 0.0
    preferred: tuple[str, ...] = ()
    preferred_rate: float = 0.0

    @classmethod
    def from_found(cls, found: ServerFound) -> "Asked":
        """What an earlier leader had asked for."""
        return cls(
            found.generation,
            found.draft_version,
            found.draft_digest,
            found.steps_table,
            found.collect,
            found.sample_rate,
            found.preferred,
            found.preferred_rate,
        )

    def as_found(self, node: str, at: float, memory: NodeMemory) -> ServerFound:
        """The same for this controller's own next reign."""
        return ServerFound(
            at,
            node,
            self.generation,
            self.draft_version,
            self.draft_digest,
            self.steps_table,
            self.collect,
            self.sample_rate,
            self.preferred,
            self.preferred_rate,
            memory,
        )

    def difference(self, wanted: "Asked", steps_reason: str, collect_reason: str) -> str:
        """In a sentence what `wanted` changes, "" if nothing."""
        parts = []
        if (self.draft_version, self.draft_digest) != (wanted.draft_version, wanted.draft_digest):
            parts.append(f"draft {self.draft_version} to {wanted.draft_version}")
        if self.steps_table != wanted.steps_table:
            parts.append(steps_reason)
        if self._captured() != wanted._captured():
            parts.append(f"collect {wanted.sample_rate:.0%} of requests{wanted._preference()}: {collect_reason}")
        if self.generation == 0 and not parts:
            parts.append("first seen")
        return "; ".join(parts)

    def _captured(self) -> tuple[object, ...]:
        return self.collect, self.sample_rate, self.preferred, self.preferred_rate

    def _preference(self) -> str:
        if not self.preferred:
            return ""
        names = " and ".join(name or "those without a label" for name in self.preferred)
        return f", {self.preferred_rate:.0%} of {names}, which did better before"


@dataclass(slots=True)
class TrainerState:
    """One trainer: its newest report, and what it was last asked for (generation 0: nothing yet).

    Attributes:
        failed_at: when it was first seen failed in the round it reports, None if it was not.
        pool, pool_scoring: as in SetTrainer.
        at_work_since: when it was asked for a round that it has not begun, or first seen in the one that it is in;
            None while it waits for work.
    """

    report: TrainerReported | None = None
    failed_at: float | None = None
    at_work_since: float | None = None
    generation: int = 0
    round: int = 0
    serving_version: int = NO_DRAFT
    serving_digest: str = ""
    pool: tuple[DraftName, ...] = ()
    pool_scoring: int = 0

    @classmethod
    def from_found(cls, found: TrainerFound) -> "TrainerState":
        """What an earlier leader had asked for."""
        return cls(
            generation=found.generation,
            round=found.round,
            serving_version=found.serving_version,
            serving_digest=found.serving_digest,
            pool=found.pool,
            pool_scoring=found.pool_scoring,
        )

    def take(self, report: TrainerReported, at: float) -> None:
        """Take in a report at the controller's time `at`."""
        same_round = self.report is not None and self.report.round == report.round
        if report.state != "failed":
            self.failed_at = None
        elif self.failed_at is None or not same_round:
            self.failed_at = at
        self.report = report
        view = self.view("")
        if view is None or not view.is_at_work:
            self.at_work_since = None
        elif self.at_work_since is None or not same_round:
            self.at_work_since = at

    def is_late(self, at: float, settings: PolicySettings) -> bool:
        """Whether it has taken so long to begin a round, or to end it, that others need not wait for it."""
        if self.at_work_since is None or self.report is None:
            return False
        limit_s = settings.train_begin_s if self.round > self.report.round else settings.train_late_s
        return at - self.at_work_since >= limit_s

    def view(self, name: str) -> TrainerView | None:
        """For rounds.py; None while it was never heard of."""
        report = self.report
        if report is None:
            return None
        return TrainerView(name, report.state, report.round, self.round, report.new_tokens, self.failed_at)
