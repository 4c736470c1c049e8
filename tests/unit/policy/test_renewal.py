"""A controller that renews its reign goes on as if it had not: no steps, drafts or captures change for it."""

import random

import pytest

from tests.unit.policy.simulated_fleet import Fleet, ModelledNode
from tide_daemon.policy.events import event_to_map
from tide_daemon.policy.instructions import SetServer, instruction_to_map
from tide_daemon.policy.replay import replay
from tide_daemon.policy.settings import PolicySettings

PAYS, LOSES = 0.75, 0.1


def steady_fleet(seed: int) -> Fleet:
    """Version 1 is served for minutes; it pays on two nodes of four, and one is idle."""
    nodes = [
        ModelledNode(
            name,
            lambda version, at, prob=prob: prob if version else 0.0,
            lambda at, batch=batch: batch,
            random.Random(seed * 10 + index),
        )  # type: ignore[misc]
        for index, (name, prob, batch) in enumerate(
            [("node-a", PAYS, 4), ("node-b", LOSES, 4), ("node-c", PAYS, 1), ("node-d", PAYS, 0)]
        )
    ]
    fleet = Fleet(nodes, PolicySettings(max_batch_size=8, watch_s=30.0))
    fleet.run(30)
    fleet.publish(1, 2.2)
    fleet.run(400)
    assert (fleet.controller.fleet.stage, fleet.controller.fleet.serving_version) == ("steady", 1)
    return fleet


def asked_since(fleet: Fleet, num_entries: int) -> list[SetServer]:
    return [item for _, items in fleet.entries[num_entries:] for item in items if isinstance(item, SetServer)]


def settled(fleet: Fleet) -> None:
    """Until no node is probing: a probe under way is given up by a renewal, and that is asked for."""
    while any(each.probe is not None for each in fleet.controller.speculation.values()):
        fleet.run(1)


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_asked_anew(seed: int) -> None:
    """A probe comes when it would have come: none of the first, at a takeover's price."""
    fleet, other = steady_fleet(seed), steady_fleet(seed)
    settled(fleet)
    settled(other)
    tables = {name: asked.steps_table for name, asked in fleet.controller.asked.items()}
    assert tables["node-a"] and tables["node-c"] and not tables["node-b"]
    assert fleet.controller.is_quiet()
    known = fleet.controller.state_map()
    begin, begin_other = len(fleet.entries), len(other.entries)
    fleet.renew()
    assert not asked_since(fleet, begin)
    assert {
        name: (node["generation"], node["steps_table"]) for name, node in fleet.controller.state_map()["nodes"].items()
    } == {name: (node["generation"], node["steps_table"]) for name, node in known["nodes"].items()}
    fleet.run(120)
    other.run(120)
    after, without = asked_since(fleet, begin), asked_since(other, begin_other)
    assert [(item.node, item.generation, item.steps_table) for item in after] == [
        (item.node, item.generation, item.steps_table) for item in without
    ]


def test_a_reign_after_a_renewal_replays_by_itself() -> None:
    """In the middle of a rollout too, from its own first entry on."""
    fleet = steady_fleet(1)
    fleet.publish(2, 3.0, serving=2.2)
    fleet.run(2)
    assert fleet.controller.fleet.stage == "canary" and not fleet.controller.is_quiet()
    begin = len(fleet.entries)
    fleet.renew()
    fleet.run(200)
    assert fleet.controller.fleet.serving_version == 2
    rest = [(event_to_map(event), tuple(map(instruction_to_map, items))) for event, items in fleet.entries[begin:]]
    outcome = replay(rest)
    assert outcome.difference is None and outcome.num_compared == len(rest)
