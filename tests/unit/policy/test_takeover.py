"""A leader that takes over in the middle of a rollout has heard of nobody yet, and that says nothing of the draft."""

import random
from dataclasses import replace

import pytest

from tests.unit.policy.simulated_fleet import Fleet, ModelledNode, digest_of
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import ControllerStarted, FleetState, ServerReported, StepCount, Tick
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(
    max_batch_size=8, lost_after_s=15.0, rollout_deadline_s=120.0, watch_s=30.0, watch_min_steps=200, settle_s=5.0
)
BEGAN, LED = 1000.0, 1500.0
"""The stage began long before the takeover, so by its age alone every limit is over."""
CANARY = FleetState(
    serving_version=1, serving_digest=digest_of(1), stage="canary", candidate_version=2, candidate_digest=digest_of(2),
    canary="a", since=BEGAN, judged=(1, 2),
)  # fmt: skip
REST = FleetState(
    serving_version=2, serving_digest=digest_of(2), previous_version=1, previous_digest=digest_of(1), stage="rest",
    since=BEGAN, judged=(1, 2), proven=True,
)  # fmt: skip


def taken_over(fleet: FleetState) -> Controller:
    controller = Controller(SETTINGS)
    controller.handle(ControllerStarted(LED, "model", SETTINGS.to_map(), fleet))
    assert controller.fleet == fleet, "a takeover alone decides nothing"
    return controller


