"""Candidate against serving draft, paired by held-out request, with a one-sided confidence bound. Pure.

For request j with n_j chain starts let d_j = candidate tokens - serving tokens. The gain in accept
length is the ratio D = sum d_j / sum n_j. Requests are drawn independently, chain starts within one
are not, so the error is that of a ratio over requests (linearised, as for cluster samples):

    se^2 = m / (m - 1) * sum (d_j - D n_j)^2 / (sum n_j)^2,      m requests

and the bounds are D -+ t * se with Student's t of m - 1 degrees of freedom. Nothing is drawn at
random, so a replay gives the same verdict. Day 0: no draft has accept length 1 by definition.

A gain on the whole may be a loss for some workload or deep in the response: gate_parts.py objects.
"""

from dataclasses import dataclass

from tide_daemon.policy.events import CandidatePublished, RequestScored
from tide_daemon.policy.gate_parts import Part, pair_of, parts_of, worst_of
from tide_daemon.policy.paired import gain_of
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
        lengths: (workload, accept length of the serving draft, of the candidate) of those with enough data.
    """

    verdict: str
    reason: str
    accept_length: float
    gain: float
    numbers: dict[str, float]
    lengths: tuple[tuple[str, float, float], ...] = ()


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
    gain = gain_of([pair_of(score, serving_version) for score in scores], settings.gate_confidence)
    parts = parts_of(scores, serving_version, settings)
    numbers |= {
        "accept_length": gain.candidate_length,
        "serving_accept_length": gain.serving_length,
        "gain": gain.mean,
        "lower_bound": gain.lower,
        "upper_bound": gain.upper,
        "confidence": settings.gate_confidence,
    }
    numbers |= {f"gain, {part.name}": part.gain.mean for part in parts}
    lengths = tuple(
        (part.workload, part.gain.serving_length, part.gain.candidate_length)
        for part in parts
        if part.workload is not None
    )
    figures = f"gain {gain.mean:+.3f} accept length, at least {gain.lower:+.3f} with {settings.gate_confidence:.0%}"

    def answer(verdict: str, reason: str) -> Verdict:
        return Verdict(verdict, reason, gain.candidate_length, gain.mean, numbers, lengths)

    if gain.mean > 0.0 and gain.lower >= settings.gate_min_gain:
        worst = worst_of(parts, settings)
        if worst is None:
            return answer(PROMOTE, figures)
        verdict, why = _objection(worst, settings)
        numbers[f"upper_bound, {worst.name}"] = worst.gain.upper
        return answer(verdict, f"{figures}; {why}")
    if gain.mean <= 0.0 or gain.upper < settings.gate_min_gain:
        return answer(REJECT, f"{figures}: not better")
    return answer(NEED_MORE_DATA, f"{figures}: too few requests to be sure")


def _objection(worst: Part, settings: PolicySettings) -> tuple[str, str]:
    """(verdict, why) for a part that loses more than is allowed."""
    gain = worst.gain
    allowed = settings.gate_max_loss * gain.serving_length
    surely = gain.upper < -allowed
    why = f"{worst.name} would lose {-gain.mean:.3f} of {gain.serving_length:.3f}, at most {allowed:.3f} may be lost"
    return (REJECT, why) if surely else (NEED_MORE_DATA, why)


def _usable(score: RequestScored, serving_version: int, num_steps: int) -> bool:
    """Whether both accept lengths are possible: 1 to num_steps + 1. A trainer's mistake must not vote."""
    low = float(score.num_positions)
    high = low * (num_steps + 1) * (1.0 + 1e-9)
    pair = pair_of(score, serving_version)
    return score.num_positions > 0 and all(low <= sums <= high for sums in (pair.serving_tokens, pair.candidate_tokens))
