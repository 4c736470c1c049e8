"""How many drafted tokens the target accepts: survival by position, from counts, with forgetting.

Letters: S_i = P(at least i drafted tokens accepted) is the survival at position i = 1..gamma;
p_i = S_i / S_{i-1} is the conditional accept probability there, S_0 = 1.

    E[l] = 1 + S_1 + ... + S_gamma          tokens a verify step, bonus token included
    E[l] = (1 - a^(gamma+1)) / (1 - a)      the same when every p_i = a: TIDE eq. 2, the fallback

Two windows of exponentially forgotten counts are kept. Estimates come from the long one; when the
short one differs from it by more than `z` standard errors, traffic has changed and the long one is
replaced by the short one. So a steady stream is averaged over a long time, a shift is seen fast.

This file does not know about cost: see speedup.py.
"""

import math
from collections.abc import Sequence

from tide_daemon.policy.events import ChainsCounted

_PRIOR_WEIGHT = 4.0
"""Pseudo-counts that pull an unmeasured position towards the one before it; small against any real evidence."""

_EVIDENCE_AFTER_CHANGE = 30.0
"""Chains that the short window counts for when it replaces the long one."""


def geometric_accept_length(token_accept_prob: float, num_steps: int) -> float:
    """E[l] for a chain of `num_steps` drafts with one accept probability in [0, 1]. Source: TIDE eq. 2."""
    return 1.0 + math.fsum(token_accept_prob**i for i in range(1, num_steps + 1))


def token_accept_prob(accept_length: float, num_steps: int) -> float:
    """The probability whose geometric_accept_length is `accept_length`, clipped to [0, 0.99], by bisection."""
    low, high = 0.0, 0.99
    if num_steps < 1 or accept_length <= 1.0:
        return low
    for _ in range(40):
        middle = (low + high) / 2
        if geometric_accept_length(middle, num_steps) < accept_length:
            low = middle
        else:
            high = middle
    return low


class _Window:
    """Counts of positions reached and accepted, halved every `half_life_s` seconds of speculative steps."""

    __slots__ = ("accepted", "half_life_s", "num_proposals", "reached")

    def __init__(self, half_life_s: float, max_steps: int) -> None:
        self.half_life_s = half_life_s
        self.reached = [0.0] * max_steps
        self.accepted = [0.0] * max_steps
        self.num_proposals = 0.0

    def add(self, num_proposals: int, accepted_at: tuple[int, ...], seconds: float) -> None:
        keep = 0.5 ** (seconds / self.half_life_s)
        self.num_proposals = self.num_proposals * keep + num_proposals
        reached = num_proposals
        # Positions deeper than this chain keep what was seen of them: they have no newer evidence.
        for index, accepted in enumerate(accepted_at[: len(self.reached)]):
            self.reached[index] = self.reached[index] * keep + reached
            self.accepted[index] = self.accepted[index] * keep + accepted
            reached = accepted

    def counted(self) -> ChainsCounted:
        return ChainsCounted(self.num_proposals, tuple(self.reached), tuple(self.accepted))

    def adopt(self, counted: ChainsCounted) -> None:
        """Another number of positions: what is too deep is left out, what is missing was never reached."""
        for own, other in ((self.reached, counted.reached), (self.accepted, counted.accepted)):
            own[: len(other)] = other[: len(own)]
        self.num_proposals = counted.num_proposals

    def copy_from(self, other: "_Window") -> None:
        self.reached[:] = other.reached
        self.accepted[:] = other.accepted
        self.num_proposals = other.num_proposals

    def scale(self, share: float) -> None:
        self.reached[:] = [count * share for count in self.reached]
        self.accepted[:] = [count * share for count in self.accepted]
        self.num_proposals *= share

    def survival(self, num_steps: int, prior: float) -> list[float]:
        conditional, alive, result = prior, 1.0, []
        for index in range(num_steps):
            if index < len(self.reached):
                seen = (self.accepted[index] + _PRIOR_WEIGHT * conditional) / (self.reached[index] + _PRIOR_WEIGHT)
                conditional = seen if seen < 1.0 else 1.0
            alive *= conditional
            result.append(alive)
        return result


