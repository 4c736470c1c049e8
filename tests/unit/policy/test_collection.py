import random

from tide_daemon.policy import collection
from tide_daemon.policy.collection import CollectionState, decide, measure
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(ema_short=0.8, ema_long=0.98, shift_epsilon=0.05, shift_initial=10, headroom_gain=0.02)


def measured(state: CollectionState, values: list[float]) -> CollectionState:
    for value in values:
        state = measure(state, value, SETTINGS)
    return state


def test_day_0_collects() -> None:
    """Without a draft there is everything to learn."""
    assert decide(CollectionState(), has_draft=False, pays=False)[0]


def test_first_measurements_initialise_both_averages() -> None:
    """After N_init measurements both averages are their mean (Algorithm 1, step 2)."""
    state = measured(CollectionState(), [0.4, 0.6] * 5)
    assert abs(state.short - 0.5) < 1e-9
    assert state.short == state.long


def test_a_fall_turns_collection_on() -> None:
    """Short below long minus epsilon is a shift (Algorithm 1, step 4)."""
    state = collection.judged(measured(CollectionState(), [0.6] * 50), "reject", 0.0, SETTINGS)
    assert not decide(state, has_draft=True, pays=True)[0]
    state = measured(state, [0.3] * 3)
    on, why = decide(state, has_draft=True, pays=True)
    assert on and state.shifted
    assert "shift" in why


def test_noise_is_no_shift() -> None:
    """Measurements that go up and down by 0.08 do not trip it."""
    state = collection.judged(CollectionState(), "reject", 0.0, SETTINGS)
    state = measured(state, [0.6 + 0.08 * (-1) ** index for index in range(500)])
    assert not state.shifted


def test_a_slow_drift_is_seen_that_the_averages_follow() -> None:
    """0.2 lost over 4,000 measurements: short and long never part by epsilon, the sum below the old level says it."""
    state = collection.judged(CollectionState(), "reject", 0.0, SETTINGS)
    state = measured(state, [0.6 + 0.03 * (-1) ** index for index in range(200)])
    for index in range(4000):
        state = measure(state, 0.6 - 0.2 * index / 4000 + 0.03 * (-1) ** index, SETTINGS)
        if state.shifted:
            break
    assert state.shifted and 0.5 < state.long < 0.58
    assert "drift" in decide(state, has_draft=True, pays=True)[1]


def test_noise_around_the_level_is_no_drift() -> None:
    """Independent noise of deviation 0.05 does not trip it in 5,000 measurements."""
    rng = random.Random(1)
    state = collection.judged(CollectionState(), "reject", 0.0, SETTINGS)
    state = measured(state, [rng.gauss(0.6, 0.05) for _ in range(5000)])
    assert not state.shifted


def test_another_draft_has_a_level_of_its_own() -> None:
    """What an earlier draft lost is not held against the next."""
    state = collection.judged(measured(CollectionState(), [0.6] * 200 + [0.55] * 40), "reject", 0.0, SETTINGS)
    assert state.fall > 0.0
    state = measured(collection.draft_changed(state), [0.5] * 2000)
    assert not state.shifted


def test_a_round_answers_a_shift_once() -> None:
    """After the round that answers it, the lower level is the new normal."""
    state = measured(measured(CollectionState(), [0.6] * 50), [0.3] * 5)
    state = measured(collection.round_began(state), [0.3] * 100)
    assert not state.shifted


def test_verdicts() -> None:
    """Refused: off. Promoted with a good gain: on. With a small gain: the curve is flat, off."""
    start = CollectionState()
    assert not collection.judged(start, "reject", 0.0, SETTINGS).wanted
    assert collection.judged(start, "promote", 0.1, SETTINGS).wanted
    assert not collection.judged(start, "promote", 0.01, SETTINGS).wanted
    assert collection.judged(start, "need_more_data", 0.0, SETTINGS) == start


def test_a_draft_that_does_not_pay_keeps_collecting() -> None:
    """While speculation is off nothing can be measured live, so samples go on."""
    state = collection.judged(CollectionState(), "reject", 0.0, SETTINGS)
    assert decide(state, has_draft=True, pays=False)[0]


def test_nothing_is_collected_while_nobody_learns_from_it() -> None:
    on, why = decide(CollectionState(), has_draft=False, pays=False, learnt_from=False)
    assert not on
    assert "trainer" in why
