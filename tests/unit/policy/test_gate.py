import random
from dataclasses import replace

import pytest

from tide_daemon.policy.events import CandidatePublished, PositionScored, RequestScored
from tide_daemon.policy.gate import NEED_MORE_DATA, PROMOTE, REJECT, judge
from tide_daemon.policy.paired import student_quantile
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(gate_min_requests=8, gate_min_positions=300, gate_confidence=0.9)


def candidate(pairs: list[tuple[float, float]], positions: int = 100, parent: int = 1) -> CandidatePublished:
    """Scores given as accept lengths (serving, candidate) of one request each."""
    scores = tuple(
        RequestScored(f"{index:016x}", "", positions, serving * positions, cand * positions)
        for index, (serving, cand) in enumerate(pairs)
    )
    return CandidatePublished(0.0, 2, "d" * 64, parent, "trainer", 0, 3, scores)


def noisy(gain: float, num: int, spread: float = 0.1, seed: int = 1) -> list[tuple[float, float]]:
    rng = random.Random(seed)
    return [(level := rng.uniform(1.2, 1.8), level + gain + rng.gauss(0.0, spread)) for _ in range(num)]


def test_a_clear_gain_is_promoted_with_its_numbers() -> None:
    """Mean, bound, confidence and sizes are all in the verdict."""
    verdict = judge(candidate(noisy(0.2, 24)), 1, SETTINGS)
    assert verdict.verdict == PROMOTE
    assert verdict.gain == pytest.approx(0.2, abs=0.06)
    assert verdict.numbers["lower_bound"] < verdict.gain < verdict.numbers["upper_bound"]
    assert verdict.numbers["num_requests"] == 24


def test_a_loss_is_refused() -> None:
    """Worse on the same requests."""
    assert judge(candidate(noisy(-0.1, 24)), 1, SETTINGS).verdict == REJECT


def test_a_gain_within_the_noise_needs_more_data() -> None:
    """Better on average, but the bound reaches below the least gain."""
    pairs = [(1.5, 1.5 + change) for change in (0.3, -0.25) * 6]
    assert judge(candidate(pairs), 1, SETTINGS).verdict == NEED_MORE_DATA


def test_pairing_sees_through_differences_between_requests() -> None:
    """Requests differ by more than the gain, the pairs do not: promoted."""
    assert judge(candidate(noisy(0.05, 24, spread=0.02)), 1, SETTINGS).verdict == PROMOTE


@pytest.mark.parametrize(("num", "positions"), [(7, 100), (8, 37)])
def test_too_little_data(num: int, positions: int) -> None:
    """Below either minimum there is no verdict."""
    assert judge(candidate(noisy(0.5, num), positions), 1, SETTINGS).verdict == NEED_MORE_DATA


def test_scores_against_another_draft_do_not_count() -> None:
    """The serving draft changed since the candidate was scored."""
    verdict = judge(candidate(noisy(0.5, 24), parent=3), 1, SETTINGS)
    assert verdict.verdict == REJECT
    assert "version 3" in verdict.reason


def test_day_0_compares_with_accept_length_1() -> None:
    """Whatever the trainer wrote as the score of no draft, it is 1."""
    verdict = judge(candidate([(7.0, 1.2)] * 12, parent=0), 0, SETTINGS)
    assert verdict.verdict == PROMOTE
    assert verdict.gain == pytest.approx(0.2)


def test_an_equal_candidate_is_refused() -> None:
    """No gain at all on any request: deploying it would only cost a swap."""
    assert judge(candidate([(1.5, 1.5)] * 12), 1, SETTINGS).verdict == REJECT


def test_impossible_scores_do_not_vote() -> None:
    """Not finite, or below one token a step."""
    pairs = [(1.5, float("nan")), (1.5, 0.5), (1.5, float("inf"))] * 10
    assert judge(candidate(pairs), 1, SETTINGS).verdict == NEED_MORE_DATA


def two_workloads(chat_gain: float, code: list[tuple[float, float]]) -> CandidatePublished:
    """24 requests of chat and some of code."""
    scores = tuple(
        RequestScored(f"{workload}{index:012x}", workload, 100, before * 100, after * 100)
        for workload, pairs in (("chat", noisy(chat_gain, 24, 0.02)), ("code", code))
        for index, (before, after) in enumerate(pairs)
    )
    return CandidatePublished(0.0, 2, "d" * 64, 1, "trainer", 0, 3, scores)


def test_no_workload_with_enough_data_may_lose_much() -> None:
    """Good on the whole, and code loses a tenth: refused, in words that name it."""
    verdict = judge(two_workloads(0.4, noisy(-0.15, 12, 0.02)), 1, SETTINGS)
    assert verdict.verdict == REJECT and verdict.gain > 0.1
    assert "code would lose 0.1" in verdict.reason


