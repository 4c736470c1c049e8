"""A fleet around the policy for stateful tests: nodes and a trainer that obey, a bus that loses and repeats, leaders
that die after any write and are rebuilt from what was written. Nothing random: the tests choose.

The bus is what roles/controller.py sees of it: a journal and one desired state a node, both compare-and-set, so a
leader that was replaced cannot write. Nodes refuse older desired state as roles/convergence.py does.
"""

from dataclasses import dataclass, field
from typing import Any

from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    NO_DRAFT,
    CandidatePublished,
    ControllerStarted,
    DraftFailed,
    Event,
    FleetState,
    PoolScored,
    RequestScored,
    ServerFound,
    ServerReported,
    ShadowScored,
    StepCount,
    Tick,
    TrainerFound,
    TrainerReported,
    event_to_map,
)
from tide_daemon.policy.instructions import FleetMoved, Instruction, Judged, SetServer, SetTrainer, instruction_to_map
from tide_daemon.policy.settings import PolicySettings

TRAINER = "trainer-a"
BATCH = 4
_PLAIN_S, _DRAFT_S = 0.05, 0.008


def digest_of(version: int) -> str:
    return f"{version:064x}" if version else ""


@dataclass(frozen=True)
class Written:
    """An entry of the journal."""

    token: int
    event: Event
    instructions: tuple[Instruction, ...]

    def maps(self) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
        return event_to_map(self.event), tuple(instruction_to_map(item) for item in self.instructions)


@dataclass(frozen=True)
class Standing:
    """Desired state as it stands on the bus."""

    token: int
    instruction: SetServer | SetTrainer

    @property
    def place(self) -> tuple[int, int]:
        return self.token, self.instruction.generation


@dataclass
class Node:
    """A server node.

    Attributes:
        corrupts: what is swapped in reads back with another digest.
        trouble: "missing" when no draft can be fetched, "broker" when none can be asked for.
        failed, num_failed: what speaks against the draft that it tries, and the longest row of such tries by version.
        chains: delivered chains by version as its manifest has it, without the report in which it first shows.
    """

    name: str
    engine: str = "ready"
    version: int = NO_DRAFT
    digest: str = ""
    corrupts: bool = False
    trouble: str = ""
    failed: DraftFailed | None = None
    num_failed: dict[int, int] = field(default_factory=dict)
    held: Standing | None = None
    sequence: int = 0
    delivered: tuple[int, str] | None = None
    chains: dict[int, int] = field(default_factory=dict)

    def offer(self, standing: Standing) -> bool:
        """Take desired state unless it is older than what is held."""
        if self.held is not None and standing.place < self.held.place:
            return False
        self.held = standing
        return True

    def swap(self) -> None:
        """Run what is held, if it names a draft, the engine is up and nothing is in the way."""
        if self.held is None or self.engine != "ready":
            return
        wanted = self.held.instruction
        assert isinstance(wanted, SetServer)
        before, self.failed = self.failed, None
        version = wanted.draft_version
        runs = (self.version, self.digest) == (version, wanted.draft_digest)
        if self.trouble == "missing" and version != NO_DRAFT and not runs:
            tries = before.num_tries + 1 if before is not None and before.version == version else 1
            self.failed = DraftFailed(version, wanted.draft_digest, tries, f"draft {version} is not on the bus")
            self.num_failed[version] = max(tries, self.num_failed.get(version, 0))
        elif version != NO_DRAFT and (runs or not self.trouble):
            self.version = wanted.draft_version
            self.digest = digest_of(self.version + 1000) if self.corrupts else wanted.draft_digest

    def report(self, at: float, accept_prob: float, seconds: float) -> ServerReported:
        """What it did for so many seconds under the steps it was asked for."""
        self.sequence += 1
        steps = 0
        if self.held is not None and self.version != NO_DRAFT:
            table = self.held.instruction.steps_table  # type: ignore[union-attr]
            steps = next((num for largest, num in table if largest >= BATCH), 0)
        counts: tuple[StepCount, ...] = ()
        if self.engine == "ready" and seconds > 0.0:
            counts = (_served(steps, accept_prob if self.version else 0.0, seconds),)
        return ServerReported(
            at, self.name, self.sequence, self.engine, self.version, self.digest, 0, max(seconds, 0.001), counts,
            draft_failed=self.failed,
        )  # fmt: skip


def _served(steps: int, accept_prob: float, seconds: float) -> StepCount:
    step_s = _PLAIN_S + steps * _DRAFT_S
    num_verifies = max(1, int(seconds / step_s))
    accepted, reached = [], num_verifies * BATCH
    for _ in range(steps):
        reached = int(reached * accept_prob)
        accepted.append(reached)
    tokens = num_verifies * BATCH + sum(accepted)
    return StepCount(
        BATCH, steps, num_verifies, tokens, tuple(accepted), step_s * num_verifies, _PLAIN_S * num_verifies, step_s
    )


