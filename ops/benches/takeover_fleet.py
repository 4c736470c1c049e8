"""Server nodes and a trainer that only report and obey, so that controllers have something to decide.

Nodes keep desired state by the check that real ones use (roles/convergence.py). Their acceptance rises and
falls, so steps change; the trainer begins every round that it is asked for and publishes a candidate, good or
bad in turn, so rounds, verdicts and rollouts never end. No model, no engine, no weights.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from tide_daemon.bus.port import Bus, StoredMessage
from tide_daemon.errors import BusError
from tide_daemon.roles.convergence import Convergence
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import (
    DesiredServer,
    DesiredTrainer,
    DraftManifest,
    NodeReport,
    PartEntry,
    Record,
    RequestScore,
    StepStats,
    TargetSpec,
    TensorEntry,
    TrainerReport,
)

MODEL = "bench"
SPEC = TargetSpec(MODEL, "a" * 64, "b" * 64, (1, 5, 9), 16, 100)
NODES = ("node-a", "node-b", "node-c")
TRAINER = "trainer-a"
BATCH = 4
_REPORT_S = 0.25
_SWAP_S = 0.3
_ROUND_S = 1.0
_TIDE_S = 9.0
_PLAIN_STEP_S, _DRAFT_STEP_S = 0.05, 0.01
_TOKENS_PER_REPORT = 300
Taken = Callable[[DesiredServer | DesiredTrainer], None]


async def send(bus: Bus, record: Record) -> None:
    """Publish a record on its subject; a broker that does not answer in time loses it, as a report may be lost."""
    try:
        await bus.publish(
            subjects.subject_of(MODEL, record), envelope.encode(record), message_id=subjects.message_id(MODEL, record)
        )
    except BusError:
        return


async def records(messages: AsyncIterator[StoredMessage]) -> AsyncIterator[Record]:
    """What a tail delivers, decoded."""
    async for message in messages:
        yield envelope.decode(message.data)


@dataclass(slots=True)
class FakeNode:
    """One server node."""

    bus: Bus
    name: str
    rng: random.Random
    taken: Taken
    running: tuple[int, str] = (0, "")
    sequence: int = 0
    convergence: Convergence = field(init=False)
    _swapping_since: float = math.inf

    def __post_init__(self) -> None:
        self.convergence = Convergence(engine=None, fetch_draft=None)  # type: ignore[arg-type]  # only its check is used

    async def obey(self) -> None:
        """Keep the newest desired state that the node's own check lets in."""
        async for record in records(self.bus.tail(subjects.control_server(MODEL, self.name), since="last")):
            if isinstance(record, DesiredServer) and self.convergence.offer(record):
                self.taken(record)

    async def report(self) -> None:
        """A report every quarter of a second."""
        while True:
            await asyncio.sleep(_REPORT_S)
            self._swap()
            self.sequence += 1
            version, digest = self.running
            await send(
                self.bus,
                NodeReport(self.name, time.time(), self.sequence, "ready", version, digest, 0, BATCH, _REPORT_S,
                           (self._step(),), True, 0, 0, 0, 0, 0, 0, 1),
            )  # fmt: skip

    def _swap(self) -> None:
        desired = self.convergence.desired
        if (
            desired is None
            or desired.draft_version == 0
            or (desired.draft_version, desired.draft_digest) == self.running
        ):
            self._swapping_since = math.inf
        elif self._swapping_since == math.inf:
            self._swapping_since = time.monotonic()
        elif time.monotonic() - self._swapping_since >= _SWAP_S:
            self.running = (desired.draft_version, desired.draft_digest)

    def _step(self) -> StepStats:
        desired, steps = self.convergence.desired, 0
        if desired is not None and self.running[0]:
            steps = next((num for largest, num in desired.steps_table if largest >= BATCH), 0)
        phase = time.monotonic() / _TIDE_S + NODES.index(self.name) / len(NODES)
        prob = 0.5 + 0.45 * math.sin(2 * math.pi * phase)
        step_s = _PLAIN_STEP_S + steps * _DRAFT_STEP_S
        num_verifies = max(1, int(_REPORT_S / step_s))
        accepted, reached = [], num_verifies * BATCH
        for _ in range(steps):
            reached = sum(self.rng.random() < prob for _ in range(reached))
            accepted.append(reached)
        tokens = num_verifies * BATCH + sum(accepted)
        seconds = step_s * num_verifies
        return StepStats(
            BATCH, steps, num_verifies, tokens, tuple(accepted), seconds, _PLAIN_STEP_S * num_verifies, step_s
        )


@dataclass(slots=True)
class FakeTrainer:
    """The trainer. `num_published` counts candidates."""

    bus: Bus
    rng: random.Random
    taken: Taken
    desired: DesiredTrainer | None = None
    num_published: int = 0
    round: int = 0
    new_tokens: int = 0
    sequence: int = 0
    _training_until: float = 0.0

    async def obey(self) -> None:
        """Keep the newest desired state; older places are refused."""
        async for record in records(self.bus.tail(subjects.control_trainer(MODEL, TRAINER), since="last")):
            if not isinstance(record, DesiredTrainer):
                continue
            held = self.desired
            if held is None or (record.fencing_token, record.generation) > (held.fencing_token, held.generation):
                self.desired = record
                self.taken(record)

    async def report(self) -> None:
        """A report every quarter of a second, and a candidate at the end of each round."""
        while True:
            await asyncio.sleep(_REPORT_S)
            training = time.monotonic() < self._training_until
            if self._training_until and not training:
                self._training_until = 0.0
                await self._publish()
            if not self._training_until and self.desired is not None and self.desired.round > self.round:
                self.round, self.new_tokens = self.desired.round, 0
                self._training_until = time.monotonic() + _ROUND_S
                training = True
            self.new_tokens += _TOKENS_PER_REPORT
            self.sequence += 1
            serving = 0 if self.desired is None else self.desired.serving_version
            await send(
                self.bus,
                TrainerReport(TRAINER, time.time(), self.sequence, "training" if training else "waiting", serving, 0, 9,
                              10**6, 30, self.new_tokens, 0, self.round, 0, 0, 0.0),
            )  # fmt: skip

    async def _publish(self) -> None:
        assert self.desired is not None
        self.num_published += 1
        version, parent = self.num_published, self.desired.serving_version
        gain = -0.2 if version % 3 == 0 else 0.1
        serving = 100.0 if parent == 0 else 160.0
        scores = tuple(
            RequestScore(f"{index:016x}", "", 0, 100, serving, serving + 100.0 * gain + self.rng.random())
            for index in range(12)
        )
        await send(
            self.bus,
            DraftManifest(SPEC, version, parent, None, "", f"{version:064x}", 50, "c" * 64, "{}",
                          (TensorEntry("fc.weight", "BF16", (1,), "d" * 64),), (PartEntry(0, 2, "e" * 64),),
                          TRAINER, time.time(), 1000, 0.0, 0.0, 3, scores),
        )  # fmt: skip