def test_a_small_loss_of_one_workload_is_allowed() -> None:
    """Within gate_max_loss of its accept length the whole decides."""
    assert judge(two_workloads(0.3, noisy(-0.03, 12, 0.02)), 1, SETTINGS).verdict == PROMOTE


def test_a_loss_within_the_noise_needs_more_data() -> None:
    """Code looks worse than allowed, but eight scattered requests do not prove it."""
    scattered = [(1.5, 1.5 + change) for change in (0.3, -0.5) * 4]
    assert judge(two_workloads(0.4, scattered), 1, SETTINGS).verdict == NEED_MORE_DATA


def test_a_workload_with_little_data_has_no_say() -> None:
    """Seven requests are too few to forbid anything."""
    assert judge(two_workloads(0.4, noisy(-0.3, 7, 0.02)), 1, SETTINGS).verdict == PROMOTE


def two_stretches(first_gain: float, deep_gain: float, deep: int = 12) -> CandidatePublished:
    """24 requests of 100 positions; the first `deep` of them have 40 of these from index 64 of the response on."""
    scores = []
    for index, (before, _) in enumerate(noisy(0.0, 24, 0.0)):
        num_deep = 40 if index < deep else 0
        parts = [
            PositionScored(first, num, before * num, (before + gain + 0.02 * (-1) ** index) * num)
            for first, num, gain in ((0, 100 - num_deep, first_gain), (64, num_deep, deep_gain))
            if num
        ]
        sums = [sum(getattr(part, name) for part in parts) for name in ("serving_tokens", "candidate_tokens")]
        scores.append(RequestScored(f"{index:016x}", "", 100, *sums, tuple(parts)))
    return CandidatePublished(0.0, 2, "d" * 64, 1, "trainer", 0, 3, tuple(scores))


def test_no_stretch_of_the_response_may_lose_much() -> None:
    """Better at the beginning of answers and worse deep inside them: refused, with the numbers of both."""
    verdict = judge(two_stretches(0.4, -0.25), 1, SETTINGS)
    assert verdict.verdict == REJECT and verdict.gain > 0.2
    assert "positions from 64 would lose 0.2" in verdict.reason
    assert verdict.numbers["gain, positions 0-63"] == pytest.approx(0.4, abs=0.01)
    assert verdict.numbers["gain, positions from 64"] == pytest.approx(-0.25, abs=0.01)
    assert -0.25 < verdict.numbers["upper_bound, positions from 64"] < -0.15


def test_a_small_loss_of_one_stretch_is_allowed() -> None:
    """Within gate_max_loss of its accept length the whole decides."""
    assert judge(two_stretches(0.4, -0.03), 1, SETTINGS).verdict == PROMOTE


def test_a_stretch_with_little_data_has_no_say() -> None:
    """Seven long answers forbid nothing."""
    verdict = judge(two_stretches(0.4, -0.3, deep=7), 1, SETTINGS)
    assert verdict.verdict == PROMOTE and "gain, positions from 64" not in verdict.numbers


@pytest.mark.parametrize(
    "stretch",
    [(64, 500, 600.0, 600.0), (64, 0, 0.0, 0.0), (64, 40, 0.0, 60.0), (64, 40, 60.0, float("nan"))],
    ids=["longer-than-the-request", "empty", "impossible", "no-number"],
)
def test_stretches_that_cannot_be_do_not_vote(stretch: tuple[int, int, float, float]) -> None:
    """The requests themselves still count."""
    whole = two_stretches(0.4, -0.2)
    scores = tuple(replace(score, by_position=(PositionScored(*stretch),)) for score in whole.scores)
    verdict = judge(replace(whole, scores=scores), 1, SETTINGS)
    assert verdict.verdict == PROMOTE and not any("positions" in name for name in verdict.numbers if "," in name)


def test_only_the_largest_workloads_are_told_apart() -> None:
    """Labels are the clients' choice: what the verdict holds of them is bounded."""
    scores = tuple(
        RequestScored(f"{label:08x}{index:08x}", f"w{label}", 100, 150.0, 170.0 + index)
        for label in range(40)
        for index in range(8)
    )
    verdict = judge(CandidatePublished(0.0, 2, "d" * 64, 1, "trainer", 0, 3, scores), 1, SETTINGS)
    assert verdict.verdict == PROMOTE
    assert len(verdict.lengths) == 16 and sum(name.startswith("gain, ") for name in verdict.numbers) == 16


def test_the_bound_holds_as_often_as_it_says() -> None:
    """With no true gain at most about 10% of candidates are promoted at 90% confidence."""
    promoted = sum(judge(candidate(noisy(0.0, 16, seed=seed)), 1, SETTINGS).verdict == PROMOTE for seed in range(600))
    assert promoted / 600 <= 0.14


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"), [(0.9, 7, 1.415), (0.95, 7, 1.895), (0.95, 30, 1.697), (0.9, 1000, 1.282)]
)
def test_student_quantile(probability: float, degrees: int, expected: float) -> None:
    """Against the printed table."""
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=0.005)
