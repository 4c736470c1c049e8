"""A shift, and what earlier drafts are worth then: asked once, judged by the gate, rolled out as any other draft."""

from dataclasses import replace

import pytest

from tests.unit.policy.pool_world import FLEET, SETTINGS, World, past, scored
from tests.unit.policy.simulated_fleet import digest_of
from tide_daemon.policy.events import PoolScored, RequestScored, Tick, TrainerFound
from tide_daemon.policy.instructions import Judged, SetServer


def test_a_shift_asks_for_scores_of_the_pool() -> None:
    """Of the one idle trainer, once; its desired state names the drafts that it is about from the first on."""
    world = World()
    assert world.asked is not None
    assert world.asked.pool == ((3, digest_of(3)), (5, digest_of(5))) and world.scoring == 0
    world.shift()
    assert world.asked.pool_scoring == world.asked.generation == 2
    assert world.asked.pool_requests == 2 * SETTINGS.gate_min_requests
    assert "traffic has shifted, and 2 earlier draft(s) may know it" in world.asked.reason
    assert world.controller.fleet.outdated
    world.shift()
    assert world.asked.generation == 2


def test_no_round_begins_before_the_answer() -> None:
    """Then at once when none of them is better, each with its verdict and numbers."""
    world = World()
    world.shift()
    assert world.trainer(new_tokens=9000) == []
    made = world.trainer(pool=(scored(3, -0.2), scored(5, 0.0)), new_tokens=9000)
    assert world.judged() == {3: "reject", 5: "reject"}
    assert all("gain" in item.numbers and item.from_pool for item in made if isinstance(item, Judged))
    assert world.asked is not None and (world.asked.round, world.asked.pool_scoring) == (1, 0)
    assert "traffic has shifted" in world.asked.reason
    assert not world.controller.collection.shifted


def test_the_best_that_passes_is_served_again_under_its_number() -> None:
    """Canary, rest and watch as for any draft; no round is asked for, and the shift is answered."""
    world = World()
    world.shift()
    world.trainer(pool=(scored(3, 0.2), scored(5, 0.4)), new_tokens=4000)
    assert world.judged() == {3: "promote", 5: "promote"}
    assert (world.controller.fleet.stage, world.controller.fleet.candidate_version) == ("canary", 5)
    world.node(20)
    assert world.controller.fleet.serving_version == 5
    world.trainer(new_tokens=4000)
    assert world.asked is not None and (world.asked.round, world.asked.serving_version) == (0, 5)
    assert [version for version, _ in world.asked.pool] == [3, 9]
    assert not world.controller.collection.shifted
    assert world.controller.fleet.judged == FLEET.judged


@pytest.mark.parametrize(("version", "wanted"), [(3, False), (5, True)])
def test_learning_goes_on_where_it_stood(version: int, wanted: bool) -> None:
    """Version 3 had learnt its traffic when it was replaced: nothing is collected for it; version 5 had not."""
    world = World()
    world.shift()
    world.trainer(pool=(scored(version, 0.4),))
    world.node(20)
    assert world.controller.fleet.serving_version == version
    assert world.controller.collection.wanted is wanted


def test_a_shift_is_asked_about_once_and_the_next_one_again() -> None:
    """Also when the answer was no."""
    world = World()
    world.shift()
    world.trainer(pool=(scored(3, -0.2), scored(5, -0.2)), new_tokens=4000)
    world.trainer(new_tokens=0)
    assert world.scoring == 0
    number = world.asked.generation if world.asked is not None else 0
    for length in (1.2, 1.2):
        world.trainer(length)
    assert world.scoring == 0
    for length in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        world.trainer(length)
    assert world.scoring == 0  # 1.0 is 17% below 1.2 in the limit, not yet here
    for _ in range(20):
        world.trainer(1.0)
    assert world.scoring > number


