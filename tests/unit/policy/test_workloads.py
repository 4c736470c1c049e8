"""Figures by workload from held-out scores."""

import pytest

from tide_daemon.policy.events import ShadowScored, WorkloadServed
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.workloads import MAX_WORKLOADS, Workloads

SETTINGS = PolicySettings(workload_max_fall=0.1)


def shadow(**tokens: float) -> tuple[ShadowScored, ...]:
    """100 chain starts of each workload, with so many tokens."""
    return tuple(ShadowScored(name, 2, 100, value) for name, value in tokens.items())


def test_shares_and_lengths_follow_the_scores() -> None:
    """The first score counts whole; later ones move the means; a workload that stays away keeps its length."""
    known = Workloads()
    known.observe(1, shadow(code=200.0, chat=150.0))
    assert known.figures["code"].share == 0.5 and known.figures["code"].accept_length == 2.0
    for _ in range(20):
        known.observe(1, shadow(chat=160.0))
    assert known.figures["code"].share == pytest.approx(0.5 * 0.8**20)
    assert known.figures["code"].accept_length == 2.0
    assert known.figures["chat"].accept_length == pytest.approx(1.6, abs=0.01)
    assert known.figures["chat"].num_scores == 21 and known.figures["chat"].num_requests == 42


def test_another_draft_begins_anew() -> None:
    """What one draft did says nothing of the next."""
    known = Workloads()
    known.observe(1, shadow(code=200.0))
    known.observe(2, shadow(code=150.0))
    assert known.version == 2 and known.figures["code"].accept_length == 1.5


def test_labels_are_bounded() -> None:
    """Of more labels than are kept the smallest shares go."""
    known = Workloads()
    known.observe(1, tuple(ShadowScored(f"w{index:03d}", 1, 100 + index, 300.0) for index in range(100)))
    assert len(known.figures) == MAX_WORKLOADS and min(known.figures) == "w068"


def test_impossible_scores_do_not_count() -> None:
    """Less than a token a step, or no step at all."""
    known = Workloads()
    known.observe(1, (ShadowScored("code", 1, 100, 99.0), ShadowScored("chat", 1, 0, 0.0)))
    known.observe(1, (ShadowScored("code", 1, 100, float("nan")),))
    assert known.figures == {}


def test_live_figures_are_kept_beside() -> None:
    """By chains and tokens, forgotten beyond some thousand chains; they have no say in shares."""
    known = Workloads()
    known.served(1, (WorkloadServed("code", 100, 250), WorkloadServed("chat", 0, 0), WorkloadServed("odd", 9, 3)))
    assert list(known.figures) == ["code"] and known.figures["code"].live_accept_length == 2.5
    known.observe(1, shadow(chat=150.0))
    assert known.figures["chat"].share == 1.0 and known.figures["code"].share == 0.0
    assert known.figures["chat"].live_accept_length is None
    for _ in range(100):
        known.served(1, (WorkloadServed("code", 100, 150),))
    assert known.figures["code"].live_accept_length == pytest.approx(1.5, abs=0.02)
    assert known.figures["code"].live_chains == pytest.approx(2000.0)
    known.served(2, ())
    assert known.figures == {}


def test_doing_badly_has_two_thresholds() -> None:
    """10% below the best that is known; well again when half of that is made good."""
    known, best = Workloads(), {"code": 2.0, "chat": 1.5}
    for _ in range(3):
        known.observe(1, shadow(code=185.0, chat=150.0, poems=110.0))
    assert known.weak(best, (), SETTINGS) == ()
    assert known.weak(best, ("code",), SETTINGS) == ("code",)
    for _ in range(12):
        known.observe(1, shadow(code=170.0, chat=150.0))
    assert known.weak(best, (), SETTINGS) == ("code",)
    for _ in range(20):
        known.observe(1, shadow(code=195.0, chat=150.0))
    assert known.weak(best, ("code",), SETTINGS) == ()


def test_few_workloads_are_preferred() -> None:
    """Those with the largest shares."""
    known = Workloads()
    for _ in range(3):
        known.observe(1, tuple(ShadowScored(f"w{index:02d}", 1, 100 + index, 150.0) for index in range(20)))
    weak = known.weak({f"w{index:02d}": 3.0 for index in range(20)}, (), SETTINGS)
    assert weak == tuple(f"w{index:02d}" for index in range(12, 20))


def test_what_another_draft_would_gain_on_this_mix() -> None:
    """By the shares of the workloads that both are known on, once there are a few scores."""
    known = Workloads()
    assert known.expected_gain({"code": 2.0}) == (1.0, 0.0)
    for _ in range(3):
        known.observe(1, shadow(code=200.0, chat=100.0))
    gain, share = known.expected_gain({"code": 2.2, "poems": 9.0})
    assert (gain, share) == (pytest.approx(1.1), pytest.approx(0.5))
    gain, share = known.expected_gain({"code": 1.8, "chat": 1.5})
    assert (gain, share) == (pytest.approx(3.3 / 3.0), pytest.approx(1.0))


def test_a_ratio_on_the_same_requests_is_applied_to_the_figure() -> None:
    """A hard lot of requests makes both drafts look worse; their ratio stays."""
    known = Workloads()
    known.observe(1, shadow(code=200.0))
    assert known.lengths_of((("code", 1.6, 1.76), ("poems", 1.2, 1.5))) == (
        ("code", pytest.approx(2.2)),
        ("poems", 1.5),
    )
