"""One controller, one node, one trainer, and a pool of two earlier drafts: for tests of what is made of them."""

import random
from dataclasses import replace

from tests.unit.policy.simulated_fleet import digest_of
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    ControllerStarted,
    Event,
    FleetState,
    PastDraft,
    PoolScored,
    RequestScored,
    ServerReported,
    ShadowScored,
    StepCount,
    TrainerReported,
    WorkloadServed,
)
from tide_daemon.policy.instructions import Instruction, Judged, SetServer, SetTrainer
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(
    max_batch_size=8, score_initial=2, train_shift_tokens=2000, train_min_tokens=8000, settle_s=0.0, watch_s=5.0
)


def past(version: int, settled: bool = True, **lengths: float) -> PastDraft:
    return PastDraft(version, digest_of(version), tuple(lengths.items()), True, settled, float(version))


FLEET = FleetState(
    serving_version=9, serving_digest=digest_of(9), judged=tuple(range(1, 10)), pool=(past(3), past(5, settled=False))
)


def scored(version: int, gain: float, serving: int = 9, num: int = 16) -> PoolScored:
    """Accept length 1.5 under the serving draft, `gain` more under the earlier one."""
    rng = random.Random(version)
    scores = tuple(
        RequestScored(f"{index:016x}", "", 100, 150.0, max(100.0, 150.0 + 100 * gain + rng.gauss(0.0, 3.0)))
        for index in range(num)
    )
    return PoolScored(version, serving, 3, scores)


class World:
    """One controller, one node that obeys, one trainer that says what it is told to."""

    def __init__(self, fleet: FleetState = FLEET, *, knows_trainer: bool = True, **changes: float) -> None:
        self.settings = replace(SETTINGS, **changes)
        self.controller = Controller(self.settings)
        self.at, self.sequence, self.round = 1000.0, 0, 0
        self.asked: SetTrainer | None = None
        self.made: list[Instruction] = []
        self.entries: list[tuple[Event, list[Instruction]]] = []
        self.give(ControllerStarted(self.at, "model", self.settings.to_map(), fleet))
        self.version = fleet.serving_version
        self.node()
        if knows_trainer:
            self.trainer()

    def give(self, event: Event) -> list[Instruction]:
        made = self.controller.handle(event)
        self.entries.append((event, made))
        self.controller.check_invariants()
        for item in made:
            if isinstance(item, SetTrainer):
                self.asked = item
            if isinstance(item, SetServer):
                self.version = item.draft_version
        self.made += made
        return made

    def node(self, seconds: int = 1, accept: float = 0.6, workloads: tuple[WorkloadServed, ...] = ()) -> None:
        for _ in range(seconds):
            self.at += 1.0
            self.sequence += 1
            chains = 80
            accepted = (int(chains * accept), int(chains * accept**2), int(chains * accept**3))
            step = StepCount(4, 3, 20, 80 + sum(accepted), accepted, 1.0, 0.8, 0.05)
            plain = StepCount(4, 0, 10, 40, (), 0.4, 0.4, 0.04)
            digest = digest_of(self.version)
            self.give(
                ServerReported(
                    self.at, "a", self.sequence, "ready", self.version, digest, 0, 1.0, (plain, step), workloads
                )
            )

    def trainer(
        self,
        length: float = 0.0,
        pool: tuple[PoolScored, ...] | None = None,
        new_tokens: int = 0,
        state: str = "waiting",
        workload: str = "",
    ) -> list[Instruction]:
        self.at += 1.0
        self.sequence += 1
        asked = self.asked
        self.round = max(self.round, asked.round if asked is not None else 0)
        shadow = (ShadowScored(workload, 4, 400, 400 * length + self.sequence / 1000),) if length else ()
        number = asked.pool_scoring if asked is not None and pool is not None else 0
        serving = asked.serving_version if asked is not None else 0
        return self.give(
            TrainerReported(
                self.at, "t", self.sequence, state, serving, 0, new_tokens, self.round, shadow, number, pool or ()
            )
        )

    def shift(self) -> None:
        """Held-out scores of the serving draft fall."""
        for length in (2.0, 2.0, 1.2, 1.2, 1.2):
            self.trainer(length)

    @property
    def scoring(self) -> int:
        return self.asked.pool_scoring if self.asked is not None else 0

    def judged(self) -> dict[int, str]:
        return {item.version: item.verdict for item in self.made if isinstance(item, Judged)}
