from dataclasses import replace

import pytest

from tide_daemon.policy.events import CandidatePublished, DraftFailed, FleetState
from tide_daemon.policy.node_view import NodeView
from tide_daemon.policy.rollout import (
    REST,
    STEADY,
    WATCH,
    advance,
    begin,
    draft_for,
    was_judged,
    with_judged,
)
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(
    watch_min_steps=200, watch_max_drop=0.1, watch_s=30.0, settle_s=5.0, rollout_deadline_s=120.0, canary_busy_s=60.0
)
OLD, NEW = "a" * 64, "b" * 64
SERVING = FleetState(serving_version=1, serving_digest=OLD)
IN_CANARY = begin(SERVING, CandidatePublished(1000.0, 2, NEW, 1, "trainer", 0, 3, ()), 1.8, 0.1, "a", 1000.0)
RUNS_NEW = NodeView("a", True, "ready", 2, NEW, 1005.0, False, True, 10.0, 250, 1.8, 0.05, 1.7)
RUNS_OLD = NodeView("b", True, "ready", 1, OLD, 0.0, True, True, 500.0, 400, 1.7, 0.05, None)


def test_only_the_canary_runs_the_candidate() -> None:
    """The others keep the serving draft until the canary has passed."""
    assert draft_for(IN_CANARY, "a") == (2, NEW)
    assert draft_for(IN_CANARY, "b") == (1, OLD)


def test_canary_passes_on_live_figures() -> None:
    """Enough chains and no drop: the candidate becomes the serving draft, the old one is kept for a rollback."""
    move = advance(IN_CANARY, [RUNS_NEW, RUNS_OLD], 1020.0, SETTINGS)
    assert move is not None
    assert (move.fleet.stage, move.fleet.serving_version, move.fleet.previous_version) == (REST, 2, 1)
    assert move.numbers["num_seen"] == 250


def test_canary_waits_for_enough_chains() -> None:
    """With several nodes nothing but live figures lets a candidate pass."""
    few = replace(RUNS_NEW, num_seen=199, settled=True)
    assert advance(IN_CANARY, [few, RUNS_OLD], 1050.0, SETTINGS) is None


@pytest.mark.parametrize(
    ("canary", "at", "why"),
    [
        (replace(RUNS_NEW, live=1.3), 1020.0, "fell"),
        (replace(RUNS_NEW, engine="down"), 1010.0, "went down"),
        (replace(RUNS_NEW, running_version=1, running_digest=OLD), 1120.0, "still runs"),
        (replace(RUNS_NEW, running_digest="c" * 64), 1120.0, "still runs"),
        (replace(RUNS_NEW, alive=False), 1120.0, "was lost"),
        (replace(RUNS_NEW, num_seen=0, busy_running_s=60.0), 1080.0, "no live figures"),
        (replace(RUNS_NEW, num_seen=0, busy=False), 1125.0, "no traffic"),
    ],
    ids=["drop", "engine-down", "deadline", "wrong-digest", "lost", "no-figures", "no-traffic"],
)
def test_canary_fails(canary: NodeView, at: float, why: str) -> None:
    """Each failure drops the candidate; the serving draft was never touched."""
    move = advance(IN_CANARY, [canary, RUNS_OLD], at, SETTINGS)
    assert move is not None
    assert why in move.reason
    assert (move.fleet.stage, move.fleet.serving_version, move.fleet.candidate_version) == (STEADY, 1, 0)
    assert move.fleet.refused == (2,)


def test_a_small_or_uncertain_drop_is_no_failure() -> None:
    """Within the allowed share, or within the error."""
    for live, error in ((1.6, 0.02), (1.4, 0.2)):
        move = advance(IN_CANARY, [replace(RUNS_NEW, live=live, live_error=error), RUNS_OLD], 1020.0, SETTINGS)
        assert move is not None and move.fleet.stage == REST


def test_a_single_node_may_pass_without_live_figures() -> None:
    """Speculation is off because it does not pay: the draft is kept for the next round to start from."""
    alone = replace(RUNS_NEW, num_seen=0, settled=True, baseline=None)
    move = advance(IN_CANARY, [alone], 1020.0, SETTINGS)
    assert move is not None and move.fleet.stage == REST
    assert advance(IN_CANARY, [replace(alone, settled=False)], 1020.0, SETTINGS) is None


def test_rest_waits_for_every_node_that_is_there() -> None:
    """A lost node and one whose hooks failed are left out; a late one rolls everything back."""
    move = advance(IN_CANARY, [RUNS_NEW, RUNS_OLD], 1020.0, SETTINGS)
    assert move is not None
    rest = move.fleet
    assert advance(rest, [RUNS_NEW, RUNS_OLD], 1030.0, SETTINGS) is None
    for gone in (replace(RUNS_OLD, alive=False), replace(RUNS_OLD, engine="capture_off")):
        passed = advance(rest, [RUNS_NEW, gone], 1030.0, SETTINGS)
        assert passed is not None and passed.fleet.stage == WATCH
    late = advance(rest, [RUNS_NEW, RUNS_OLD], 1140.0, SETTINGS)
    assert late is not None
    assert (late.fleet.stage, late.fleet.serving_version, late.fleet.refused) == (STEADY, 1, (2,))


