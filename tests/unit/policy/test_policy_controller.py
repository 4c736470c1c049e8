"""The controller as a whole: what is asked of whom, after which event."""

import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.unit.policy.simulated_fleet import Fleet, ModelledNode, digest_of, one_node
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    ControllerStarted,
    FleetState,
    ServerFound,
    ServerReported,
    Tick,
    TrainerFound,
    TrainerReported,
)
from tide_daemon.policy.instructions import FleetMoved, Judged, SetServer, SetTrainer
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(max_batch_size=8)


def started(fleet: FleetState | None = None) -> Controller:
    controller = Controller(SETTINGS)
    controller.handle(ControllerStarted(1000.0, "model", SETTINGS.to_map(), fleet))
    return controller


def report(node: str, at: float, version: int = 0, engine: str = "ready", sequence: int = 1) -> ServerReported:
    return ServerReported(at, node, sequence, engine, version, digest_of(version), 0, 1.0, ())


def trainer_report(at: float, new_tokens: int, round_: int = 0, state: str = "waiting") -> TrainerReported:
    return TrainerReported(at, "trainer", 1, state, 0, new_tokens, new_tokens, round_)


def several_nodes(num: int = 3, accept: float = 0.6) -> Fleet:
    nodes = [
        ModelledNode(f"node-{letter}", lambda v, t: accept if v else 0.0, lambda t: 4, random.Random(index))
        for index, letter in enumerate("abcdef"[:num])
    ]
    return Fleet(nodes, SETTINGS)


def two_nodes(accept: dict[int, float]) -> Fleet:
    """Serving version 1, watched to its end. `accept`: what each version is accepted with."""
    nodes = [ModelledNode(n, lambda v, t: accept[v], lambda t: 4, random.Random(1)) for n in ("a", "b")]
    fleet = Fleet(nodes, SETTINGS)
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(90)
    return fleet


def test_a_new_node_is_told_to_decode_plainly_and_to_collect() -> None:
    """Day 0: no draft, no steps, collect everything."""
    (asked,) = started().handle(report("a", 1001.0))
    assert isinstance(asked, SetServer)
    assert (asked.node, asked.generation, asked.draft_version, asked.steps_table) == ("a", 1, 0, ())
    assert (asked.collect, asked.sample_rate) == (True, 1.0)
    assert "no draft" in asked.reason


def test_nothing_new_asks_for_nothing() -> None:
    """Reports that change nothing lead to no instruction."""
    controller = started()
    controller.handle(report("a", 1001.0))
    assert controller.handle(report("a", 1002.0, sequence=2)) == []
    assert controller.handle(Tick(1003.0)) == []


def test_a_round_is_asked_for_once() -> None:
    """Enough tokens: the next round; no second one until the trainer has begun and ended it."""
    controller = started()
    first = controller.handle(trainer_report(1001.0, 10))
    assert [type(item) for item in first] == [SetTrainer]
    (asked,) = controller.handle(trainer_report(1002.0, 3000))
    assert isinstance(asked, SetTrainer) and (asked.round, asked.serving_version) == (1, 0)
    assert asked.numbers["new_tokens"] == 3000
    assert controller.handle(trainer_report(1003.0, 3500)) == []
    assert controller.handle(trainer_report(1004.0, 4000, round_=1, state="training")) == []
    (again,) = controller.handle(trainer_report(1005.0, 9000, round_=1))
    assert isinstance(again, SetTrainer) and (again.round, again.generation) == (2, 3)


def test_a_candidate_reaches_the_second_node_only_after_the_canary_passed() -> None:
    """Every node but the canary keeps the old draft until live figures are in, then all get the new one."""
    fleet = several_nodes()
    fleet.run(20)
    fleet.publish(1, 2.1)
    for _ in range(60):
        fleet.run(1)
        state = fleet.controller.fleet
        others = [node for node in fleet.nodes if node.name != state.canary]
        if state.stage == "canary":
            assert all(node.desired is not None and node.desired.draft_version == 0 for node in others)
        if state.stage == "watch":
            break
    assert all(node.version == 1 for node in fleet.nodes)
    moves = [item.fleet.stage for item in fleet.instructions(FleetMoved) if isinstance(item, FleetMoved)]
    assert [stage for index, stage in enumerate(moves) if index == 0 or moves[index - 1] != stage] == [
        "steady",
        "canary",
        "rest",
        "watch",
    ]