def report(
    node: str, at: float, version: int, sequence: int = 1, chains: int = 0, engine: str = "ready"
) -> ServerReported:
    """`chains` of three, half of each position accepted."""
    steps = ()
    if chains:
        accepted = (chains // 2, chains // 4, chains // 8)
        steps = (StepCount(1, 3, chains, chains + sum(accepted), accepted, 0.06 * chains, 0.04 * chains, 0.06),)
    return ServerReported(at, node, sequence, engine, version, digest_of(version), 0, 1.0, steps)


def tick(controller: Controller, since: float, until: float) -> None:
    at = since
    while at < until:
        at += 1.0
        controller.handle(Tick(at))


def keep_reporting(controller: Controller, versions: dict[str, int], since: float, until: float) -> None:
    at = since
    while at < until:
        at += 1.0
        for name, version in versions.items():
            controller.handle(report(name, at, version, sequence=int(at)))


# The canary


def test_a_canary_that_has_not_reported_yet_is_not_lost() -> None:
    """Others report, time goes on; the canary has as long as it takes to be called lost, then it is."""
    controller = taken_over(CANARY)
    keep_reporting(controller, {"b": 1}, LED, LED + SETTINGS.lost_after_s - 1.0)
    assert controller.fleet.stage == "canary"
    controller.handle(report("b", LED + SETTINGS.lost_after_s, 1, sequence=100))
    assert (controller.fleet.stage, controller.fleet.refused) == ("steady", (2,))


def test_a_canary_that_reports_in_time_goes_on() -> None:
    """It runs the candidate and shows its chains: passed, whoever led when it was swapped in."""
    controller = taken_over(CANARY)
    controller.handle(report("b", LED + 1.0, 1))
    controller.handle(report("a", LED + 2.0, 2))
    controller.handle(report("a", LED + 3.0, 2, sequence=2, chains=200))
    assert (controller.fleet.stage, controller.fleet.serving_version) == ("rest", 2)


def test_a_canary_that_was_never_told_has_the_whole_deadline() -> None:
    """The predecessor died between deciding and asking: the node is asked now, and late after the deadline from now."""
    controller = taken_over(CANARY)
    keep_reporting(controller, {"a": 1, "b": 1}, LED, LED + SETTINGS.rollout_deadline_s - 1.0)
    assert controller.fleet.stage == "canary"
    keep_reporting(controller, {"a": 1}, LED + SETTINGS.rollout_deadline_s, LED + SETTINGS.rollout_deadline_s + 1.0)
    assert controller.fleet.refused == (2,)


def test_a_canary_is_not_the_only_node_because_it_reported_first() -> None:
    """Idle and settled, it would pass without live figures if it were alone; the others report a little later."""
    controller = taken_over(CANARY)
    keep_reporting(controller, {"a": 2}, LED, LED + SETTINGS.lost_after_s - 1.0)
    assert controller.fleet.stage == "canary"
    keep_reporting(controller, {"b": 1, "a": 2}, LED + SETTINGS.lost_after_s - 1.0, LED + 60.0)
    assert controller.fleet.stage == "canary"


def test_a_canary_that_is_the_only_node_passes_a_little_later() -> None:
    """Nobody else was heard of for as long as it takes to be called lost."""
    controller = taken_over(CANARY)
    keep_reporting(controller, {"a": 2}, LED, LED + SETTINGS.lost_after_s)
    assert controller.fleet.stage == "rest"


def test_a_canary_is_compared_with_what_the_predecessor_saw_before_it() -> None:
    """Half of what the node accepted with the draft before: refused, though this leader never saw that draft there."""
    seen = replace(CANARY, canary_accept_length=2.4, canary_num_steps=3)
    for fleet, refused in ((seen, (2,)), (replace(seen, canary_accept_length=1.9), ()), (CANARY, ())):
        controller = taken_over(fleet)
        controller.handle(report("b", LED + 1.0, 1))
        controller.handle(report("a", LED + 2.0, 2))
        controller.handle(report("a", LED + 3.0, 2, sequence=2, chains=400))
        assert controller.fleet.refused == refused


def test_what_the_canary_did_before_is_written_down_when_it_begins() -> None:
    """The live accept length, with its chain length, under the draft that is served."""
    fleet = fleet_of(2, accept=0.6)
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(100)
    assert fleet.controller.fleet.canary_accept_length == 0.0, "nothing was drafted before the first one"
    fleet.publish(2, 2.3, serving=2.1)
    state = fleet.controller.fleet
    expected = 1 + sum(0.6**position for position in range(1, state.canary_num_steps + 1))
    assert state.stage == "canary" and state.canary_accept_length == pytest.approx(expected, rel=0.1)


# The rest


def test_the_rest_does_not_pass_on_nobody() -> None:
    """No node was heard of: it waits, and is rolled back at the deadline counted from the takeover."""
    controller = taken_over(REST)
    tick(controller, LED, LED + SETTINGS.rollout_deadline_s - 1.0)
    assert controller.fleet == REST
    tick(controller, LED + SETTINGS.rollout_deadline_s - 1.0, LED + SETTINGS.rollout_deadline_s)
    assert (controller.fleet.stage, controller.fleet.serving_version, controller.fleet.refused) == ("steady", 1, (2,))


def test_the_rest_does_not_pass_on_the_first_to_report() -> None:
    """The first one runs it already; others that report later do not, and are waited for."""
    controller = taken_over(REST)
    controller.handle(report("a", LED + 1.0, 2))
    controller.handle(Tick(LED + 2.0))
    assert controller.fleet.stage == "rest"
    keep_reporting(controller, {"a": 2, "b": 1}, LED + 2.0, LED + 40.0)
    assert controller.fleet.stage == "rest"
    keep_reporting(controller, {"a": 2, "b": 2}, LED + 40.0, LED + 41.0)
    assert controller.fleet.stage == "watch"


def test_the_rest_passes_when_all_that_are_there_were_heard_of() -> None:
    """Both run it: over as soon as a third one would have been heard of."""
    controller = taken_over(REST)
    keep_reporting(controller, {"a": 2, "b": 2}, LED, LED + SETTINGS.lost_after_s - 1.0)
    assert controller.fleet.stage == "rest"
    keep_reporting(controller, {"a": 2, "b": 2}, LED + SETTINGS.lost_after_s - 1.0, LED + SETTINGS.lost_after_s)
    assert controller.fleet.stage == "watch"


def test_the_rest_does_not_pass_while_no_engine_is_up() -> None:
    """Also without a takeover: a node whose engine is not up is not waited for, but it is nobody who runs it."""
    controller = taken_over(REST)
    for second in range(1, 40):
        controller.handle(report("a", LED + second, 0, sequence=second, engine="starting"))
        controller.handle(Tick(LED + second + 0.5))
    assert controller.fleet.stage == "rest"
    keep_reporting(controller, {"a": 2}, LED + 40.0, LED + 41.0)
    assert controller.fleet.stage == "watch"


# The watch

WATCH = FleetState(
    serving_version=2, serving_digest=digest_of(2), previous_version=1, previous_digest=digest_of(1), stage="watch",
    since=BEGAN, judged=(1, 2), proven=True,
)  # fmt: skip


@pytest.mark.parametrize("proven", [True, False])
def test_the_watch_needs_to_see_the_draft_at_work(proven: bool) -> None:
    """Its age says nothing: nobody watched. Enough chains on one node end it."""
    watch = replace(WATCH, proven=proven)
    controller = taken_over(watch)
    keep_reporting(controller, {"a": 2, "b": 2}, LED, LED + 60.0)
    assert controller.fleet == watch
    controller.handle(report("b", LED + 61.0, 2, sequence=5000, chains=199))
    assert controller.fleet == watch
    controller.handle(report("b", LED + 62.0, 2, sequence=5001, chains=1))
    assert (controller.fleet.stage, controller.fleet.serving_version) == ("steady", 2)


def test_the_watch_of_a_draft_that_shows_nothing_ends() -> None:
    """It runs, but there is no traffic: kept, after the watch period and the deadline from the takeover."""
    controller = taken_over(WATCH)
    ends = LED + SETTINGS.watch_s + SETTINGS.rollout_deadline_s
    keep_reporting(controller, {"a": 2}, LED, ends - 1.0)
    assert controller.fleet == WATCH
    keep_reporting(controller, {"a": 2}, ends - 1.0, ends)
    assert (controller.fleet.stage, controller.fleet.serving_version) == ("steady", 2)


def test_the_watch_of_a_draft_that_nobody_runs_is_rolled_back() -> None:
    """Nobody was heard of, or only nodes that run another one."""
    ends = LED + SETTINGS.watch_s + SETTINGS.rollout_deadline_s
    for versions in ({}, {"a": 1}):
        controller = taken_over(WATCH)
        keep_reporting(controller, versions, LED, ends - 1.0)
        tick(controller, LED, ends - 1.0)
        assert controller.fleet == WATCH
        controller.handle(Tick(ends))
        assert (controller.fleet.serving_version, controller.fleet.refused) == (1, (2,))


def test_a_draft_with_nothing_to_show_is_watched_by_its_age_if_one_leader_saw_all_of_it() -> None:
    """A single node on which speculation is off: passed without live figures, so none are waited for."""
    controller = Controller(SETTINGS)
    controller.handle(ControllerStarted(BEGAN - 100.0, "model", SETTINGS.to_map(), None))
    watch = FleetState(serving_version=2, serving_digest=digest_of(2), stage="watch", since=BEGAN, judged=(2,))
    controller.fleet = watch
    tick(controller, BEGAN, BEGAN + SETTINGS.watch_s)
    assert controller.fleet.stage == "watch", "nobody runs it"
    controller.handle(report("a", BEGAN + SETTINGS.watch_s, 2))
    assert controller.fleet.stage == "steady"


# Its steps


def fleet_of(num: int, accept: float) -> Fleet:
    nodes = [
        ModelledNode(f"node-{index}", lambda v, t: accept if v else 0.0, lambda t: 4, random.Random(index))
        for index in range(num)
    ]
    return Fleet(nodes, PolicySettings(max_batch_size=8))


def test_a_canary_that_was_not_tried_yet_is_tried_by_the_next_leader() -> None:
    """Its leader died when it had asked for the swap: one that promises nothing has to show its chains too."""
    fleet = fleet_of(3, accept=0.1)
    fleet.run(20)
    fleet.publish(1, 1.1)
    fleet.take_over()
    fleet.run(40)
    assert (fleet.controller.fleet.serving_version, fleet.controller.fleet.refused) == (1, ())


def test_a_draft_that_was_not_tried_yet_is_tried_by_the_next_leader() -> None:
    """The fleet was about to be brought to it: nodes whose table is empty do not wait for an interval to be over."""
    fleet = fleet_of(3, accept=0.6)
    fleet.run(20)
    fleet.publish(1, 2.1)
    while fleet.controller.fleet.stage != "rest":
        fleet.run(1)
    untried = [node for node in fleet.nodes if node.desired is not None and node.desired.steps_table == ()]
    assert len(untried) == 2
    fleet.take_over()
    fleet.run(15)
    assert all(node.desired is not None and node.desired.steps_table for node in untried)


def test_a_canary_is_tried_again_until_it_has_shown_its_chains() -> None:
    """Traffic leaves the probed batch sizes before enough chains were seen: the next probe follows at once."""
    fleet = fleet_of(2, accept=0.1)
    for node in fleet.nodes:
        node.batch_size = lambda t: 1
    fleet.run(20)
    fleet.publish(1, 1.1)
    canary = next(node for node in fleet.nodes if node.name == fleet.controller.fleet.canary)
    while not (canary.desired is not None and canary.desired.steps_table):
        fleet.run(1)
    for node in fleet.nodes:
        node.batch_size = lambda t: 8
    fleet.run(55)
    assert fleet.controller.fleet.serving_version == 1


# What collects and trains


def test_what_algorithm_1_knew_goes_on() -> None:
    """Collection that was off stays off, the averages are at most a copy of the state old, a shift is not forgotten."""
    fleet = fleet_of(1, accept=0.6)
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(100)
    fleet.publish(2, 2.0, serving=2.1)
    fleet.run(100)
    before = fleet.controller.collection
    assert not before.wanted and before.num_measurements > SETTINGS.shift_initial
    fleet.take_over()
    after = fleet.controller.collection
    assert not after.wanted and before.num_measurements - after.num_measurements <= fleet.settings.keep_state_s
    fleet.nodes[0].accept_prob = lambda v, t: 0.35
    while not fleet.controller.collection.shifted:
        fleet.run(1)
    fleet.take_over()
    assert fleet.controller.collection.shifted and fleet.controller.collection.wanted
