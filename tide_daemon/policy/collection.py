"""Collect hidden states or not: TIDE's Algorithm 1, and two rules for its gaps. Pure functions.

A measurement is the accept probability of the first drafted token over one report: unlike the
accept length it does not move when num_steps changes. The first `shift_initial` measurements
initialise both averages; then each becomes m * average + (1 - m) * measurement, and a short average
below the long one by more than epsilon is a shift: collection on. A draft that the gate refuses turns
it off (Algorithm 1, step 6).

Ours: while no draft is served, or the one that is does not pay, there is nothing to measure and
everything to gain, so collection is on; and a promotion that gained less than `headroom_gain` turns it
off as well, because the learning curve has flattened. While every trainer is away it is off: capturing costs
the server some percent (ops/bench capture), and the stream keeps what was not learnt from yet.

Slow drift. When traffic changes over hours the long average follows, and the two never part. So a CUSUM
runs beside them, against the level that the draft had when it was new (the mean of its first
`drift_initial` measurements, then frozen):

    fall = max(0, fall + level - measurement - drift_slack)        drift when fall > drift_limit

CUSUM rather than Page-Hinkley, which compares with the mean of everything so far: here the level to hold
is known and the question is whether it was lost, while a running mean sinks with the drift and sees it
later the slower it is. A fall of twice the slack is seen after drift_limit / drift_slack measurements;
noise of deviation s trips it about every exp(2 * drift_slack * drift_limit / s^2) measurements.

Held-out scores. While nothing is speculated there is no live acceptance to measure, but the trainers score the draft
that serves on the newest requests. The mean of its first `score_initial` such accept lengths is the level; when the
running mean of those that follow falls below it by more than `score_max_fall`, a share, that is a shift as well.
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
        level: mean of the first drift_initial measurements, what a slow drift is measured against.
        fall: the CUSUM of what was lost since.
        num_shifts: shifts seen so far, slow ones included.
        pool_tried: earlier drafts were tried for the last one.
        score_level, score: level and running mean of held-out accept lengths, num_scores of them.
    """

    wanted: bool = True
    shifted: bool = False
    short: float = 0.0
    long: float = 0.0
    level: float = 0.0
    fall: float = 0.0
    num_measurements: int = 0
    num_shifts: int = 0
    pool_tried: bool = False
    score_level: float = 0.0
    score: float = 0.0
    num_scores: int = 0
    reason: str = "day 0: nothing has been learnt yet"


def measure(state: CollectionState, accept_prob: float, settings: PolicySettings) -> CollectionState:
    """The state after one measurement in [0, 1]."""
    count = state.num_measurements + 1
    level, fall = state.level, state.fall
    if count <= settings.drift_initial:
        level += (accept_prob - level) / count
    else:
        fall = max(0.0, fall + level - accept_prob - settings.drift_slack)
    if count <= settings.shift_initial:
        short = long = state.short + (accept_prob - state.short) / count
    else:
        short = settings.ema_short * state.short + (1.0 - settings.ema_short) * accept_prob
        long = settings.ema_long * state.long + (1.0 - settings.ema_long) * accept_prob
    state = replace(state, level=level, fall=fall, num_measurements=count, short=short, long=long)
    if count <= settings.shift_initial or state.shifted:
        return state
    if short < long - settings.shift_epsilon:
        reason = f"shift: accept probability fell to {short:.3f} from {long:.3f} in the long run"
        return _shifted(state, reason)
    if fall > settings.drift_limit:
        reason = f"drift: accept probability sank to {long:.3f} from {level:.3f} when the draft was new"
        return _shifted(state, reason)
    return state


def score(state: CollectionState, accept_length: float, settings: PolicySettings) -> CollectionState:
    """The state after a new held-out accept length of the serving draft, at least 1."""
    count = state.num_scores + 1
    if count <= settings.score_initial:
        mean = state.score_level + (accept_length - state.score_level) / count
        return replace(state, score_level=mean, score=mean, num_scores=count)
    mean = settings.ema_short * state.score + (1.0 - settings.ema_short) * accept_length
    state = replace(state, score=mean, num_scores=count)
    if state.shifted or mean >= state.score_level * (1.0 - settings.score_max_fall):
        return state
    return _shifted(state, f"shift: held-out accept length fell to {mean:.2f} from {state.score_level:.2f} at first")


def _shifted(state: CollectionState, reason: str) -> CollectionState:
    return replace(state, wanted=True, shifted=True, num_shifts=state.num_shifts + 1, pool_tried=False, reason=reason)


def draft_changed(state: CollectionState) -> CollectionState:
    """The state when another draft is served: its averages and its levels begin again."""
    return replace(
        state, short=0.0, long=0.0, level=0.0, fall=0.0, num_measurements=0, score_level=0.0, score=0.0, num_scores=0
    )


def answered_by_pool(state: CollectionState, version: int, *, settled: bool) -> CollectionState:
    """The state when an earlier draft is served again: the shift is answered, and learning stands where it stood then.

    What it gained over a draft for other traffic says nothing about what is left to be learnt.
    """
    how = "had learnt this traffic" if settled else "was still learning this traffic"
    return replace(state, shifted=False, wanted=not settled, reason=f"version {version} is back, which {how}")


def reopened(state: CollectionState) -> CollectionState:
    """The state after a rollback to a draft that a shift had outdated: it is still to be answered."""
    return replace(state, wanted=True, shifted=True, reason="the draft that answered the last shift was rolled back")


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


def decide(state: CollectionState, *, has_draft: bool, pays: bool, learnt_from: bool = True) -> tuple[bool, str]:
    """Whether to collect now, and why.

    Args:
        learnt_from: False when every trainer is away.
    """
    if not learnt_from:
        return False, "every trainer is away, so nobody learns from it"
    if not has_draft:
        return True, "no draft is served yet"
    if not pays:
        return True, "the draft that is served does not pay"
    return state.wanted, state.reason