def test_a_canary_that_promises_nothing_is_tried_all_the_same() -> None:
    """Among several nodes only live figures let a draft pass, even one that will not pay."""
    fleet = several_nodes(accept=0.1)
    fleet.run(20)
    fleet.publish(1, 1.1)
    fleet.run(90)
    assert fleet.controller.fleet.serving_version == 1
    assert fleet.controller.state_map()["nodes"]["node-a"]["steps_table"] == []


def test_good_offline_but_bad_live_is_rolled_back() -> None:
    """A poisoned candidate drops the canary's live accept length: back to the draft before, and not tried again."""
    fleet = two_nodes({0: 0.0, 1: 0.6, 2: 0.3})
    assert fleet.controller.fleet.serving_version == 1
    fleet.publish(2, 2.4, serving=2.1)
    fleet.run(60)
    state = fleet.controller.fleet
    assert (state.serving_version, state.stage, state.refused) == (1, "steady", (2,))
    assert [node.version for node in fleet.nodes] == [1, 1]
    fleet.publish(2, 2.4, serving=2.1)
    assert fleet.controller.fleet.refused == (2,)
    assert sum(isinstance(item, Judged) for item in fleet.instructions(Judged)) == 2


def test_a_new_draft_is_watched_to_its_end_before_the_next_one_is_tried() -> None:
    """A candidate that comes during the watch waits for its end; one round after another needs no more time for it."""
    fleet = two_nodes({0: 0.0, 1: 0.6, 2: 0.65, 3: 0.3})
    fleet.publish(2, 2.3, serving=2.1)
    until("watch", fleet)
    began = fleet.controller.fleet.since
    fleet.publish(3, 2.6, serving=2.3)
    assert (fleet.controller.fleet.stage, fleet.controller.state_map()["pending"]) == ("watch", [3])
    until("canary", fleet)
    assert SETTINGS.watch_s <= fleet.at - began <= SETTINGS.watch_s + 1.0
    assert fleet.controller.fleet.serving_version == 2
    fleet.run(60)
    state = fleet.controller.fleet
    assert (state.serving_version, state.stage, state.refused) == (2, "steady", (3,))


def test_the_watch_goes_on_though_a_candidate_waits() -> None:
    """The second node shows that the draft is bad: it is rolled back, and its waiting child is refused."""
    fleet = two_nodes({0: 0.0, 1: 0.6, 2: 0.6, 3: 0.6})
    fleet.publish(2, 2.3, serving=2.1)
    canary = fleet.controller.fleet.canary
    other = next(node for node in fleet.nodes if node.name != canary)
    other.accept_prob = lambda v, t: 0.35 if v == 2 else 0.6
    until("watch", fleet)
    fleet.publish(3, 2.6, serving=2.3)
    fleet.run(29)
    state = fleet.controller.fleet
    assert (state.serving_version, state.refused, state.stage) == (1, (2,), "steady")
    last = [item for item in fleet.instructions(Judged) if isinstance(item, Judged)][-1]
    assert (last.version, last.verdict) == (3, "reject")


def test_a_draft_that_is_given_up_leaves_no_score_behind() -> None:
    """After a failed canary the state holds the held-out score of what serves; a successor guesses by that."""
    fleet = two_nodes({0: 0.0, 1: 0.6, 2: 0.3})
    served = fleet.controller.fleet
    fleet.publish(2, 2.4, serving=2.1)
    assert fleet.controller.fleet.offline_accept_length == pytest.approx(2.4, abs=0.05)
    fleet.run(60)
    state = fleet.controller.fleet
    assert state.refused == (2,) and state.serving_version == 1
    assert state.offline_accept_length == served.offline_accept_length == pytest.approx(2.1, abs=0.05)
    assert (state.offline_num_steps, state.candidate_lengths) == (3, ())
    fleet.take_over()
    fleet.run(1)
    assert fleet.controller.nodes["a"].offline_accept_length == state.offline_accept_length


def test_a_shift_during_the_watch_is_no_rollback() -> None:
    """Traffic changes after the draft has shown itself: the draft stays."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 8)
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(110)
    fleet.publish(2, 2.3, serving=2.1)
    while fleet.controller.fleet.stage != "watch":
        fleet.run(1)
    fleet.nodes[0].accept_prob = lambda v, t: 0.2
    fleet.run(60)
    assert (fleet.controller.fleet.serving_version, fleet.controller.fleet.stage) == (2, "steady")


def until(stage: str, fleet: Fleet) -> None:
    while fleet.controller.fleet.stage != stage:
        fleet.run(1)


def test_an_engine_that_goes_down_on_the_canary_rolls_back() -> None:
    """While nothing speaks for a draft, a dead engine counts against it."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.1)
    until("canary", fleet)
    fleet.nodes[0].engine = "down"
    fleet.run(2)
    assert (fleet.controller.fleet.serving_version, fleet.controller.fleet.refused) == (0, (1,))