def test_watch_ends_in_peace_or_rolls_back() -> None:
    """After the watch period the rollout is over; a drop on any node before that undoes it."""
    watch = replace(IN_CANARY, stage=WATCH, serving_version=2, serving_digest=NEW, previous_version=1,
                    previous_digest=OLD, candidate_version=0, candidate_digest="", canary="")  # fmt: skip
    other = replace(RUNS_NEW, name="b")
    assert advance(watch, [RUNS_NEW, other], 1029.0, SETTINGS) is None
    done = advance(watch, [RUNS_NEW, other], 1030.0, SETTINGS)
    assert done is not None and (done.fleet.stage, done.fleet.serving_version) == (STEADY, 2)
    back = advance(watch, [RUNS_NEW, replace(other, live=1.2)], 1010.0, SETTINGS)
    assert back is not None
    assert (back.fleet.serving_version, back.fleet.serving_digest, back.fleet.refused) == (1, OLD, (2,))


def test_engines_that_go_down_after_the_canary() -> None:
    """The third of different nodes is one too many; one that was down before, or is not up yet, says nothing."""
    rest = replace(IN_CANARY, stage=REST, serving_version=2, serving_digest=NEW, previous_version=1,
                   previous_digest=OLD, candidate_version=0, candidate_digest="", canary="", proven=True)  # fmt: skip
    down = replace(RUNS_OLD, engine="down", down_since=1005.0)
    noted = advance(rest, [RUNS_NEW, RUNS_OLD, down], 1010.0, SETTINGS)
    assert noted is not None and (noted.fleet.stage, noted.fleet.downs) == (REST, (("b", 1005.0),))
    assert advance(noted.fleet, [RUNS_OLD, down], 1011.0, SETTINGS) is None
    over = advance(rest, [RUNS_NEW, down], 1010.0, SETTINGS)
    assert over is not None and (over.fleet.stage, over.fleet.downs) == (WATCH, (("b", 1005.0),))
    more = [replace(down, name=name) for name in ("c", "d")]
    back = advance(noted.fleet, [RUNS_OLD, *more], 1012.0, SETTINGS)
    assert back is not None and "3 engines" in back.reason and back.fleet.serving_version == 1
    for other in (replace(down, down_since=900.0), replace(RUNS_OLD, engine="starting")):
        passed = advance(rest, [RUNS_NEW, other], 1010.0, SETTINGS)
        assert passed is not None and passed.fleet.stage == WATCH


def test_steady_does_nothing() -> None:
    """Without a rollout there is nothing to advance."""
    assert advance(SERVING, [RUNS_NEW], 1e9, SETTINGS) is None


def test_judged_versions_are_remembered_within_bounds() -> None:
    """A version is judged once, and what is too old to be remembered counts as judged."""
    fleet = FleetState()
    for version in range(1, 400):
        fleet = with_judged(fleet, version)
    assert len(fleet.judged) == 256
    assert was_judged(fleet, 399) and was_judged(fleet, 1)
    assert not was_judged(fleet, 400)


CANNOT = replace(RUNS_OLD, name="a", draft_failed=DraftFailed(2, NEW, 3, "part 4 of draft 2 is not on the bus"))


def test_a_canary_that_cannot_have_the_draft_ends_it_at_once() -> None:
    """Long before the deadline, with the node's own reason."""
    move = advance(IN_CANARY, [CANNOT, RUNS_OLD], 1003.0, SETTINGS)
    assert move is not None
    assert (move.fleet.stage, move.fleet.serving_version, move.fleet.refused) == (STEADY, 1, (2,))
    assert move.reason == "a cannot run version 2: part 4 of draft 2 is not on the bus"
    assert move.numbers == {"num_tries": 3.0}


@pytest.mark.parametrize(
    "failed",
    [DraftFailed(2, NEW, 2, "once more"), DraftFailed(1, OLD, 9, "another one"), DraftFailed(2, OLD, 9, "content")],
    ids=["few-tries", "version", "digest"],
)
def test_a_try_or_another_draft_says_nothing_yet(failed: DraftFailed) -> None:
    """Until the deadline, as before."""
    canary = replace(CANNOT, draft_failed=failed)
    assert advance(IN_CANARY, [canary, RUNS_OLD], 1003.0, SETTINGS) is None
    assert advance(IN_CANARY, [canary, RUNS_OLD], 1120.0, SETTINGS) is not None


def test_a_node_that_cannot_have_it_undoes_the_rest_at_once() -> None:
    """As it would at the deadline."""
    move = advance(IN_CANARY, [RUNS_NEW, RUNS_OLD], 1020.0, SETTINGS)
    assert move is not None and move.fleet.stage == REST
    back = advance(move.fleet, [RUNS_NEW, replace(CANNOT, name="b")], 1023.0, SETTINGS)
    assert back is not None and "b cannot run version 2" in back.reason
    assert (back.fleet.stage, back.fleet.serving_version, back.fleet.refused) == (STEADY, 1, (2,))
