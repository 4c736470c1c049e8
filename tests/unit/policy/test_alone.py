"""A node on its own: it takes away steps that lose, adds none, and gives way when the controller is back."""

import random

from tests.unit.policy.simulated_fleet import ModelledNode, digest_of, one_node
from tide_daemon.policy.alone import Alone
from tide_daemon.policy.events import StepsTable
from tide_daemon.policy.instructions import SetServer
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.steps import read_table

SETTINGS = PolicySettings(max_batch_size=8, alone_after_s=15.0)
DESIRED: StepsTable = ((8, 3),)


def watched_node(accept: dict[str, float]) -> tuple[ModelledNode, Alone]:
    """A node at batch 8 that has seen a minute of plain decoding and a minute of speculation."""
    node = ModelledNode("a", lambda v, t: accept["prob"] if v else 0.0, lambda t: 8, random.Random(1), swap_s=0.0)
    alone = Alone("a", SETTINGS)
    serve(node, alone, 1000, 60, ())
    serve(node, alone, 1060, 60, DESIRED)
    return node, alone


def serve(node: ModelledNode, alone: Alone, begin: int, seconds: int, table: StepsTable) -> None:
    node.desired = SetServer("a", 1, 1, digest_of(1), table, True, 1.0, "test", "test", {})
    for at in range(begin, begin + seconds):
        report = node.run(float(at), 1.0)
        assert report is not None
        alone.observe(report)


def test_in_reach_what_is_desired_is_in_force() -> None:
    """However badly it does: that is the controller's to see."""
    accept = {"prob": 0.7}
    node, alone = watched_node(accept)
    accept["prob"] = 0.05
    serve(node, alone, 1120, 60, DESIRED)
    assert alone.table(1180.0, DESIRED, 14.9) == DESIRED


def test_alone_it_gives_up_steps_that_lose() -> None:
    """Traffic has left the draft behind and nobody is there to see it: plain decoding within seconds."""
    accept = {"prob": 0.7}
    node, alone = watched_node(accept)
    accept["prob"] = 0.05
    serve(node, alone, 1120, 20, DESIRED)
    assert alone.table(1140.0, DESIRED, 20.0) == ()
    assert alone.table(1141.0, DESIRED, 21.0) == ()


def test_alone_it_keeps_what_pays_and_adds_nothing() -> None:
    """A good draft speculates on; a batch size that was plain stays so."""
    node, alone = watched_node({"prob": 0.9})
    table: StepsTable = ((4, 0), (8, 2))
    serve(node, alone, 1120, 60, table)
    assert alone.table(1180.0, table, 60.0) == table


def test_when_the_controller_is_back_its_word_counts() -> None:
    """What the node chose by itself is forgotten."""
    accept = {"prob": 0.7}
    node, alone = watched_node(accept)
    accept["prob"] = 0.05
    serve(node, alone, 1120, 20, DESIRED)
    assert alone.table(1140.0, DESIRED, 20.0) == ()
    assert alone.table(1141.0, DESIRED, 0.0) == DESIRED


def test_it_agrees_with_the_controller() -> None:
    """By the same counters both switch off: the rule is one."""
    fleet = one_node(lambda v, t: (0.6 if t < 1120 else 0.05) if v else 0.0, lambda t: 8)
    alone = Alone("node-a", fleet.settings)
    fleet.run(20)
    fleet.publish(1, 2.1)
    fleet.run(160)
    for event, _ in fleet.entries:
        if type(event).__name__ == "ServerReported":
            alone.observe(event)  # type: ignore[arg-type]
    asked = fleet.controller.asked["node-a"].steps_table
    assert read_table(asked, (8,)) == {8: 0}
    assert read_table(alone.table(fleet.at, ((8, 3),), 60.0), (8,)) == {8: 0}
