"""Journals made by the real policy on modelled nodes, as decisions of a bus."""

from collections.abc import Sequence

from tests.unit.policy.simulated_fleet import Fleet, one_node
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.policy.events import Event, event_to_map
from tide_daemon.policy.instructions import Instruction, instruction_to_map
from tide_daemon.roles.controller_records import summary
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import Decision

MODEL = "target"


def decisions_of(
    entries: Sequence[tuple[Event, list[Instruction]]], token: int = 7, controller: str = "first"
) -> list[Decision]:
    """What a controller with that token would have journalled."""
    decisions = []
    for sequence, (event, instructions) in enumerate(entries, start=1):
        reason, numbers = summary(event, instructions)
        maps = tuple(instruction_to_map(item) for item in instructions)
        decisions.append(
            Decision(sequence, token, controller, event.at, event_to_map(event), maps, reason, dict(numbers))
        )
    return decisions


def learning_fleet(seconds: int = 60, accept_prob: float = 0.8) -> Fleet:
    """One node at batch 4: plain, a draft is promoted and rolled out, then so many seconds."""
    fleet = one_node(lambda version, at: accept_prob if version else 0.0, lambda at: 4)
    fleet.run(20)
    fleet.publish(1, 1 + accept_prob + accept_prob**2 + accept_prob**3)
    fleet.run(seconds)
    return fleet


async def broker_with(decisions: Sequence[Decision]) -> MemoryBroker:
    """An in-memory broker that holds them as the journal."""
    broker = MemoryBroker(build_topology(TopologyLimits()))
    bus = MemoryBus(broker)
    for decision in decisions:
        await bus.publish(subjects.journal(MODEL), envelope.encode(decision))
    await bus.close()
    return broker