class Trial:
    """The first chains of a draft on a node, counted without forgetting and then frozen.

    A rollout compares these with the draft before: what changes later is the traffic, not the draft.

    Args:
        max_proposals: chains after which counting ends.
    """

    def __init__(self, max_steps: int, max_proposals: int, prior: float) -> None:
        self._window = _Window(math.inf, max_steps)
        self._max_proposals = max_proposals
        self._prior = prior
        self.num_seen = 0

    def observe(self, num_proposals: int, accepted_at: tuple[int, ...]) -> None:
        """Add chains, as AcceptanceMonitor.observe does."""
        if num_proposals > 0 and accepted_at and self.num_seen < self._max_proposals:
            self.num_seen += num_proposals
            self._window.add(num_proposals, accepted_at, 0.0)

    def accept_length(self, num_steps: int) -> float:
        """E[l] of a chain of `num_steps` drafts, >= 1."""
        return 1.0 + math.fsum(self._window.survival(num_steps, self._prior))

    def standard_error(self, num_steps: int) -> float:
        """Standard error of accept_length; infinite without evidence."""
        return _standard_error(self._window, self._window.survival(num_steps, self._prior))


class AcceptanceMonitor:
    """Survival of one draft version on one node's traffic. Changed by `observe`, `fade` and `set_prior` only.

    Args:
        max_steps: longest chain that is tracked.
        short_half_life_s, long_half_life_s: seconds of speculative stepping, not of wall time.
        change_z: standard errors between the windows that count as a change of traffic.
        prior: accept probability assumed at every position before there is evidence.

    Attributes:
        num_steps: length of the chains seen last.
        num_changes: how often the short window replaced the long one.
    """

    def __init__(
        self, max_steps: int, short_half_life_s: float, long_half_life_s: float, change_z: float, prior: float
    ) -> None:
        self._short = _Window(short_half_life_s, max_steps)
        self._long = _Window(long_half_life_s, max_steps)
        self._change_z = change_z
        self._max_steps = max_steps
        self._prior = prior
        self.num_steps = 1
        self.num_changes = 0

    def remembered(self) -> tuple[ChainsCounted, ChainsCounted]:
        """The short window and the long one."""
        return self._short.counted(), self._long.counted()

    def adopt(self, num_steps: int, lately: ChainsCounted, long: ChainsCounted) -> None:
        """Start from what was remembered."""
        self.num_steps = num_steps
        self._short.adopt(lately)
        self._long.adopt(long)

    @property
    def prior(self) -> float:
        """Accept probability assumed where there is no evidence."""
        return self._prior

    @property
    def evidence(self) -> float:
        """Chains in the window that estimates come from, after forgetting."""
        return self._long.num_proposals

    def set_prior(self, prior: float) -> None:
        """Replace the probability assumed where there is no evidence (an offline score)."""
        self._prior = prior

    def fade(self, max_evidence: float) -> None:
        """Let old evidence count for at most so many chains, so that a probe judges what is served now."""
        for window in (self._short, self._long):
            if window.num_proposals > max_evidence:
                window.scale(max_evidence / window.num_proposals)

    def observe(self, num_proposals: int, accepted_at: tuple[int, ...], seconds: float) -> None:
        """Add chains of len(accepted_at) drafts: how many were proposed, how many accepted at each position."""
        if num_proposals <= 0 or not accepted_at:
            return
        self.num_steps = len(accepted_at)
        self._short.add(num_proposals, accepted_at, seconds)
        self._long.add(num_proposals, accepted_at, seconds)
        lately = self._short.survival(self.num_steps, self._prior)
        gap = abs(math.fsum(lately) - math.fsum(self._long.survival(self.num_steps, self._prior)))
        if gap > self._change_z * _standard_error(self._short, lately):
            # The short window still holds some of the old traffic: it counts for little from here on.
            self._long.copy_from(self._short)
            self.fade(_EVIDENCE_AFTER_CHANGE)
            self.num_changes += 1

    def survival(self, num_steps: int) -> tuple[float, ...]:
        """S_1..S_num_steps. Positions without evidence continue with the last conditional probability."""
        return tuple(self._long.survival(num_steps, self._prior))

    def prior_survival(self) -> tuple[float, ...]:
        """S_1..S_max_steps by the prior alone, as if nothing had been seen live."""
        return tuple(self._prior**index for index in range(1, self._max_steps + 1))

    def accept_length(self, num_steps: int) -> float:
        """E[l] of a chain of `num_steps` drafts, >= 1."""
        return 1.0 + math.fsum(self._long.survival(num_steps, self._prior))

    def standard_error(self, num_steps: int) -> float:
        """Standard error of accept_length, chains taken as independent; infinite without evidence."""
        return _standard_error(self._long, self._long.survival(num_steps, self._prior))


def _standard_error(window: _Window, survival: Sequence[float]) -> float:
    if window.num_proposals <= 0.0:
        return math.inf
    mean = math.fsum(survival)
    # For a count N with survival S: E[N^2] = sum (2i - 1) S_i. The floor keeps a lucky run from looking certain.
    second = math.fsum((2 * index + 1) * alive for index, alive in enumerate(survival))
    return math.sqrt(max(second - mean * mean, 0.01) / window.num_proposals)
