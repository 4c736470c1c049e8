"""A node's pace from one report: accept length and tokens a second. Pure; for the status page and metrics."""

from tide_daemon.wire.records import NodeReport

_SHOWN_S = 60.0


def accept_length(report: NodeReport) -> float | None:
    """Mean tokens that a request got from a speculative verify step, bonus included; None if none ran.

    A step of the report covers `batch_size` requests, so its tokens are divided by that too.
    """
    speculative = [step for step in report.steps if step.num_steps > 0]
    num_chains = sum(step.num_verifies * step.batch_size for step in speculative)
    return sum(step.num_tokens for step in speculative) / num_chains if num_chains else None


class RecentAcceptLength:
    """The newest accept length, for as long as it says something about now: reports without drafts leave it."""

    def __init__(self) -> None:
        self._length: float | None = None
        self._at = 0.0

    def take(self, report: NodeReport, at: float) -> None:
        """Take in a report; `at` in seconds of any clock that only goes forward."""
        length = accept_length(report)
        if length is not None:
            self._length, self._at = length, at

    def value(self, at: float) -> float | None:
        """None when nothing was drafted for a minute."""
        return self._length if at - self._at <= _SHOWN_S else None


def tokens_per_s(report: NodeReport) -> float:
    """Tokens emitted a second of wall time over the report's interval; 0.0 for the first report."""
    return sum(step.num_tokens for step in report.steps) / report.interval_s if report.interval_s > 0 else 0.0


def steps_at(table: tuple[tuple[int, int], ...], batch_size: int) -> int:
    """Drafted tokens a step that a table of (largest batch size, num_steps) asks for; 0 above its last entry."""
    return next((num_steps for largest, num_steps in table if max(1, batch_size) <= largest), 0)
