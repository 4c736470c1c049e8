"""Shadow scores of several trainers: taken together, bounded, and of one version at a time."""

from dataclasses import replace

import pytest

from tide_daemon.policy import shadows
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import ControllerStarted, FleetState, ServerReported, ShadowScored, TrainerReported
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.shadows import ShadowScores

SETTINGS = PolicySettings(max_batch_size=8, gate_min_positions=300, lost_after_s=15.0)


def scored(trainer: str, at: float, accept_length: float, requests: int = 4, version: int = 1) -> TrainerReported:
    """A hundred chain starts a request."""
    shadow = (ShadowScored("chat", requests, 100 * requests, 100 * requests * accept_length),) if requests else ()
    return TrainerReported(at, trainer, int(at), "waiting", version, 0, 0, 0, shadow)


def test_trainers_do_not_overwrite_each_other() -> None:
    """Each has its say by the number of its requests, and the newest of each counts."""
    scores = ShadowScores(SETTINGS)
    scores.take(scored("a", 1000.0, 9.0), 1000.0)
    scores.take(scored("a", 1001.0, 2.0, requests=6), 1001.0)
    scores.take(scored("b", 1002.0, 1.5, requests=2), 1002.0)
    assert scores.accept_length(1, 1002.0) == pytest.approx((6 * 2.0 + 2 * 1.5) / 8)


def test_a_long_request_counts_once() -> None:
    """Weighted by requests, not by chain starts: one long answer does not speak for ten short ones."""
    scores = ShadowScores(SETTINGS)
    long = ShadowScored("code", 1, 9000, 9000 * 3.0)
    short = ShadowScored("chat", 9, 180, 180 * 1.5)
    scores.take(TrainerReported(1000.0, "a", 1, "waiting", 1, 0, 0, 0, (long, short)), 1000.0)
    assert scores.accept_length(1, 1000.0) == pytest.approx((3.0 + 9 * 1.5) / 10)


def test_another_version_and_a_silent_trainer_have_no_say() -> None:
    """During a change of drafts trainers report different ones; who is gone says nothing about today."""
    scores = ShadowScores(SETTINGS)
    scores.take(scored("a", 1000.0, 3.0), 1000.0)
    scores.take(scored("b", 1010.0, 2.0), 1010.0)
    scores.take(scored("c", 1010.0, 1.2, version=2), 1010.0)
    assert scores.accept_length(2, 1010.0) == pytest.approx(1.2)
    assert scores.accept_length(1, 1010.0) == pytest.approx(2.5)
    assert scores.accept_length(1, 1016.0) == pytest.approx(2.0)
    assert scores.accept_length(1, 1026.0) is None


def test_few_of_each_are_enough_together() -> None:
    """Two trainers with two requests each: neither alone has the chain starts that are needed."""
    scores = ShadowScores(SETTINGS)
    scores.take(scored("a", 1000.0, 2.0, requests=2), 1000.0)
    assert scores.accept_length(1, 1000.0) is None
    scores.take(scored("b", 1000.0, 1.0, requests=2), 1000.0)
    assert scores.accept_length(1, 1000.0) == pytest.approx(1.5)


def test_a_report_without_scores_changes_nothing() -> None:
    """A trainer that trains says nothing new about the serving draft; requests or positions of 0 do not vote."""
    scores = ShadowScores(SETTINGS)
    scores.take(scored("a", 1000.0, 2.0), 1000.0)
    scores.take(scored("a", 1001.0, 2.0, requests=0), 1001.0)
    scores.take(TrainerReported(1001.0, "a", 1, "waiting", 1, 0, 0, 0, (ShadowScored("", 0, 500, 9e9),)), 1001.0)
    assert scores.accept_length(1, 1001.0) == pytest.approx(2.0)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has said nothing for longest is forgotten."""
    monkeypatch.setattr(shadows, "_MAX_TRAINERS", 2)
    scores = ShadowScores(SETTINGS)
    for name, length in (("a", 1.0), ("b", 2.0), ("a", 1.5), ("c", 3.0)):
        scores.take(scored(name, 1000.0, length), 1000.0)
    assert scores.accept_length(1, 1000.0) == pytest.approx((1.5 + 3.0) / 2)


def test_a_node_is_told_of_all_of_them() -> None:
    """The controller: the guess for a draft without live evidence does not depend on who reported last."""
    controller = Controller(SETTINGS)
    fleet = FleetState(serving_version=1, serving_digest="1" * 64, judged=(1,))
    controller.handle(ControllerStarted(1000.0, "model", SETTINGS.to_map(), fleet))
    controller.handle(scored("a", 1001.0, 2.4))
    controller.handle(scored("b", 1001.0, 1.2))
    controller.handle(ServerReported(1002.0, "node", 1, "ready", 1, "1" * 64, 0, 1.0, ()))
    assert controller.nodes["node"].offline_accept_length == pytest.approx(1.8)


def watched(settings: PolicySettings) -> Controller:
    """A controller that serves version 1 and has seen no score of it."""
    controller = Controller(settings)
    fleet = FleetState(serving_version=1, serving_digest="1" * 64, judged=(1,))
    controller.handle(ControllerStarted(1000.0, "model", settings.to_map(), fleet))
    return controller


def test_one_trainers_few_requests_are_no_shift() -> None:
    """It holds hard ones and reports most often; what all hold together has not changed."""
    controller = watched(replace(SETTINGS, score_initial=2))
    for second in range(20):
        at = 1001.0 + second
        controller.handle(scored("many", at, 2.4 + second % 2 / 1000, requests=40))
        controller.handle(scored("few", at, 1.2 + second % 2 / 1000, requests=4))
    assert controller.collection.num_scores == 40
    assert controller.collection.score == pytest.approx((40 * 2.4 + 4 * 1.2) / 44, abs=0.01)
    assert not controller.collection.shifted


def test_trainers_with_too_few_requests_each_see_a_shift_together() -> None:
    """Neither has the chain starts for a score of its own."""
    controller = watched(replace(SETTINGS, score_initial=2))
    for second in range(20):
        length = 2.4 if second < 10 else 1.4
        for index, name in enumerate(("a", "b")):
            controller.handle(scored(name, 1001.0 + second, length + (second + index) / 1000, requests=2))
    assert controller.collection.num_shifts == 1


def test_a_report_without_scores_is_no_measurement() -> None:
    """Others' scores are not counted again because a trainer has begun to train."""
    controller = watched(SETTINGS)
    controller.handle(scored("a", 1001.0, 2.0))
    controller.handle(scored("b", 1001.0, 2.0))
    controller.handle(scored("b", 1002.0, 2.0, requests=0))
    assert controller.collection.num_scores == 2
