"""When to train, and which trainer. Pure: one function over what the trainers said."""

from collections.abc import Iterable
from dataclasses import dataclass

from tide_daemon.policy.events import NO_DRAFT
from tide_daemon.policy.settings import PolicySettings

_BUSY = ("training", "scoring", "publishing")


@dataclass(frozen=True, slots=True)
class TrainerView:
    """A trainer that was heard of lately.

    Attributes:
        state: as reported.
        round, desired_round: the one it began last, and the one it was last asked for.
        new_tokens: response tokens stored since its last round began.
        failed_at: when it was first seen failed in this round, None if it was not.
    """

    name: str
    state: str
    round: int
    desired_round: int
    new_tokens: int
    failed_at: float | None

    @property
    def is_at_work(self) -> bool:
        """Whether it is in a round, or was asked for one that it has not begun."""
        return self.state in _BUSY or self.desired_round > self.round


@dataclass(frozen=True, slots=True)
class RoundWanted:
    """Ask `trainer` for this round."""

    trainer: str
    round: int
    reason: str


def idle_trainer(trainers: Iterable[TrainerView], at: float, settings: PolicySettings) -> TrainerView | None:
    """The one to ask for something now: most new tokens, then the first by name; None while any of them is busy."""
    views = sorted(trainers, key=lambda view: view.name)
    if any(view.is_at_work for view in views):
        return None
    idle = [view for view in views if view.failed_at is None or at - view.failed_at >= settings.train_retry_s]
    return max(idle, key=lambda view: view.new_tokens, default=None)


def next_round(
    trainers: Iterable[TrainerView], at: float, serving_version: int, shifted: bool, settings: PolicySettings
) -> RoundWanted | None:
    """The round to begin now, None to wait.

    One round at a time: a second one would start from the same draft, and the gate could take only
    one of the two. Trainers that are lost, or late with what they were asked for, are left out by the caller:
    nobody waits for them.
    """
    best = idle_trainer(trainers, at, settings)
    if best is None:
        return None
    if serving_version == NO_DRAFT:
        wanted, why = settings.train_first_tokens, "there is no draft yet"
    elif shifted:
        wanted, why = settings.train_shift_tokens, "traffic has shifted"
    else:
        wanted, why = settings.train_min_tokens, "enough new data"
    wanted = min(wanted, settings.train_min_tokens)
    if best.new_tokens < wanted:
        return None
    reason = f"{why}: {best.new_tokens} new response tokens, {wanted} wanted"
    return RoundWanted(best.name, max(best.round, best.desired_round) + 1, reason)