class LeaderDiedError(Exception):
    """The leader was killed before a write."""


class World:
    """Everything around the leader.

    Attributes:
        writes_left: writes until it dies, None for a long life.
        next_lives: the same for its successors, the nearest first.
        passed: drafts that passed their canary, and the chains that a node had shown of them by then.
        passed_alone: those of them that passed while no other node was there, as the journal says.
        heard: drafts that a node reported to the present leader, as their manifests have them.
    """

    def __init__(self, settings: PolicySettings, names: tuple[str, ...]) -> None:
        self.settings = settings
        self.at = 1000.0
        self.nodes = {name: Node(name) for name in names}
        self.journal: list[Written] = []
        self.desired: dict[str, Standing] = {}
        self.manifests: dict[int, CandidatePublished] = {}
        self.last_delivered: Event | None = None
        self.writes_left: int | None = None
        self.next_lives: list[int] = []
        self.num_deaths = 0
        self.token = 0
        self.trainer_round = 0
        self.trainer_held: Standing | None = None
        self.new_tokens = 0
        self.trainer_sequence = 0
        self.passed: dict[int, int] = {}
        self.passed_alone: set[int] = set()
        self.heard: set[int] = set()
        self.leader = Controller(settings)
        self.lead()

    # One reign

    def lead(self) -> None:
        """A new leader begins as roles/controller.py does; it may die while it begins."""
        while True:
            self.token += 1
            self.leader, self.heard = Controller(self.settings), set()
            newest = next((e for e in reversed(self.journal) if not isinstance(e.event, ControllerStarted)), None)
            try:
                move = self.newest_move()
                kept = (None, None) if move is None else (move.fleet, move.collection)
                self._decide(ControllerStarted(self.at, "model", self.settings.to_map(), *kept))
                for instruction in newest.instructions if newest is not None else ():
                    if isinstance(instruction, SetServer | SetTrainer):
                        self._carry_on(instruction)
                return
            except LeaderDiedError:
                self.num_deaths += 1

    def renew(self) -> None:
        """The leader begins a new reign under its token; it may die while it does."""
        events = self.leader.renewal("model")
        self.leader, self.heard = Controller(self.settings), set()
        self.known = {event.node for event in events if isinstance(event, ServerFound)}
        try:
            for event in events:
                self._decide(event)
        except LeaderDiedError:
            self.num_deaths += 1
            self.lead()

    def deliver(self, event: Event) -> None:
        """An event reaches the leader; when it dies of it, the next one is there."""
        self.last_delivered = event
        try:
            self._find(event)
            self._decide(event)
        except LeaderDiedError:
            self.num_deaths += 1
            self.lead()

    def newest_move(self) -> FleetMoved | None:
        moves = [item for entry in self.journal for item in entry.instructions if isinstance(item, FleetMoved)]
        return moves[-1] if moves else None

    def _find(self, event: Event) -> None:
        name = event.node if isinstance(event, ServerReported) else getattr(event, "trainer", "")
        if self.leader.knows(event):
            return
        standing = self.desired.get(name)
        if standing is None:
            return
        wanted = standing.instruction
        if isinstance(wanted, SetServer):
            found: Event = ServerFound(
                self.at, name, wanted.generation, wanted.draft_version, wanted.draft_digest, wanted.steps_table,
                wanted.collect, wanted.sample_rate, wanted.preferred, wanted.preferred_rate,
            )  # fmt: skip
        else:
            found = TrainerFound(
                self.at, name, wanted.generation, wanted.round, wanted.serving_version, wanted.serving_digest,
                wanted.pool, wanted.pool_scoring,
            )  # fmt: skip
        self._decide(found)

    def _decide(self, event: Event) -> None:
        if isinstance(event, ServerReported) and event.running_digest == digest_of(event.running_version):
            self.heard.add(event.running_version)
        before = self.leader.fleet
        instructions = self.leader.handle(event)
        self.leader.check_invariants()
        if not isinstance(event, ControllerStarted):
            self._check_passed(before, self.leader.fleet)
        self._write()
        self.journal.append(Written(self.token, event, tuple(instructions)))
        for instruction in instructions:
            if isinstance(instruction, FleetMoved) and instruction.fleet.stage in ("rest", "watch"):
                version = instruction.fleet.serving_version
                self.passed.setdefault(version, max(node.chains.get(version, 0) for node in self.nodes.values()))
                if "is the only node" in instruction.reason:
                    self.passed_alone.add(version)
            if isinstance(instruction, SetServer | SetTrainer):
                self._write()
                self._stand(instruction)

    def _check_passed(self, before: FleetState, after: FleetState) -> None:
        """A stage passes only under a leader that heard a node say that it runs the draft."""
        version = before.candidate_version or before.serving_version
        onward = (before.stage, after.stage) in {("canary", "rest"), ("rest", "watch"), ("watch", "steady")}
        if onward and version not in after.refused:
            assert version in self.heard, f"{before.stage} of {version} passed and nobody was heard to run it"

    def _carry_on(self, instruction: SetServer | SetTrainer) -> None:
        standing = self.desired.get(name_of(instruction))
        if standing is None or standing.instruction.generation < instruction.generation:
            self._write()
            self._stand(instruction)

    def _write(self) -> None:
        if self.writes_left is None:
            return
        if self.writes_left == 0:
            self.writes_left = self.next_lives.pop(0) if self.next_lives else None
            raise LeaderDiedError
        self.writes_left -= 1

    def _stand(self, instruction: SetServer | SetTrainer) -> None:
        self.desired[name_of(instruction)] = Standing(self.token, instruction)

    # What nodes and the trainer do

    def node_reads(self, name: str) -> None:
        if name in self.desired:
            assert self.nodes[name].offer(self.desired[name]), "what stands on the bus was refused by its node"

    def node_reports(self, name: str, accept_prob: float, seconds: float) -> ServerReported:
        return self.nodes[name].report(self.at, accept_prob, seconds)

    def count_delivered(self, event: ServerReported) -> None:
        """Book the chains that a report showed of the draft that ran before and after it."""
        node = self.nodes[event.node]
        running = (event.running_version, event.running_digest)
        if running[1] == digest_of(running[0]):
            node.chains.setdefault(running[0], 0)
        if node.delivered == running and running[1] == digest_of(running[0]):
            chains = sum(step.num_proposals for step in event.steps if step.num_steps > 0)
            node.chains[event.running_version] = node.chains.get(event.running_version, 0) + chains
        node.delivered = running

    def trainer_reads(self) -> None:
        standing = self.desired.get(TRAINER)
        if standing is not None and (self.trainer_held is None or standing.place > self.trainer_held.place):
            self.trainer_held = standing
        held = self.trainer_held
        if held is not None and held.instruction.round > self.trainer_round:  # type: ignore[union-attr]
            self.trainer_round, self.new_tokens = held.instruction.round, 0  # type: ignore[union-attr]

    def trainer_reports(self, state: str, shadow: float = 0.0, gain: float | None = None) -> TrainerReported:
        """`shadow`: held-out accept length of the serving draft; `gain`: what earlier drafts have over it, if asked."""
        self.trainer_sequence += 1
        wanted = None if self.trainer_held is None else self.trainer_held.instruction
        assert wanted is None or isinstance(wanted, SetTrainer)
        serving = 0 if wanted is None else wanted.serving_version
        scores = () if shadow == 0.0 else (ShadowScored("", 8, 400, 400 * shadow + self.trainer_sequence % 2),)
        number, scored = 0, ()
        if wanted is not None and wanted.pool_scoring and gain is not None:
            number = wanted.pool_scoring
            scored = tuple(
                PoolScored(
                    version, serving, 3, paired_scores(60.0 if serving == 0 else 110.0, gain + version / 100, 12)
                )
                for version, _ in wanted.pool
            )
        return TrainerReported(
            self.at, TRAINER, self.trainer_sequence, state, serving, 0, self.new_tokens, self.trainer_round,
            scores, number, scored,
        )  # fmt: skip

    def publish(self, gain: float, num_requests: int) -> CandidatePublished:
        """The next version's manifest, scored against what the trainer was told is served."""
        version = max(self.manifests, default=0) + 1
        parent = 0 if self.trainer_held is None else self.trainer_held.instruction.serving_version  # type: ignore[union-attr]
        base = 60.0 if parent == 0 else 110.0
        scores = paired_scores(base, gain, num_requests)
        manifest = CandidatePublished(self.at, version, digest_of(version), parent, TRAINER, 0, 3, scores)
        self.manifests[version] = manifest
        return manifest

    def tick(self) -> Tick:
        return Tick(self.at)

    # What the journal says

    def judged(self) -> list[int]:
        """Versions that were judged as candidates."""
        made = (item for entry in self.journal for item in entry.instructions)
        return [item.version for item in made if isinstance(item, Judged) and not item.from_pool]


def paired_scores(base: float, gain: float, num_requests: int) -> tuple[RequestScored, ...]:
    """60 chain starts a request; `base` tokens under the serving draft, `gain` accept length more under the other."""
    return tuple(
        RequestScored(f"{index:016x}", "", 60, base, max(60.0, min(240.0, base + 60 * gain + index % 3)))
        for index in range(num_requests)
    )


def name_of(instruction: SetServer | SetTrainer) -> str:
    return instruction.node if isinstance(instruction, SetServer) else instruction.trainer
