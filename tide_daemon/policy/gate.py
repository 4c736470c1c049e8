"""Candidate against serving draft, paired by held-out request, with a one-sided confidence bound. Pure.

For request j with n_j chain starts let d_j = candidate tokens - serving tokens. The gain in accept
length is the ratio D = sum d_j / sum n_j. Requests are drawn independently, chain starts within one
are not, so the error is that of a ratio over requests (linearised, as for cluster samples):

    se^2 = m / (m - 1) * sum (d_j - D n_j)^2 / (sum n_j)^2,      m requests

and the bounds are D -+ t * se with Student's t of m - 1 degrees of freedom. Nothing is drawn at
random, so a replay gives the same verdict. Day 0: no draft has accept length 1 by definition.

A gain on the whole may be a loss for some. The same is computed for each workload that has enough held-out
requests and chain starts by itself, and with g = gate_max_loss, a share of what the serving draft has there:

    D + t * se < -g    surely a greater loss than that: reject
    D < -g             it looks like one: need more data

A workload with less data has no say: it would forbid every candidate by chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from tide_daemon.policy.events import NO_DRAFT, CandidatePublished, RequestScored
from tide_daemon.policy.settings import PolicySettings

PROMOTE = "promote"
REJECT = "reject"
NEED_MORE_DATA = "need_more_data"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer.

    Attributes:
        verdict: PROMOTE, REJECT or NEED_MORE_DATA.
        accept_length: of the candidate, held-out.
        gain: mean gain over the serving draft.
        numbers: all of it for the journal.
    """

    verdict: str
    reason: str
    accept_length: float
    gain: float
    numbers: dict[str, float]


def judge(candidate: CandidatePublished, serving_version: int, settings: PolicySettings) -> Verdict:
    """The verdict on a candidate while `serving_version` is served.

    A candidate that was scored against another draft is refused: its scores answer another question.
    """
    scores = [score for score in candidate.scores if _usable(score, serving_version, candidate.num_steps)]
    num_positions = sum(score.num_positions for score in scores)
    numbers = {"num_requests": float(len(scores)), "num_positions": float(num_positions)}
    if candidate.parent_version != serving_version:
        reason = f"scored against version {candidate.parent_version} while {serving_version} is served"
        return Verdict(REJECT, reason, 1.0, 0.0, numbers)
    if len(scores) < settings.gate_min_requests or num_positions < settings.gate_min_positions:
        reason = (
            f"{len(scores)} held-out requests with {num_positions} positions; "
            f"{settings.gate_min_requests} and {settings.gate_min_positions} are needed"
        )
        return Verdict(NEED_MORE_DATA, reason, 1.0, 0.0, numbers)
    differences = [
        (score.num_positions, score.candidate_tokens - _serving_tokens(score, serving_version)) for score in scores
    ]
    gain, error = _paired_gain(differences)
    reach = student_quantile(settings.gate_confidence, len(scores) - 1) * error
    accept_length = math.fsum(score.candidate_tokens for score in scores) / num_positions
    numbers |= {
        "accept_length": accept_length,
        "serving_accept_length": accept_length - gain,
        "gain": gain,
        "lower_bound": gain - reach,
        "upper_bound": gain + reach,
        "confidence": settings.gate_confidence,
    }
    figures = f"gain {gain:+.3f} accept length, at least {gain - reach:+.3f} with {settings.gate_confidence:.0%}"
    if gain > 0.0 and gain - reach >= settings.gate_min_gain:
        objection = _objection(scores, serving_version, settings)
        if objection is not None:
            return Verdict(objection[0], f"{figures}; {objection[1]}", accept_length, gain, numbers)
        return Verdict(PROMOTE, figures, accept_length, gain, numbers)
    if gain <= 0.0 or gain + reach < settings.gate_min_gain:
        return Verdict(REJECT, f"{figures}: not better", accept_length, gain, numbers)
    return Verdict(NEED_MORE_DATA, f"{figures}: too few requests to be sure", accept_length, gain, numbers)


def _objection(
    scores: Sequence[RequestScored], serving_version: int, settings: PolicySettings
) -> tuple[str, str] | None:
    """(verdict, why) when a workload with enough data would lose more than is allowed; the worst one of them."""
    worst: tuple[float, str, str] | None = None
    for workload in sorted({score.workload for score in scores}):
        own = [score for score in scores if score.workload == workload]
        positions = sum(score.num_positions for score in own)
        if len(own) < settings.gate_min_requests or positions < settings.gate_min_positions:
            continue
        before = math.fsum(_serving_tokens(score, serving_version) for score in own) / positions
        gain, error = _paired_gain(
            [(score.num_positions, score.candidate_tokens - _serving_tokens(score, serving_version)) for score in own]
        )
        reach = student_quantile(settings.gate_confidence, len(own) - 1) * error
        allowed = settings.gate_max_loss * before
        if gain < -allowed and (worst is None or gain / before < worst[0]):
            verdict = REJECT if gain + reach < -allowed else NEED_MORE_DATA
            name = workload or "unlabelled requests"
            why = f"{name} would lose {-gain:.3f} of {before:.3f}, at most {allowed:.3f} may be lost"
            worst = (gain / before, verdict, why)
    return None if worst is None else worst[1:]


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t by the Cornish-Fisher series; 4% low at 3 degrees, 0.3% at 7, p <= 0.95.

    Source: Abramowitz and Stegun 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4.0,
        (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0,
        (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))


def _usable(score: RequestScored, serving_version: int, num_steps: int) -> bool:
    """Whether both accept lengths are possible: 1 to num_steps + 1. A trainer's mistake must not vote."""
    low = float(score.num_positions)
    high = low * (num_steps + 1) * (1.0 + 1e-9)
    sums = (_serving_tokens(score, serving_version), score.candidate_tokens)
    return score.num_positions > 0 and all(low <= tokens <= high for tokens in sums)


def _serving_tokens(score: RequestScored, serving_version: int) -> float:
    return float(score.num_positions) if serving_version == NO_DRAFT else score.serving_tokens


def _paired_gain(differences: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """D and its standard error from (n_j, d_j)."""
    total = sum(count for count, _ in differences)
    gain = math.fsum(difference for _, difference in differences) / total
    squares = math.fsum((difference - gain * count) ** 2 for count, difference in differences)
    num_requests = len(differences)
    return gain, math.sqrt(num_requests / (num_requests - 1) * squares) / total
