"""A fleet as large as is supported goes through a rollout, and every decision fits on the wire."""

from tests.property.policy.fleet_world import Node, Standing, digest_of, paired_scores
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    CandidatePublished,
    ControllerStarted,
    Event,
    Tick,
    TrainerReported,
    event_to_map,
)
from tide_daemon.policy.instructions import SetServer, SetTrainer, instruction_to_map
from tide_daemon.policy.replay import replay
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.roles.controller_records import summary
from tide_daemon.wire import envelope
from tide_daemon.wire.records import Decision

SETTINGS = PolicySettings(max_batch_size=8, watch_min_steps=200, watch_s=3.0, settle_s=1.0, lost_after_s=3.0)


class LargeFleet:
    """Nodes and trainers that obey and report once a second; each event is journalled as the controller's role does.

    Attributes:
        busy: the nodes with traffic.
        told: version that each trainer was told is served.
    """

    def __init__(self, num_servers: int, num_trainers: int) -> None:
        self.nodes = {f"node-{index:05d}": Node(f"node-{index:05d}") for index in range(num_servers)}
        self.busy = next(iter(self.nodes))
        self.told = {f"trainer-{index:04d}": -1 for index in range(num_trainers)}
        self.at, self.sequence = 1000.0, 0
        self.controller = Controller(SETTINGS)
        self.journal: list[Decision] = []
        self.give(ControllerStarted(self.at, "model", SETTINGS.to_map(), None))

    def give(self, event: Event) -> None:
        instructions = self.controller.handle(event)
        maps = tuple(instruction_to_map(item) for item in instructions)
        self.sequence += 1
        entry = Decision(self.sequence, 1, "first", event.at, event_to_map(event), maps, *summary(event, instructions))
        if instructions:
            assert envelope.decode(envelope.encode(entry)) == entry
        self.journal.append(entry)
        for item in instructions:
            if isinstance(item, SetServer):
                self.nodes[item.node].offer(Standing(1, item))
            elif isinstance(item, SetTrainer):
                self.told[item.trainer] = item.serving_version

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.at += 1.0
            for node in self.nodes.values():
                node.swap()
                self.give(node.report(self.at, 0.8, 1.0 if node.name == self.busy else 0.0))
            for name in self.told:
                self.give(TrainerReported(self.at, name, int(self.at), "waiting", 0, 0, 0, 0))
            self.give(Tick(self.at))
            self.controller.check_invariants()


def rolls_out(fleet: LargeFleet) -> None:
    """A draft reaches everybody, and the journal replays."""
    fleet.run(5)
    scores = paired_scores(60.0, 0.8, 12)
    fleet.give(CandidatePublished(fleet.at, 1, digest_of(1), 0, "trainer-0000", 0, 3, scores))
    stages = []
    for _ in range(60):
        fleet.run(1)
        stages.append(fleet.controller.fleet.stage)
        if stages[-1] == "steady":
            break
    assert {"canary", "watch"} <= set(stages) and fleet.controller.fleet.serving_version == 1
    assert {(node.version, node.digest) for node in fleet.nodes.values()} == {(1, digest_of(1))}
    assert set(fleet.told.values()) == {1}
    outcome = replay((entry.event, entry.instructions) for entry in fleet.journal)
    assert outcome.difference is None and outcome.num_compared == len(fleet.journal)


def test_a_thousand_servers_and_fifty_trainers() -> None:
    rolls_out(LargeFleet(1000, 50))


def test_as_many_as_are_supported() -> None:
    fleet = LargeFleet(2000, 300)
    rolls_out(fleet)
    assert max(len(entry.instructions) for entry in fleet.journal) < 800
