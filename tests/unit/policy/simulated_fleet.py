"""A tiny modelled fleet: nodes with given cost and acceptance, a trainer, and a loop of one-second reports.

Costs follow the figures measured on SGLang on one CPU thread: plain 41/49/69 ms a step at batch
1/4/8, and a chain of 3 costs 1.32/1.58/1.68 of that. Everything random comes from one seed.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    CandidatePublished,
    ControllerStarted,
    DraftFailed,
    Event,
    RequestScored,
    ServerFound,
    ServerReported,
    StepCount,
    TrainerReported,
)
from tide_daemon.policy.instructions import FleetMoved, Instruction, Judged, SetServer, SetTrainer
from tide_daemon.policy.settings import PolicySettings

_PLAIN_MS = {1: 40.7, 2: 43.5, 3: 46.4, 4: 49.3, 5: 54.3, 6: 59.3, 7: 64.3, 8: 69.3}
_PER_DRAFT_STEP = {1: 0.107, 2: 0.14, 3: 0.17, 4: 0.193, 5: 0.203, 6: 0.212, 7: 0.22, 8: 0.227}


def digest_of(version: int) -> str:
    return f"{version:064x}" if version else ""


def step_s(batch_size: int, num_steps: int) -> float:
    """True seconds of a step."""
    return _PLAIN_MS[batch_size] / 1000 * (1.0 + _PER_DRAFT_STEP[batch_size] * num_steps)


def true_ratio(batch_size: int, num_steps: int, accept_prob: float) -> float:
    """True tokens/s over plain."""
    accept_length = 1 + sum(accept_prob**i for i in range(1, num_steps + 1))
    return accept_length * step_s(batch_size, 0) / step_s(batch_size, num_steps)


@dataclass
class ModelledNode:
    """A server node. `accept_prob` maps (version, time) to the probability at each position.

    `cannot_have`: versions that it cannot fetch.
    """

    name: str
    accept_prob: Callable[[int, float], float]
    batch_size: Callable[[float], int]
    rng: random.Random
    noise: float = 0.05
    slowness: Callable[[float], float] = lambda at: 1.0
    swap_s: float = 2.0
    engine: str = "ready"
    alive: bool = True
    version: int = 0
    desired: SetServer | None = None
    cannot_have: frozenset[int] = frozenset()
    failed: DraftFailed | None = None
    sequence: int = 0
    tokens: float = 0.0
    plain_tokens: float = 0.0
    _obeys: SetServer | None = None
    _swap_at: float = math.inf
    history: list[tuple[float, int, float, float]] = field(default_factory=list)

    def run(self, at: float, seconds: float) -> ServerReported | None:
        """Serve for a while under what was asked for before, then report and take the newest desired state."""
        batch, steps = self.batch_size(at), 0
        if self._obeys is not None and self.version != 0:
            steps = next((k for largest, k in self._obeys.steps_table if batch <= largest), 0)
        counts: tuple[StepCount, ...] = ()
        if batch > 0 and self.engine == "ready":
            counts = (self._serve(at, seconds, batch, steps),)
        if not self.alive:
            return None
        self.sequence += 1
        self._take_desired(at)
        return ServerReported(
            at, self.name, self.sequence, self.engine, self.version, digest_of(self.version), 0, seconds, counts,
            draft_failed=self.failed,
        )  # fmt: skip

    def _serve(self, at: float, seconds: float, batch: int, steps: int) -> StepCount:
        slow = self.slowness(at)
        num_verifies = max(1, int(seconds / (step_s(batch, steps) * slow)))
        prob, accepted = self.accept_prob(self.version, at), [0] * steps
        for _ in range(num_verifies * batch):
            for position in range(steps):
                if self.rng.random() >= prob:
                    break
                accepted[position] += 1
        tokens = num_verifies * batch + sum(accepted)
        plain = batch * num_verifies * step_s(batch, steps) / step_s(batch, 0)
        self.tokens += tokens
        self.plain_tokens += plain
        self.history.append((at, steps, tokens, plain))
        seen = step_s(batch, steps) * slow * math.exp(self.rng.gauss(0.0, self.noise / math.sqrt(num_verifies)))
        target = seen / (1 + 0.4 * _PER_DRAFT_STEP[batch] * steps)
        return StepCount(
            batch, steps, num_verifies, tokens, tuple(accepted), seen * num_verifies, target * num_verifies, seen
        )

    def _take_desired(self, at: float) -> None:
        if self.desired is None:
            return
        version = self.desired.draft_version
        if version in self.cannot_have and version != self.version:
            tries = 0 if self.failed is None or self.failed.version != version else self.failed.num_tries
            self.failed = DraftFailed(version, self.desired.draft_digest, tries + 1, f"draft {version} is gone")
            return
        self.failed = None
        if version not in (0, self.version):
            self._swap_at = min(self._swap_at, at + self.swap_s)
            if at >= self._swap_at:
                self.version, self._swap_at = self.desired.draft_version, math.inf
                self._obeys = self.desired
        else:
            self._obeys, self._swap_at = self.desired, math.inf


@dataclass
class Fleet:
    """Nodes, one trainer and the policy, a report a second each."""

    nodes: list[ModelledNode]
    settings: PolicySettings = field(default_factory=lambda: PolicySettings(max_batch_size=8))
    trainer: str = "trainer"
    tokens_per_s: int = 0
    at: float = 1000.0
    controller: Controller = field(init=False)
    entries: list[tuple[Event, list[Instruction]]] = field(default_factory=list)
    asked_round: int = 0
    new_tokens: int = 0
    _trainer_sequence: int = 0

    def __post_init__(self) -> None:
        self.controller = Controller(self.settings)
        self.give(ControllerStarted(self.at, "model", self.settings.to_map(), None))

    def give(self, event: Event) -> list[Instruction]:
        instructions = self.controller.handle(event)
        self.controller.check_invariants()
        self.entries.append((event, instructions))
        for instruction in instructions:
            match instruction:
                case SetServer():
                    next(node for node in self.nodes if node.name == instruction.node).desired = instruction
                case SetTrainer():
                    if instruction.round > self.asked_round:
                        self.asked_round, self.new_tokens = instruction.round, 0
                case Judged() | FleetMoved():
                    pass
        return instructions

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.at += 1.0
            for node in self.nodes:
                report = node.run(self.at, 1.0)
                if report is not None:
                    self.give(report)
            self._trainer_sequence += 1
            self.new_tokens += self.tokens_per_s
            self.give(
                TrainerReported(
                    self.at, self.trainer, self._trainer_sequence, "waiting", 0, 0, self.new_tokens, self.asked_round
                )
            )

    def publish(self, version: int, accept_length: float, serving: float = 1.0, num_requests: int = 24) -> None:
        """A candidate scored against what is served now."""
        rng = random.Random(version)
        scores = []
        for index in range(num_requests):
            spread = rng.gauss(0.0, 0.05)
            scores.append(
                RequestScored(
                    f"{index:016x}", "", 100, 100 * (serving + spread), max(100.0, 100 * (accept_length + spread))
                )
            )
        parent = self.controller.fleet.serving_version
        self.give(CandidatePublished(self.at, version, digest_of(version), parent, self.trainer, 0, 3, tuple(scores)))

    def take_over(self) -> None:
        """The leader is lost; its successor knows what stands on the bus, and hears of each node before its report."""
        kept = [item for _, items in self.entries for item in items if isinstance(item, FleetMoved)][-1]
        self.controller = Controller(self.settings)
        self.give(ControllerStarted(self.at, "model", self.settings.to_map(), kept.fleet, kept.collection))
        for node in self.nodes:
            if (asked := node.desired) is not None:
                self.give(
                    ServerFound(
                        self.at, node.name, asked.generation, asked.draft_version, asked.draft_digest,
                        asked.steps_table, asked.collect, asked.sample_rate,
                    )
                )  # fmt: skip

    def renew(self) -> None:
        """The leader renews its reign: what it knows goes over as events, nothing else does."""
        events = self.controller.renewal("model")
        self.controller = Controller(self.settings)
        for event in events:
            self.give(event)

    def instructions(self, kind: type[Instruction]) -> list[Instruction]:
        return [item for _, items in self.entries for item in items if isinstance(item, kind)]


def one_node(
    accept_prob: Callable[[int, float], float],
    batch_size: Callable[[float], int],
    seed: int = 1,
    slowness: Callable[[float], float] = lambda at: 1.0,
    **changes: float,
) -> Fleet:
    node = ModelledNode("node-a", accept_prob, batch_size, random.Random(seed), slowness=slowness)
    return Fleet([node], PolicySettings(**{"max_batch_size": 8, **changes}))  # type: ignore[arg-type]


def served_over_plain(node: ModelledNode, since: float, until: float = math.inf) -> float:
    """Tokens served over those that plain decoding would have served in the same busy time."""
    rows = [(tokens, plain) for at, _, tokens, plain in node.history if since <= at < until]
    return sum(tokens for tokens, _ in rows) / sum(plain for _, plain in rows)
