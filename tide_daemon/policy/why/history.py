"""What is kept of a journal to explain it: bounded, oldest first, filled by `add`."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tide_daemon.policy.collection import CollectionState
from tide_daemon.policy.events import (
    NO_DRAFT,
    CandidatePublished,
    ControllerStarted,
    Event,
    FleetState,
    ServerFound,
    ServerReported,
    TrainerReported,
    event_from_map,
)
from tide_daemon.policy.instructions import FleetMoved, Instruction, Judged, SetServer, SetTrainer, instruction_from_map
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.workloads import Workloads

_Past = TypeVar("_Past")

_KEPT_REPORTS = 120
_KEPT_DECISIONS = 1000
_KEPT_TRIES = 5
_KEPT_MOVES = 200
_KEPT_VERSIONS = 256
_KEPT_NAMES = 4096
"""Server nodes, and trainers; more than a fleet has. Those heard of longest ago go first."""


@dataclass(frozen=True, slots=True)
class Decided:
    """One entry of a journal.

    Attributes:
        sequence, token: its place within a reign, and which reign.
        controller: who led.
    """

    at: float
    sequence: int
    token: int
    controller: str
    event: Event
    instructions: tuple[Instruction, ...]

    @classmethod
    def from_maps(
        cls,
        at: float,
        sequence: int,
        token: int,
        controller: str,
        event: dict[str, Any],
        made: Iterable[dict[str, Any]],
    ) -> "Decided":
        """From an entry's maps. ValueError when this version of the policy could not have written them."""
        instructions = tuple(instruction_from_map(item) for item in made)
        return cls(at, sequence, token, controller, event_from_map(event), instructions)

    @property
    def is_decision(self) -> bool:
        """Whether anything was decided; a mere copy of the state is not a decision."""
        return any(not (isinstance(item, FleetMoved) and is_copy(item)) for item in self.instructions)


@dataclass(slots=True)
class NodePast:
    """What was asked of a server node, when each part of it last changed, and its newest reports.

    Attributes:
        asked: newest SetServer of this journal; draft_since, steps_since, collect_since the ones that changed each.
        figures: newest numbers that hold a prediction, and when they were written down.
    """

    asked: tuple[float, SetServer] | None = None
    found: ServerFound | None = None
    draft_since: tuple[float, SetServer] | None = None
    steps_since: tuple[float, SetServer] | None = None
    collect_since: tuple[float, SetServer] | None = None
    figures: tuple[float, dict[str, float]] | None = None
    reports: deque[ServerReported] = field(default_factory=lambda: deque(maxlen=_KEPT_REPORTS))


@dataclass(slots=True)
class TrainerPast:
    """What was asked of a trainer, the SetTrainer that asked for its newest round, and its newest report."""

    asked: tuple[float, SetTrainer] | None = None
    round_since: tuple[float, SetTrainer] | None = None
    report: TrainerReported | None = None


@dataclass(slots=True)
class VersionPast:
    """What became of a version: its manifest, the gate's answer, and the newest moves of the fleet that concerned it.

    Attributes:
        rolled_back: how it came to be tried no more: by a rollback, else by an operator; None while it is not, or if
            that was before this journal.
        tried_again: the gate's newest answers when it was scored as an earlier draft.
    """

    published: CandidatePublished | None = None
    judged: tuple[float, Judged] | None = None
    rolled_back: bool | None = None
    tried_again: deque[tuple[float, Judged]] = field(default_factory=lambda: deque(maxlen=_KEPT_TRIES))
    moves: deque[tuple[float, FleetMoved]] = field(default_factory=lambda: deque(maxlen=_KEPT_MOVES))


