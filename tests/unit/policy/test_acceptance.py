import math
import random

import pytest

from tide_daemon.policy.acceptance import AcceptanceMonitor, Trial, geometric_accept_length, token_accept_prob


def monitor(**changes: float) -> AcceptanceMonitor:
    settings = {"short_half_life_s": 3.0, "long_half_life_s": 20.0, "change_z": 3.0, "prior": 0.4, **changes}
    return AcceptanceMonitor(5, **settings)


def chains(rng: random.Random, num: int, probs: list[float]) -> tuple[int, ...]:
    accepted = [0] * len(probs)
    for _ in range(num):
        for position, prob in enumerate(probs):
            if rng.random() >= prob:
                break
            accepted[position] += 1
    return tuple(accepted)


def test_geometric_accept_length_is_equation_2() -> None:
    """alpha 0.7 with 3 steps gives 2.53; the closed form of TIDE eq. 2 agrees."""
    assert geometric_accept_length(0.7, 3) == pytest.approx(2.533)
    assert geometric_accept_length(0.7, 3) == pytest.approx((1 - 0.7**4) / (1 - 0.7))
    assert geometric_accept_length(0.0, 3) == 1.0


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9])
def test_token_accept_prob_inverts_it(alpha: float) -> None:
    """The probability that belongs to an accept length is found again."""
    assert token_accept_prob(geometric_accept_length(alpha, 3), 3) == pytest.approx(alpha, abs=1e-6)


def test_survival_follows_each_position() -> None:
    """Positions with different accept probabilities are told apart, not averaged into one alpha."""
    seen, rng = monitor(), random.Random(1)
    for _ in range(50):
        seen.observe(100, chains(rng, 100, [0.9, 0.5, 0.2]), 1.0)
    assert seen.survival(3) == pytest.approx((0.9, 0.45, 0.09), abs=0.03)
    assert seen.accept_length(3) == pytest.approx(2.44, abs=0.06)


def test_unseen_positions_continue_with_the_last_probability() -> None:
    """Deeper positions than any chain had are geometric (eq. 2's form) from the last one known."""
    seen = monitor()
    for _ in range(100):
        seen.observe(1000, (600, 300), 1.0)
    first, second, third, fourth = seen.survival(4)
    assert second / first == pytest.approx(0.5, abs=0.01)
    assert third / second == pytest.approx(0.5, abs=0.01)
    assert fourth / third == pytest.approx(0.5, abs=0.01)


def test_shallow_chains_leave_what_is_known_of_deep_positions() -> None:
    """Running one step for a while does not forget positions 2 and 3."""
    seen = monitor()
    for _ in range(50):
        seen.observe(100, (80, 40, 20), 1.0)
    before = seen.survival(3)
    for _ in range(200):
        seen.observe(100, (80,), 1.0)
    assert seen.survival(3) == pytest.approx(before, abs=0.02)


def test_a_shift_is_seen_within_a_few_seconds() -> None:
    """At 100 chains a second a fall from 1.96 to 1.39 is mostly in the estimate after 5 s, long half-life or not."""
    seen, rng = monitor(), random.Random(2)
    for _ in range(120):
        seen.observe(100, chains(rng, 100, [0.6, 0.6]), 1.0)
    changes = seen.num_changes
    for _ in range(5):
        seen.observe(100, chains(rng, 100, [0.3, 0.3]), 1.0)
    assert seen.num_changes > changes
    assert seen.accept_length(2) < 1.6


def test_steady_traffic_is_averaged_for_long() -> None:
    """Without a shift the long window keeps its evidence: the error is far below that of one second."""
    seen, rng = monitor(), random.Random(3)
    for _ in range(120):
        seen.observe(25, chains(rng, 25, [0.5, 0.5, 0.5]), 1.0)
    assert seen.evidence > 300
    assert seen.standard_error(3) < 0.06
    assert seen.accept_length(3) == pytest.approx(1.875, abs=0.15)


def test_no_evidence_means_the_prior_and_an_infinite_error() -> None:
    """Before anything was seen only the prior speaks."""
    seen = monitor(prior=0.5)
    assert seen.accept_length(3) == pytest.approx(1.875)
    assert seen.standard_error(3) == math.inf
    seen.observe(0, (), 1.0)
    assert seen.evidence == 0.0


def test_faded_evidence_gives_way_to_new() -> None:
    """After fading, a short probe decides what is believed."""
    seen = monitor(change_z=100.0)
    for _ in range(100):
        seen.observe(100, (70, 40), 1.0)
    seen.fade(20.0)
    assert seen.evidence == pytest.approx(20.0)
    seen.observe(200, (40, 8), 2.0)
    assert seen.accept_length(2) < 1.35


def test_trial_stops_counting() -> None:
    """What traffic does after the first chains is not held against the draft."""
    trial = Trial(3, 400, prior=0.4)
    for _ in range(5):
        trial.observe(100, (60, 40, 20))
    before = trial.accept_length(3)
    assert trial.num_seen == 400
    trial.observe(100, (0, 0, 0))
    assert trial.accept_length(3) == before
    assert before == pytest.approx(2.2, abs=0.02)
    assert trial.standard_error(3) < 0.07