def test_once_down_after_a_good_canary_is_no_rollback_twice_is() -> None:
    """The draft has shown itself: one outage is noted, the next one on the same node condemns it."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.1)
    until("watch", fleet)
    node = fleet.nodes[0]
    node.engine = "down"
    fleet.run(3)
    assert fleet.controller.fleet.serving_version == 1
    assert [name for name, _ in fleet.controller.fleet.downs] == ["node-a"]
    node.engine = "ready"
    fleet.run(3)
    node.engine = "down"
    fleet.run(2)
    assert (fleet.controller.fleet.serving_version, fleet.controller.fleet.refused) == (0, (1,))


def test_a_draft_that_has_shown_nothing_is_condemned_by_its_first_outage() -> None:
    """A single node lets a draft through without live figures; then an engine that goes down is reason enough."""
    fleet = one_node(lambda v, t: 0.05 if v else 0.0, lambda t: 8)
    fleet.run(20)
    fleet.publish(1, 1.05)
    until("watch", fleet)
    assert not fleet.controller.fleet.proven
    fleet.nodes[0].engine = "down"
    fleet.run(2)
    assert fleet.controller.fleet.serving_version == 0


def test_a_successor_does_not_count_the_same_outage_twice() -> None:
    """It finds the engine down and noted; only another outage would be the second."""
    watch = FleetState(
        serving_version=1, serving_digest=digest_of(1), stage="watch", since=1000.0, judged=(1,), proven=True,
        downs=(("a", 1001.0),),
    )  # fmt: skip
    successor = started(watch)
    successor.handle(report("a", 1005.0, engine="down"))
    successor.handle(report("a", 1006.0, engine="down", sequence=2))
    assert successor.fleet == watch
    successor.handle(report("a", 1010.0, version=1, sequence=3))
    successor.handle(report("a", 1012.0, engine="down", sequence=4))
    assert successor.fleet.refused == (1,)


def test_a_silent_node_is_left_out_and_taken_back() -> None:
    """The rollout goes on without it; when it reports again it gets what the fleet serves."""
    fleet = several_nodes(2)
    fleet.run(20)
    silent = fleet.nodes[1]
    silent.alive = False
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(90)
    assert (fleet.controller.fleet.serving_version, fleet.controller.fleet.stage) == (1, "steady")
    assert silent.desired is not None and silent.desired.draft_version == 0
    silent.alive = True
    fleet.run(6)
    assert silent.version == 1


def test_the_next_leader_goes_on_from_journal_and_desired_state() -> None:
    """Generations go on, the steps stay as they are, rounds and judged versions are not repeated."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(100)
    kept = [item for item in fleet.instructions(FleetMoved) if isinstance(item, FleetMoved)][-1].fleet
    last = [item for item in fleet.instructions(SetServer) if isinstance(item, SetServer)][-1]
    assert last.steps_table
    successor = started(kept)
    found = ServerFound(
        1001.0, "node-a", last.generation, 1, last.draft_digest, last.steps_table, last.collect, last.sample_rate
    )
    assert successor.handle(found) == []
    assert successor.handle(TrainerFound(1001.0, "trainer", 4, 7, 1, digest_of(1))) == []
    assert successor.handle(report("node-a", 1002.0, version=1)) == []
    (asked,) = successor.handle(trainer_report(1003.0, 9000, round_=7))
    assert isinstance(asked, SetTrainer) and (asked.round, asked.generation) == (8, 5)
    fleet.controller = successor
    fleet.publish(1, 2.1)
    assert not [item for item in fleet.entries[-1][1] if isinstance(item, Judged)]


def test_a_decision_that_was_journalled_but_never_published_is_asked_again() -> None:
    """The journal says canary, the desired state still says plain: the next leader asks, one generation on."""
    canary = FleetState(
        stage="canary", candidate_version=1, candidate_digest=digest_of(1), canary="a", since=1000.0, judged=(1,)
    )
    successor = started(canary)
    successor.handle(ServerFound(1001.0, "a", 3, 0, "", (), True, 1.0))
    (asked,) = successor.handle(report("a", 1002.0))
    assert isinstance(asked, SetServer) and (asked.generation, asked.draft_version) == (4, 1)


