"""What speculation gains on one node: tokens a second, and what plain decoding would give for the same tokens.

Both by the cost model (speedup.py), so that a stall hits both alike. Over cells (b, g) with V verify steps that
emitted N tokens, T(b, g) seconds a step:

    as it is   sum N / sum V * T(b, g)
    plain      sum N / sum N / b * T(b, 0)       a plain step emits b tokens

The ratio is eq. 5's speed-up, with tokens that were seen in place of tokens that are expected. It is 1 where nothing
was drafted. Seconds of steps only: a node that waits for requests is not slower for that.

The one place that computes it, for the status page and for `tide-daemon status`; decisions use CostModel.ratios.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tide_daemon.policy.events import StepCount
from tide_daemon.policy.speedup import CostModel


@dataclass(frozen=True, slots=True)
class PlainPace:
    """Tokens a second of step time, all requests of the node together. Both are above 0."""

    tokens_per_s: float
    plain_tokens_per_s: float

    @property
    def of_plain(self) -> float:
        """How many times as fast as plain decoding; below 1 speculation costs time."""
        return self.tokens_per_s / self.plain_tokens_per_s


def plain_pace(cost: CostModel, counted: Iterable[tuple[int, StepCount]]) -> PlainPace | None:
    """The pace over these counters, None where they hold no token or the model knows no cost yet.

    Args:
        cost: of the node, with the counters taken in.
        counted: plausible counters, each with its batch edge, as NodeState.report returns them.
    """
    num_tokens, spent_s, plain_s = 0, 0.0, 0.0
    for edge, step in counted:
        here, plain = cost.step_s(edge, step.num_steps), cost.step_s(edge, 0)
        if here is None or plain is None:
            continue
        num_tokens += step.num_tokens
        spent_s += step.num_verifies * here
        plain_s += step.num_tokens / step.batch_size * plain
    if num_tokens == 0 or spent_s <= 0.0 or plain_s <= 0.0:
        return None
    return PlainPace(num_tokens / spent_s, num_tokens / plain_s)
