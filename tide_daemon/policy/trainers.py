"""The trainers that were heard of: what each said and was asked for, and which of them begins a round.

When a round pays is in rounds.py; this file keeps the state and turns answers into instructions.
"""

import math

from tide_daemon.policy.asked import TrainerState
from tide_daemon.policy.events import DraftName, PoolScored, TrainerFound, TrainerReported
from tide_daemon.policy.instructions import Instruction, SetTrainer
from tide_daemon.policy.rounds import RoundWanted, TrainerView, idle_trainer, next_round
from tide_daemon.policy.settings import PolicySettings

MAX_TRAINERS_ASKED = 256
"""Trainers that one event asks anew at most, so that its journal entry fits; the others follow with the next Tick or
trainer's report."""
_MAX_POOL_REQUESTS = 128
"""As many as an answer may carry for each draft, see wire/kinds.py."""


class Trainers:
    """All trainers of a model. Changed by `found`, `take`, `forget` and `ask` only, all called by the controller."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self.by_name: dict[str, TrainerState] = {}
        self._heard_at = -math.inf

    def found(self, event: TrainerFound) -> None:
        """What an earlier leader had asked of one; what is known already stays."""
        self.by_name.setdefault(event.trainer, TrainerState.from_found(event))

    def take(self, event: TrainerReported, at: float) -> None:
        """Take in a report at the controller's time `at`."""
        self._heard_at = at
        self.by_name.setdefault(event.trainer, TrainerState()).take(event, at)

    def forget(self, at: float) -> None:
        """Drop those that were silent for very long."""
        for name, trainer in list(self.by_name.items()):
            if trainer.report is not None and at - trainer.report.at > self._settings.forget_after_s:
                del self.by_name[name]

    def is_alive(self, name: str, at: float) -> bool:
        """Whether it was heard of lately."""
        trainer = self.by_name.get(name)
        report = None if trainer is None else trainer.report
        return report is not None and at - report.at <= self._settings.lost_after_s

    def all_away(self, at: float, since: float) -> bool:
        """Whether there were some and all have been silent for too long, `since` being when reports began to come."""
        were_some = bool(self.by_name) or self._heard_at > -math.inf
        return were_some and at - max(self._heard_at, since) > self._settings.lost_after_s

    def idle(self, at: float) -> str | None:
        """Name of the trainer to ask for something now, None while any of them is busy."""
        view = idle_trainer(self._views(at), at, self._settings)
        return None if view is None else view.name

    def next_round(self, at: float, serving_version: int, *, shifted: bool) -> RoundWanted | None:
        """The round to begin now, None to wait."""
        return next_round(self._views(at), at, serving_version, shifted, self._settings)

    def pool_answer(self, name: str) -> tuple[PoolScored, ...] | None:
        """A trainer's answer to the pool scoring that it was asked for, None while there is none."""
        trainer = self.by_name.get(name)
        report = None if trainer is None else trainer.report
        if trainer is None or report is None or trainer.pool_scoring == 0:
            return None
        return report.pool if report.pool_scoring == trainer.pool_scoring else None

    def ask(
        self,
        at: float,
        served: DraftName,
        wanted: RoundWanted | None,
        cause: str,
        pool: tuple[DraftName, ...] = (),
        pool_scorer: str = "",
        pool_reason: str = "",
    ) -> list[Instruction]:
        """Tell each that is there which draft is served, and one of them to begin the round that is wanted.

        Args:
            pool: earlier drafts to keep.
            pool_scorer: the trainer that is to score them, "" for none; `pool_reason` says why, or why no longer.
        """
        instructions: list[Instruction] = []
        for name in sorted(self.by_name):
            trainer = self.by_name[name]
            report = trainer.report
            if report is None or not self.is_alive(name, at):
                continue
            begins = wanted is not None and wanted.trainer == name
            # Numbered by the generation that first asks: no two scorings of a trainer have the same number.
            scoring = (trainer.pool_scoring or trainer.generation + 1) if name == pool_scorer else 0
            asked = (trainer.serving_version, trainer.serving_digest, trainer.pool, trainer.pool_scoring)
            if trainer.generation > 0 and not begins and asked == (*served, pool, scoring):
                continue
            if len(instructions) >= MAX_TRAINERS_ASKED and not begins:
                continue
            reason = f"version {served[0]} is served"
            if wanted is not None and begins:
                trainer.round, reason = wanted.round, f"round {wanted.round}: {wanted.reason}"
                trainer.at_work_since = at
            elif trainer.generation == 0:
                trainer.round = report.round
            elif scoring != trainer.pool_scoring:
                reason = f"{'score earlier drafts' if scoring else 'scoring of earlier drafts over'}: {pool_reason}"
            trainer.generation += 1
            trainer.serving_version, trainer.serving_digest = served
            trainer.pool, trainer.pool_scoring = pool, scoring
            requests = min(_MAX_POOL_REQUESTS, 2 * self._settings.gate_min_requests) if scoring else 0
            numbers = {"new_tokens": float(report.new_tokens)}
            instructions.append(
                SetTrainer(
                    name,
                    trainer.generation,
                    trainer.round,
                    *served,
                    cause,
                    reason,
                    numbers,
                    pool,
                    scoring,
                    requests,
                )
            )
        return instructions

    def _views(self, at: float) -> list[TrainerView]:
        """Those that rounds are planned with: heard of lately, and not late with the round they were asked for."""
        there = [name for name in sorted(self.by_name) if self.is_alive(name, at)]
        views = [self.by_name[name].view(name) for name in there if not self.by_name[name].is_late(at, self._settings)]
        return [view for view in views if view is not None]