def test_a_restarted_engine_keeps_its_steps() -> None:
    """The engine is replaced and runs nothing for a while: the table stays, the draft is no new one."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(100)
    before = fleet.controller.state_map()["nodes"]["node-a"]["steps_table"]
    fleet.nodes[0].version, fleet.nodes[0].engine = 0, "starting"
    fleet.run(5)
    fleet.nodes[0].engine = "ready"
    fleet.run(20)
    assert before and fleet.controller.state_map()["nodes"]["node-a"]["steps_table"] == before


def test_candidates_wait_for_a_node_and_for_the_canary() -> None:
    """Published while nobody can run it, or while another is on its canary: judged afterwards."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4)
    fleet.publish(1, 2.1)
    assert fleet.controller.state_map()["pending"] == [1]
    fleet.run(1)
    assert fleet.controller.fleet.stage == "canary"
    fleet.publish(2, 2.3, serving=1.0)
    assert fleet.controller.state_map()["pending"] == [2]
    fleet.run(60)
    last = [item for item in fleet.instructions(Judged) if isinstance(item, Judged)][-1]
    assert (last.version, last.verdict) == (2, "reject")
    assert "scored against version 0" in last.reason


def test_collection_goes_on_and_off_with_the_gate() -> None:
    """A refused candidate while the draft pays: only the small share that keeps shadow scores alive."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4)
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(60)
    assert fleet.nodes[0].desired is not None and fleet.nodes[0].desired.sample_rate == 1.0
    fleet.publish(2, 2.0, serving=2.1)
    fleet.run(2)
    assert fleet.nodes[0].desired.sample_rate == SETTINGS.idle_sample_rate
    fleet.nodes[0].accept_prob = lambda v, t: 0.35
    fleet.run(30)
    assert fleet.nodes[0].desired.sample_rate == 1.0
    assert "shift" in fleet.controller.collection.reason


SERVED = FleetState(serving_version=1, serving_digest=digest_of(1), judged=(1,), since=1000.0, proven=True)


def calls_for_one_report(num_nodes: int, fleet: FleetState, begin: float, engine: str) -> int:
    """Python calls that one more report of one node takes in a fleet that has settled by `begin`."""
    controller = started(fleet)
    for sequence in range(3):
        for index in range(num_nodes):
            controller.handle(report(f"node-{index:04d}", begin + sequence, 1, engine, sequence))
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        controller.handle(report("node-0000", begin + 3.0, 1, engine, 4))
    finally:
        sys.setprofile(None)
    assert controller.fleet == fleet
    return calls


@pytest.mark.parametrize(
    ("fleet", "begin", "engine"),
    [
        (SERVED, 1001.0, "ready"),
        (replace(SERVED, stage="rest"), 1001.0, "ready"),
        (replace(SERVED, stage="rest"), 1050.0, "starting"),
        (replace(SERVED, stage="rest", serving_version=2, serving_digest=digest_of(2)), 1050.0, "ready"),
        (replace(SERVED, stage="watch"), 1050.0, "ready"),
    ],
    ids=["steady", "rest-taken-over", "rest-nobody-runs-it", "rest-all-outstanding", "watch-nothing-shown"],
)
def test_a_report_costs_what_its_node_costs(fleet: FleetState, begin: float, engine: str) -> None:
    """The same work for the same report, whether 3 nodes are there or 200."""
    assert calls_for_one_report(3, fleet, begin, engine) == calls_for_one_report(200, fleet, begin, engine)


def test_a_lost_canary_is_noticed_by_whatever_comes_next() -> None:
    """Silent for longer than the deadline: the next event of anybody ends the canary."""
    canary = FleetState(
        stage="canary", candidate_version=1, candidate_digest=digest_of(1), canary="a", since=1000.0, judged=(1,)
    )
    controller = started(canary)
    controller.handle(report("a", 1001.0))
    controller.handle(report("b", 1001.0))
    controller.handle(report("b", 1100.0))
    assert controller.fleet.stage == "canary"
    controller.handle(report("b", 1001.0 + SETTINGS.rollout_deadline_s))
    assert controller.fleet.refused == (1,)


def test_the_rest_is_over_when_the_last_node_is_there_or_gone() -> None:
    """Three nodes: one reports the draft, then another, and the third falls silent."""
    rest = FleetState(serving_version=1, serving_digest=digest_of(1), stage="rest", since=1000.0, judged=(1,))
    controller = started(rest)
    for name in ("a", "b", "c"):
        controller.handle(report(name, 1001.0, version=0 if name != "a" else 1))
    # The first to report was alone and had the draft, so look at the stage with all of them there.
    controller.fleet = rest
    controller.handle(report("b", 1010.0, version=1))
    assert controller.fleet.stage == "rest"
    controller.handle(report("a", 1011.0, version=1))
    assert controller.fleet.stage == "rest"
    controller.handle(Tick(1001.0 + SETTINGS.lost_after_s + 1.0))
    assert controller.fleet.stage == "watch"


def test_time_never_goes_back() -> None:
    """A late event counts as happening now."""
    controller = started()
    controller.handle(Tick(2000.0))
    controller.handle(report("a", 1500.0))
    assert controller.now == 2000.0


def test_unknown_events_are_our_own_mistake() -> None:
    """The shell may only send what events.py lists."""
    with pytest.raises(TypeError):
        started().handle(SimpleNamespace(at=1001.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_draft_that_its_canary_cannot_have_is_given_up(num_nodes: int) -> None:
    """In seconds, for good, with the reason in the journal; the next one is tried as if nothing had been."""
    fleet = several_nodes(num_nodes)
    fleet.run(20)
    for node in fleet.nodes:
        node.cannot_have = frozenset({1})
    fleet.publish(1, 2.2)
    fleet.run(5)
    assert (fleet.controller.fleet.stage, fleet.controller.fleet.refused) == ("steady", (1,))
    moves = [item for item in fleet.instructions(FleetMoved) if isinstance(item, FleetMoved)]
    assert any("cannot run version 1: draft 1 is gone" in item.reason for item in moves)
    fleet.publish(1, 2.2)
    fleet.publish(2, 2.2)
    fleet.run(120)
    asked = [item for item in fleet.instructions(SetServer) if isinstance(item, SetServer) and item.draft_version == 1]
    assert len(asked) == 1
    assert fleet.controller.fleet.serving_version == 2


def test_who_has_been_silent_for_very_long_is_forgotten() -> None:
    """Nodes and trainers come and go under new names for months; who comes back is counted on from what was asked."""
    controller, after_s = started(), SETTINGS.forget_after_s
    for index in range(20):
        controller.handle(report(f"pod-{index}", 1001.0 + index))
        controller.handle(replace(trainer_report(1001.0 + index, 0), trainer=f"pod-{index}"))
    controller.handle(Tick(1001.0 + after_s))
    assert len(controller.nodes) == len(controller.trainers.by_name) == 20
    controller.handle(Tick(1010.5 + after_s))
    left = {f"pod-{index}" for index in range(10, 20)}
    assert set(controller.nodes) == set(controller.speculation) == set(controller.asked) == left
    assert set(controller.trainers.by_name) == left
    controller.handle(report("pod-19", 1011.0 + after_s))
    controller.handle(Tick(1100.0 + after_s))
    assert set(controller.nodes) == {"pod-19"} and not controller.trainers.by_name
    controller.check_invariants()
    back = report("pod-0", 1101.0 + after_s, sequence=2)
    assert not controller.knows(back) and controller.knows(report("pod-19", 1101.0 + after_s))
    controller.handle(ServerFound(1101.0 + after_s, "pod-0", 7, 0, "", (), True, 1.0))
    (asked,) = controller.handle(back)
    assert isinstance(asked, SetServer) and (asked.node, asked.generation) == ("pod-0", 8)


def test_a_node_that_is_there_is_not_forgotten() -> None:
    """However long it has been known, and though it is silent for an hour at a time."""
    controller = started()
    for hour in range(60):
        controller.handle(report("a", 1001.0 + 3600.0 * hour, sequence=hour))
        controller.handle(Tick(1001.0 + 3600.0 * hour + 3500.0))
        assert set(controller.nodes) == {"a"}


def test_trainers_that_were_forgotten_are_still_away() -> None:
    """Nobody learns from what is collected, so nothing is, whether their names are known or not."""
    controller = started()
    controller.handle(report("a", 1001.0))
    controller.handle(trainer_report(1001.0, 0))
    controller.handle(report("a", 1100.0, sequence=2))
    assert controller.asked["a"].sample_rate == SETTINGS.idle_sample_rate
    controller.handle(report("a", 1002.0 + SETTINGS.forget_after_s, sequence=3))
    controller.handle(Tick(1003.0 + SETTINGS.forget_after_s))
    assert not controller.trainers.by_name
    controller.handle(report("a", 1004.0 + SETTINGS.forget_after_s, sequence=4))
    assert controller.asked["a"].sample_rate == SETTINGS.idle_sample_rate