class History:
    """What is known after a journal was read. Changed by `add` only.

    Attributes:
        settings: of the newest reign.
        fleet, fleet_at: newest state of the fleet and the time of the move that led to it.
        collection: Algorithm 1's memory as of the newest state or copy of it.
        workloads: figures of the serving draft, as the policy makes them of the same scores.
        newest_at, leader: time of the newest entry, and who wrote it.
    """

    def __init__(self) -> None:
        self.settings = PolicySettings()
        self.fleet: FleetState | None = None
        self.fleet_at = 0.0
        self.collection: CollectionState | None = None
        self.newest_at = 0.0
        self.leader = ""
        self.nodes: dict[str, NodePast] = {}
        self.trainers: dict[str, TrainerPast] = {}
        self.versions: dict[int, VersionPast] = {}
        self.workloads = Workloads()
        self.decisions: deque[Decided] = deque(maxlen=_KEPT_DECISIONS)

    def add(self, entry: Decided) -> None:
        """Take in the next entry of the journal."""
        self.newest_at, self.leader = max(self.newest_at, entry.at), entry.controller
        match entry.event:
            case ControllerStarted():
                self.settings = PolicySettings.from_map(entry.event.settings)
                self.fleet = entry.event.fleet or self.fleet
                self.collection = entry.event.collection
            case ServerReported():
                self._node(entry.event.node).reports.append(entry.event)
                if self.fleet is not None and entry.event.running_version == self.fleet.serving_version:
                    self.workloads.served(entry.event.running_version, entry.event.workloads)
            case TrainerReported():
                self._trainer_reported(entry.event)
            case ServerFound():
                self._node(entry.event.node).found = entry.event
            case CandidatePublished():
                # The manifest comes again in every reign; the first time is when it was published.
                self._version(entry.event.version).published = (
                    self._version(entry.event.version).published or entry.event
                )
        for instruction in entry.instructions:
            self._follow(entry.at, instruction)
        if entry.is_decision:
            self.decisions.append(entry)

    def _trainer_reported(self, event: TrainerReported) -> None:
        trainer = _newest(self.trainers, event.trainer, TrainerPast)
        again = trainer.report is not None and trainer.report.shadow == event.shadow
        if self.fleet is not None and not again and event.serving_version == self.fleet.serving_version != NO_DRAFT:
            self.workloads.observe(event.serving_version, event.shadow)
        trainer.report = event

    def _follow(self, at: float, instruction: Instruction) -> None:
        match instruction:
            case SetServer():
                self._asked(at, instruction)
            case SetTrainer():
                trainer = _newest(self.trainers, instruction.trainer, TrainerPast)
                if instruction.reason.startswith(f"round {instruction.round}:"):
                    trainer.round_since = (at, instruction)
                trainer.asked = (at, instruction)
            case Judged(from_pool=True):
                self._version(instruction.version).tried_again.append((at, instruction))
            case Judged():
                self._version(instruction.version).judged = (at, instruction)
            case FleetMoved():
                before = self.fleet or FleetState()
                if not is_copy(instruction):
                    for version in _concerned(before, instruction.fleet):
                        self._version(version).moves.append((at, instruction))
                for version in set(instruction.fleet.refused) - set(before.refused):
                    self._version(version).rolled_back = version in (before.candidate_version, before.serving_version)
                self.collection = instruction.collection
                if instruction.fleet != self.fleet:
                    self.fleet, self.fleet_at = instruction.fleet, at

    def _asked(self, at: float, wanted: SetServer) -> None:
        node = self._node(wanted.node)
        before = node.asked[1] if node.asked is not None else node.found
        if before is None or before.draft_version != wanted.draft_version:
            node.draft_since = (at, wanted)
        if before is None or before.steps_table != wanted.steps_table:
            node.steps_since = (at, wanted)
        if before is None or (before.collect, before.sample_rate, before.preferred) != (
            wanted.collect,
            wanted.sample_rate,
            wanted.preferred,
        ):
            node.collect_since = (at, wanted)
        if "ratio_to_plain" in wanted.numbers:
            node.figures = (at, wanted.numbers)
        node.asked = (at, wanted)

    def _node(self, name: str) -> NodePast:
        return _newest(self.nodes, name, NodePast)

    def _version(self, version: int) -> VersionPast:
        """What is known of a version. Beyond _KEPT_VERSIONS the lowest of those that are not in use is forgotten."""
        if version not in self.versions:
            fleet = self.fleet or FleetState()
            in_use = {fleet.serving_version, fleet.previous_version, fleet.candidate_version}
            in_use |= {past.version for past in fleet.pool}
            if len(self.versions) >= _KEPT_VERSIONS and (others := self.versions.keys() - in_use):
                del self.versions[min(others)]
            self.versions[version] = VersionPast()
        return self.versions[version]


def _newest(known: dict[str, _Past], name: str, empty: Callable[[], _Past]) -> _Past:
    """The entry of that name, put last in `known`; beyond _KEPT_NAMES the first one is forgotten."""
    past = known[name] = known.pop(name) if name in known else empty()
    if len(known) > _KEPT_NAMES:
        del known[next(iter(known))]
    return past


def is_copy(move: FleetMoved) -> bool:
    """Whether the state was only written down again."""
    return move.reason.startswith("the copy of the state")


def _concerned(before: FleetState, after: FleetState) -> set[int]:
    """Versions that a move is about: what is or was rolled out, and what took or takes its place."""
    versions = {before.candidate_version, after.candidate_version, *set(after.refused) - set(before.refused)}
    if before.stage != after.stage or before.serving_version != after.serving_version:
        versions |= {before.serving_version, after.serving_version}
    return versions - {NO_DRAFT}