def test_a_trainer_that_does_not_answer_is_not_waited_for_long() -> None:
    """An older release ignores the question; after pool_deadline_s the round begins."""
    world = World(pool_deadline_s=20.0)
    world.shift()
    while world.scoring and world.at < 1100.0:
        world.trainer(new_tokens=4000)
    assert world.at == pytest.approx(1002.0 + 4.0 + 20.0, abs=3.0)
    world.trainer(new_tokens=4000)
    assert world.asked is not None and world.asked.round == 1


def test_a_trainer_that_is_lost_is_not_waited_for() -> None:
    """The question is over; nothing is judged."""
    world = World()
    world.shift()
    world.give(Tick(world.at + SETTINGS.lost_after_s + 1.0))
    assert world.controller.pool_try.under_way is None
    assert "t was lost" in world.controller.pool_try.reason


def test_a_busy_trainer_is_not_asked() -> None:
    """It has a round to finish; it is asked when it is idle again."""
    world = World()
    for length in (2.0, 2.0, 1.2, 1.2, 1.2):
        world.trainer(length, state="training")
    assert world.controller.collection.shifted and world.scoring == 0
    world.trainer()
    assert world.scoring > 0


def test_an_empty_pool_costs_nothing() -> None:
    """The round begins without a question."""
    world = World(replace(FLEET, pool=()))
    world.shift()
    world.trainer(new_tokens=2000)
    assert world.asked is not None and (world.asked.round, world.scoring) == (1, 0)


def test_more_drafts_have_to_be_surer() -> None:
    """A gain that one draft passes with is not enough for one of four."""
    pairs = tuple(
        RequestScored(f"{index:016x}", "", 100, 150.0, 150.0 + (22.0 if index % 2 else -10.0)) for index in range(16)
    )
    alone, many = (
        World(replace(FLEET, pool=(past(3),))),
        World(replace(FLEET, pool=tuple(past(v) for v in (1, 2, 3, 4)))),
    )
    alone.shift()
    alone.trainer(pool=(PoolScored(3, 9, 3, pairs),))
    many.shift()
    many.trainer(pool=tuple(PoolScored(version, 9, 3, pairs) for version in (1, 2, 3, 4)))
    assert alone.judged() == {3: "promote"}
    assert set(many.judged().values()) == {"need_more_data"}


def test_a_draft_that_is_gone_leaves_the_pool() -> None:
    """The trainer could get one and not the other."""
    world = World()
    world.shift()
    world.trainer(pool=(PoolScored(3, 9, 3, ()), scored(5, -0.1)))
    assert [item.version for item in world.controller.fleet.pool] == [5]


def test_a_failed_scoring_says_nothing_about_the_drafts() -> None:
    """Without any scores all stay, and training goes on."""
    world = World()
    world.shift()
    world.trainer(pool=(), new_tokens=2000)
    assert len(world.controller.fleet.pool) == 2 and world.judged() == {}
    assert world.asked is not None and world.asked.round == 1


def test_an_earlier_draft_that_fails_live_is_not_tried_again() -> None:
    """Good on held-out requests, bad on its canary: refused for ever, and the shift is still to be answered."""
    world = World()
    world.node(30, accept=0.6)
    world.shift()
    world.trainer(pool=(scored(3, 0.4), scored(5, -0.1)))
    world.node(20, accept=0.1)
    fleet = world.controller.fleet
    assert (fleet.serving_version, fleet.stage, fleet.refused) == (9, "steady", (3,))
    assert [item.version for item in fleet.pool] == [5]
    world.trainer(new_tokens=2000)
    assert world.asked is not None and world.asked.round == 1
    assert "traffic has shifted" in world.asked.reason


