"""Collect hidden states or not: TIDE's Algorithm 1, and two rules for its gaps. Pure functions.

A measurement is the accept probability of the first drafted token over one report: unlike the
accept length it does not move when num_steps changes. The first `shift_initial` measurements
initialise both averages; then each becomes m * average + (1 - m) * measurement, and a short average
below the long one by more than epsilon is a shift: collection on. A draft that the gate refuses turns
it off (Algorithm 1, step 6).

Ours: while no draft is served, or the one that is does not pay, there is nothing to measure and
everything to gain, so collection is on; and a promotion that gained less than `headroom_gain` turns it
off as well, because the learning curve has flattened. Slow drift is not seen here.
"""

from dataclasses import dataclass, replace

from tide_daemon.policy.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class CollectionState:
    """Algorithm 1's memory.

    Attributes:
        wanted: what the algorithm says, before the rule about drafts that do not pay.
        shifted: a shift was seen and no round has begun since.
        short, long: the averages; their common initial mean while num_measurements <= shift_initial.
    """

    wanted: bool = True
    shifted: bool = False
    short: float = 0.0
    long: float = 0.0
    num_measurements: int = 0
    reason: str = "day 0: nothing has been learnt yet"


def measure(state: CollectionState, accept_prob: float, settings: PolicySettings) -> CollectionState:
    """The state after one measurement in [0, 1]."""
    count = state.num_measurements + 1
    if count <= settings.shift_initial:
        mean = state.short + (accept_prob - state.short) / count
        return replace(state, short=mean, long=mean, num_measurements=count)
    short = settings.ema_short * state.short + (1.0 - settings.ema_short) * accept_prob
    long = settings.ema_long * state.long + (1.0 - settings.ema_long) * accept_prob
    state = replace(state, short=short, long=long, num_measurements=count)
    if short < long - settings.shift_epsilon and not state.shifted:
        reason = f"shift: accept probability fell to {short:.3f} from {long:.3f} in the long run"
        return replace(state, wanted=True, shifted=True, reason=reason)
    return state


def draft_changed(state: CollectionState) -> CollectionState:
    """The state when another draft is served: its averages begin again."""
    return replace(state, short=0.0, long=0.0, num_measurements=0)


def round_began(state: CollectionState) -> CollectionState:
    """The state when training answers a shift; the averages begin again so that it is seen once."""
    return replace(draft_changed(state), shifted=False) if state.shifted else state


def judged(state: CollectionState, verdict: str, gain: float, settings: PolicySettings) -> CollectionState:
    """The state after the gate's answer for a candidate that gained `gain` accept length."""
    if verdict == "promote" and gain >= settings.headroom_gain:
        return replace(state, wanted=True, reason=f"the last draft gained {gain:.3f} accept length: more is to be had")
    if verdict == "promote":
        return replace(state, wanted=False, reason=f"the last draft gained only {gain:.3f} accept length")
    if verdict == "reject":
        return replace(state, wanted=False, reason="the last candidate was refused")
    return state


def decide(state: CollectionState, *, has_draft: bool, pays: bool) -> tuple[bool, str]:
    """Whether to collect now, and why."""
    if not has_draft:
        return True, "no draft is served yet"
    if not pays:
        return True, "the draft that is served does not pay"
    return state.wanted, state.reason
