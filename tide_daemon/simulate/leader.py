"""The leading controller: tide_daemon.policy.Controller, and around it what roles/controller.py does with the bus.

What outlives a controller is what stands on the bus: the newest FleetMoved of the journal, desired
state by node, and the manifests. A successor begins with the first, learns of the second before a
node's first report, and reads all manifests again; it knows nothing else. Each event is journalled
before its instructions are carried out, so a controller can be lost between two events only.
"""

from tide_daemon.policy.collection import CollectionState
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    CandidatePublished,
    ControllerStarted,
    Event,
    FleetState,
    ServerFound,
    ServerReported,
    Tick,
    TrainerFound,
    TrainerReported,
)
from tide_daemon.policy.instructions import FleetMoved, Instruction, Judged, SetServer, SetTrainer
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.simulate.tally import Tally


class Leader:
    """Turns events into instructions while somebody leads.

    Args:
        fleet: what the journal holds at the start.
        checked: check the policy's invariants after every event; its cost grows with the fleet.

    Attributes:
        servers, trainers: desired state by name.
    """

    needs_reports = True

    def __init__(
        self, settings: PolicySettings, fleet: FleetState | None, tally: Tally, *, checked: bool = False
    ) -> None:
        self.servers: dict[str, SetServer] = {}
        self.trainers: dict[str, SetTrainer] = {}
        self._settings = settings
        self._fleet = fleet
        self._collection: CollectionState | None = None
        self._tally = tally
        self._checked = checked
        self._manifests: list[CandidatePublished] = []
        self._controller: Controller | None = None

    def take_over(self, at: float) -> list[Instruction]:
        """A new controller begins to lead with what stands on the bus."""
        self._controller = Controller(self._settings)
        settings = self._settings.to_map()
        made = self._handle(ControllerStarted(at, "simulated", settings, self._fleet, self._collection))
        for manifest in self._manifests:
            made += self._handle(manifest)
        return made

    def lose(self) -> None:
        """The controller is gone, and with it all that it had in memory."""
        self._controller = None

    def tell(self, event: Event) -> list[Instruction]:
        """What a message to the controller leads to; nothing while nobody leads."""
        if isinstance(event, CandidatePublished):
            self._manifests.append(event)
        if self._controller is None:
            return []
        made: list[Instruction] = []
        if not self._controller.knows(event):
            match event:
                case ServerReported() if (server := self.servers.get(event.node)) is not None:
                    made += self._handle(_server_found(server, event.at))
                case TrainerReported() if (trainer := self.trainers.get(event.trainer)) is not None:
                    made += self._handle(_trainer_found(trainer, event.at))
        return made + self._handle(event)

    def tick(self, at: float) -> list[Instruction]:
        """Time went on."""
        return self.tell(Tick(at))

    def _handle(self, event: Event) -> list[Instruction]:
        assert self._controller is not None
        made = self._controller.handle(event)
        if self._checked:
            self._controller.check_invariants()
        for instruction in made:
            self._keep(instruction, event.at)
        return made

    def _keep(self, instruction: Instruction, at: float) -> None:
        """Journal and desired state, and the decisions that a person would want to see."""
        match instruction:
            case SetServer():
                self.servers[instruction.node] = instruction
                self._tally.counts.instructions += 1
            case SetTrainer():
                before = self.trainers.get(instruction.trainer)
                if instruction.pool_scoring > (0 if before is None else before.pool_scoring):
                    self._tally.counts.pool_scorings += 1
                if instruction.round > (0 if before is None else before.round):
                    self._tally.decided(at, "round", f"{instruction.trainer}: {instruction.reason}")
                self.trainers[instruction.trainer] = instruction
            case Judged(from_pool=True):
                text = f"version {instruction.version}, served before: {instruction.verdict}, {instruction.reason}"
                self._tally.decided(at, "pool", text)
                self._tally.counts.pool_promoted += instruction.verdict == "promote"
            case Judged():
                self._tally.decided(at, instruction.verdict, f"version {instruction.version}: {instruction.reason}")
                self._tally.counts.promoted += instruction.verdict == "promote"
                self._tally.counts.refused += instruction.verdict == "reject"
            case FleetMoved():
                if self._fleet is not None and instruction.fleet.refused != self._fleet.refused:
                    self._tally.counts.rolled_back += 1
                if instruction.fleet != self._fleet and not instruction.reason.startswith("version"):
                    self._tally.decided(at, instruction.fleet.stage, instruction.reason)
                self._fleet, self._collection = instruction.fleet, instruction.collection
                self._tally.serving(at, instruction.fleet.serving_version)


def _server_found(desired: SetServer, at: float) -> ServerFound:
    return ServerFound(
        at, desired.node, desired.generation, desired.draft_version, desired.draft_digest, desired.steps_table,
        desired.collect, desired.sample_rate, desired.preferred, desired.preferred_rate,
    )  # fmt: skip


def _trainer_found(desired: SetTrainer, at: float) -> TrainerFound:
    return TrainerFound(
        at, desired.trainer, desired.generation, desired.round, desired.serving_version, desired.serving_digest,
        desired.pool, desired.pool_scoring,
    )  # fmt: skip
