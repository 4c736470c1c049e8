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