def test_a_successor_goes_on_with_the_question() -> None:
    """It finds it in the trainer's desired state, holds rounds back, and judges the answer."""
    world = World()
    world.shift()
    asked = world.asked
    assert asked is not None
    successor = World(world.controller.fleet, knows_trainer=False)
    successor.give(
        TrainerFound(
            successor.at, "t", asked.generation, asked.round, asked.serving_version, asked.serving_digest, asked.pool,
            asked.pool_scoring,
        )
    )  # fmt: skip
    successor.asked = asked
    assert successor.trainer(new_tokens=9000) == []
    successor.trainer(pool=(scored(3, 0.4), scored(5, -0.1)), new_tokens=9000)
    assert successor.judged() == {3: "promote", 5: "reject"}


def test_a_workload_that_comes_back_need_not_lower_the_acceptance() -> None:
    """Code is easier than chat, so nothing falls; but version 3 is known to do better on it: it is asked about."""
    fleet = replace(FLEET, pool=(past(3, code=2.4), past(5, chat=1.9)))
    world = World(fleet)
    for _ in range(6):
        world.trainer(2.1, workload="code")
    assert not world.controller.collection.shifted and world.scoring > 0
    assert world.asked is not None
    assert "version 3 had 1.14 of the accept length that version 9 has on this mix" in world.asked.reason
    world.trainer(pool=(scored(3, -0.1), scored(5, -0.1)), new_tokens=0)
    for _ in range(30):
        world.trainer(2.1, workload="code")
    assert world.scoring == 0
    world.at += SETTINGS.pool_interval_s
    world.trainer(2.1, workload="code")
    world.trainer(2.1, workload="code")
    assert world.scoring > 0


def test_a_promise_that_was_not_kept_is_corrected() -> None:
    """What the drafts did on the same requests replaces what was known: the same is not promised twice."""
    world = World(replace(FLEET, pool=(past(3, code=2.4),)))
    for _ in range(6):
        world.trainer(2.1, workload="code")
    scores = tuple(
        replace(score, workload="code", candidate_tokens=score.serving_tokens - 1.0) for score in scored(3, 0.0).scores
    )
    world.trainer(pool=(PoolScored(3, 9, 3, scores),))
    (kept,) = world.controller.fleet.pool
    assert dict(kept.lengths)["code"] == pytest.approx(2.1 * 149 / 150, rel=0.01)
    world.at += 2 * SETTINGS.pool_interval_s
    world.node()
    for _ in range(6):
        world.trainer(2.1, workload="code")
    assert world.scoring == 0


def test_a_workload_that_does_badly_is_captured_in_full_while_collection_is_off() -> None:
    """Code did better when the draft was promoted; the others keep the small share. Well again: all of them do."""
    world = World(replace(FLEET, pool=(), lengths=(("code", 2.0),)), train_min_tokens=10**9)
    world.controller.collection = replace(world.controller.collection, wanted=False, reason="refused")
    world.node(30)
    for _ in range(6):
        world.trainer(1.7, workload="code")
    world.node()
    asked = [item for item in world.made if isinstance(item, SetServer)][-1]
    assert (asked.collect, asked.sample_rate) == (True, SETTINGS.idle_sample_rate)
    assert (asked.preferred, asked.preferred_rate) == (("code",), 1.0)
    assert "collect 5% of requests, 100% of code, which did better before" in asked.reason
    assert world.controller.state_map()["workloads"]["code"]["accept_length"] == pytest.approx(1.7, abs=0.01)
    for _ in range(20):
        world.trainer(1.98, workload="code")
    world.node()
    asked = [item for item in world.made if isinstance(item, SetServer)][-1]
    assert (asked.sample_rate, asked.preferred, asked.preferred_rate) == (SETTINGS.idle_sample_rate, (), 0.0)


def test_the_scorer_is_forgotten() -> None:
    """The clock jumped by days: the scoring ends as with any trainer that is lost."""
    world = World()
    world.shift()
    assert world.controller.pool_try.under_way is not None
    world.give(Tick(world.at + SETTINGS.forget_after_s + 1.0))
    assert world.controller.pool_try.under_way is None and not world.controller.trainers.by_name
    assert "t was lost" in world.controller.pool_try.reason
