"""The whole policy against modelled nodes: does it speculate when that pays, and only then?"""

import itertools
import math

import pytest

from tests.unit.policy.simulated_fleet import Fleet, one_node, served_over_plain, true_ratio
from tide_daemon.policy.instructions import SetServer

START = 1000.0


def with_draft(accept_prob: float, fleet: Fleet, at: int = 20) -> Fleet:
    fleet.run(at)
    fleet.publish(1, 1 + accept_prob + accept_prob**2 + accept_prob**3)
    return fleet


def prob_of_ratio(batch_size: int, ratio: float) -> float:
    """Accept probability at which the best chain reaches this ratio to plain."""
    low, high = 0.0, 0.99
    for _ in range(40):
        middle = (low + high) / 2
        if max(true_ratio(batch_size, num_steps, middle) for num_steps in range(1, 6)) < ratio:
            low = middle
        else:
            high = middle
    return low


def num_changes(fleet: Fleet, since: float) -> int:
    steps = [each[1] for each in fleet.nodes[0].history if each[0] >= since]
    return sum(a != b for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_a_good_draft_is_used_soon_and_well(batch_size: int) -> None:
    """Within 10 s of being in it speculates, and gets within 5% of the best chain length."""
    fleet = with_draft(0.6, one_node(lambda v, t: 0.6 if v else 0.0, lambda t: batch_size))
    fleet.run(120)
    best = max(true_ratio(batch_size, num_steps, 0.6) for num_steps in range(1, 6))
    swapped = next(at for at, steps, _, _ in fleet.nodes[0].history if steps > 0)
    assert swapped <= START + 20 + 5
    assert served_over_plain(fleet.nodes[0], START + 60) >= 0.95 * best


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_a_stale_draft_is_switched_off(batch_size: int) -> None:
    """Traffic changes to something the draft knows nothing of: off within 10 s, under 2% lost over two minutes."""
    accept = {True: 0.65, False: 0.05}
    fleet = with_draft(0.65, one_node(lambda v, t: accept[t < START + 200] if v else 0.0, lambda t: batch_size))
    fleet.run(180)
    assert fleet.controller.state_map()["nodes"]["node-a"]["num_steps"] > 0
    fleet.run(10)
    assert fleet.controller.state_map()["nodes"]["node-a"]["num_steps"] == 0
    fleet.run(110)
    assert served_over_plain(fleet.nodes[0], START + 200) >= 0.98


def test_a_stale_draft_that_still_pays_gets_shorter_chains() -> None:
    """At batch 8 the paper's figure of a draft out of its workload: fewer steps rather than a loss."""
    fleet = with_draft(0.7, one_node(lambda v, t: (0.7 if t < START + 200 else 0.3) if v else 0.0, lambda t: 8))
    fleet.run(480)
    assert fleet.controller.state_map()["nodes"]["node-a"]["num_steps"] == 1
    assert served_over_plain(fleet.nodes[0], START + 220) >= 1.03


def test_off_comes_back_when_traffic_does() -> None:
    """Code, then something else, then code again with the same draft: a probe finds out within the interval."""

    def accept(version: int, at: float) -> float:
        return 0.0 if version == 0 else 0.65 if not START + 200 <= at < START + 320 else 0.05

    fleet = with_draft(0.65, one_node(accept, lambda t: 4))
    fleet.run(440)
    assert fleet.controller.state_map()["nodes"]["node-a"]["num_steps"] > 0
    assert served_over_plain(fleet.nodes[0], START + 200, START + 320) >= 0.98


def test_a_new_good_draft_ends_off_at_once() -> None:
    """Off under version 1; version 2 knows the traffic and is tried as soon as it is in."""
    fleet = with_draft(0.1, one_node(lambda v, t: {0: 0.0, 1: 0.05, 2: 0.6}[v], lambda t: 8))
    fleet.run(200)
    assert not fleet.controller.state_map()["nodes"]["node-a"]["steps_table"]
    fleet.publish(2, 2.1, serving=1.1)
    fleet.run(15)
    assert fleet.controller.state_map()["nodes"]["node-a"]["num_steps"] > 0


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("ratio", [0.95, 0.98, 1.0, 1.02, 1.05])
def test_break_even_does_not_flap_and_does_not_cost(batch_size: int, ratio: float) -> None:
    """Sitting on the break-even point for 15 minutes: at most a change a minute, at most 1% below plain."""
    prob = prob_of_ratio(batch_size, ratio)
    for seed in (1, 2):
        fleet = with_draft(prob + 0.05, one_node(lambda v, t: prob if v else 0.0, lambda t: batch_size, seed=seed))
        fleet.run(900)
        assert num_changes(fleet, START + 30) / 15 <= 1.2
        assert served_over_plain(fleet.nodes[0], START + 30) >= 0.99


def test_probing_is_paid_from_its_account() -> None:
    """A hopeless draft for an hour: the loss stays within the share of busy time plus the initial credit."""
    fleet = with_draft(0.5, one_node(lambda v, t: 0.02 if v else 0.0, lambda t: 8))
    fleet.run(3600)
    node = fleet.controller.state_map()["nodes"]["node-a"]
    assert node["probe_lost_s"] <= 0.005 * 3600 + 1.0 + 2.0
    assert served_over_plain(fleet.nodes[0], START + 20) >= 0.995
    tries = [item for item in fleet.instructions(SetServer) if isinstance(item, SetServer) and "trying" in item.reason]
    assert len(tries) >= 3


def test_a_slower_machine_is_not_mistaken_for_a_worse_draft() -> None:
    """Everything takes 30% longer from one moment on: speculation stays on."""
    fleet = with_draft(
        0.4, one_node(lambda v, t: 0.4 if v else 0.0, lambda t: 4, slowness=lambda t: 1.0 if t < START + 150 else 1.3)
    )
    fleet.run(140)
    fleet.run(120)
    off = [row for row in fleet.nodes[0].history if row[0] >= START + 60 and row[1] == 0]
    assert len(off) <= 10  # re-measuring plain decoding only


def test_each_batch_size_has_its_own_entry() -> None:
    """A middling draft pays at batch 1 and not at batch 8: the table says so, and load moves between them freely."""
    load = {0: 1, 1: 8}
    fleet = with_draft(0.22, one_node(lambda v, t: 0.22 if v else 0.0, lambda t: load[int(t // 20) % 2]))
    fleet.run(400)
    rows = [(at, steps) for at, steps, _, _ in fleet.nodes[0].history if at >= START + 250]
    by_batch = {b: [steps for at, steps in rows if load[int(at // 20) % 2] == b] for b in (1, 8)}
    assert sum(steps > 0 for steps in by_batch[1]) >= 0.8 * len(by_batch[1])
    assert sum(steps > 0 for steps in by_batch[8]) <= 0.2 * len(by_batch[8])
    assert served_over_plain(fleet.nodes[0], START + 60) >= 0.995


def test_pauses_between_bursts_do_not_age_what_was_seen() -> None:
    """Bursts of 3 s with a minute between: a probe goes on over the pause, and what it saw still counts after it."""
    fleet = with_draft(0.65, one_node(lambda v, t: 0.65 if v else 0.0, lambda t: 4 if t % 64 < 3 else 0))
    fleet.run(64 * 5)
    busy = [steps for at, steps, _, _ in fleet.nodes[0].history if at >= START + 64 * 3 and at % 64 < 3]
    assert busy and all(steps > 0 for steps in busy)


def test_an_idle_node_is_left_alone() -> None:
    """No traffic, no probes, no new generations."""
    fleet = with_draft(0.6, one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 1 if t < START + 100 else 0))
    fleet.run(150)
    before = len(fleet.instructions(SetServer))
    fleet.run(300)
    assert len(fleet.instructions(SetServer)) == before


def test_every_instruction_has_a_reason_and_finite_numbers() -> None:
    """What is journalled can be read and encoded."""
    fleet = with_draft(0.6, one_node(lambda v, t: (0.6 if t < START + 100 else 0.1) if v else 0.0, lambda t: 8))
    fleet.run(300)
    for _, instructions in fleet.entries:
        for instruction in instructions:
            assert instruction.reason and instruction.cause
            assert all(math.isfinite(number) for number in instruction.numbers.values())


def test_an_idle_node_with_a_draft_to_try_has_settled() -> None:
    """Nobody asks it anything, so nothing will be seen soon: a rollout on it need not wait for its deadline."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4 if t < START + 2 else 0)
    fleet.run(30)
    fleet.publish(1, 2.1)
    fleet.run(80)
    assert fleet.controller.fleet.serving_version == 1


def test_off_is_not_for_ever_where_a_probe_seems_to_cost_more_than_can_be_saved_up() -> None:
    """At 0.3 of plain four seconds of probing lose 2.8 s, above the account's cap: tried once the account is full."""
    fleet = with_draft(0.6, one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4, prior_draft_cost=5.0))
    fleet.run(600)
    assert fleet.controller.state_map()["nodes"]["node-a"]["num_steps"] > 0


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_cold_first_step_does_not_keep_a_good_draft_off(batch_size: int) -> None:
    """The first second of drafting takes five times as long: on within three minutes all the same."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: batch_size)
    node = fleet.nodes[0]

    def slowness(at: float) -> float:
        drafts = node.version and node._obeys is not None and node._obeys.steps_table
        return 5.0 if drafts and not any(steps > 0 for _, steps, _, _ in node.history) else 1.0

    node.slowness = slowness
    with_draft(0.6, fleet)
    fleet.run(180)
    assert fleet.controller.state_map()["nodes"]["node-a"]["num_steps"] > 0


def test_a_canary_is_tried_though_the_account_is_overdrawn() -> None:
    """What a probe before overran is paid back later: no rollout fails for it."""
    fleet = one_node(lambda v, t: 0.6 if v else 0.0, lambda t: 4)
    fleet.run(20)
    node = fleet.controller.nodes["node-a"]
    speculation = fleet.controller.speculation["node-a"]
    fleet.publish(1, 2.1)
    fleet.run(1)
    speculation.account.spend(5.0)
    node.running_version = 1
    assert speculation.plan(fleet.at, may_speculate=True, must_probe=False) == ()
    assert speculation.plan(fleet.at, may_speculate=True, must_probe=True) != ()
