"""A trainer role in this process with a real worker process, a bus, and what a controller and a server would do."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tests.trainer_samples import chunks
from tide_daemon.bus.port import Bus
from tide_daemon.roles.trainer import TrainerRole
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredTrainer, DraftManifest, HiddenChunk, TrainerReport

T = TypeVar("T")

SETTINGS = TrainerSettings(
    name="t1",
    model="tiny",
    draft_vocab_size=96,
    round_min_tokens=100,
    round_max_tokens=20_000,
    batch_tokens=256,
    heldout_share=0.2,
    learning_rate=3e-3,
    nice=0,
    report_interval_s=0.1,
    shadow_interval_s=0.5,
    checkpoint_interval_s=0.0,
    segment_bytes=1 << 20,
)


SLOW = {"replay_share": 0.9, "batch_tokens": 64}
"""Changes that make a round of more than a hundred steps, so that something can happen in the middle of it."""


class Trainer:
    """One life of a trainer role. `crash` ends it as a kill would: the worker at once, nothing drained."""

    def __init__(self, bus: Bus, state_dir: Path, target: Path | None, **changes: object) -> None:
        settings = replace(SETTINGS, target_path=str(target or ""), **changes)  # type: ignore[arg-type]
        self.role = TrainerRole(bus, settings, state_dir)
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self.role.run(self._stop))

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.wait_for(self._task, 90)

    async def crash(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def shown(self) -> dict[str, object]:
        return dict(self.role.snapshot())

    async def until(self, condition: Callable[[dict[str, object]], bool], limit_s: float = 200.0) -> dict[str, object]:
        """The first snapshot for which the condition holds."""
        give_up_at = asyncio.get_running_loop().time() + limit_s
        while not condition(self.shown):
            if self._task.done():
                self._task.result()
            if asyncio.get_running_loop().time() > give_up_at:
                raise TimeoutError(f"not within {limit_s} s: {self.shown}")
            await asyncio.sleep(0.02)
        return self.shown


class Surroundings:
    """The server's and the controller's side of the bus."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.generation = 0
        self.requests = 0

    async def serve(
        self, count: int, *, workload: str = "code", edit: Callable[[HiddenChunk], HiddenChunk] = lambda c: c
    ) -> None:
        """Publish the chunks of `count` further requests."""
        for number in range(self.requests, self.requests + count):
            for chunk in chunks(number, workload=workload):
                await self.publish(edit(chunk))
        self.requests += count

    async def publish(self, chunk: HiddenChunk) -> None:
        data = envelope.encode(chunk)
        await self.bus.publish(subjects.hidden("tiny", chunk.node), data, message_id=subjects.message_id("tiny", chunk))

    async def desire(
        self,
        round_: int,
        serving: DraftManifest | None = None,
        fencing_token: int = 1,
        pool: tuple[tuple[int, str], ...] = (),
        pool_scoring: int = 0,
    ) -> None:
        self.generation += 1
        version, digest = (serving.version, serving.content_digest) if serving is not None else (0, "")
        desired = DesiredTrainer(
            "t1", self.generation, fencing_token, 0.0, round_, version, digest, "test", pool, pool_scoring, 8
        )
        await self.bus.publish(subjects.control_trainer("tiny", "t1"), envelope.encode(desired))

    async def manifest(self, version: int, limit_s: float = 200.0) -> DraftManifest:
        """The manifest of a version as soon as it is there."""

        async def found() -> DraftManifest | None:
            message = await self.bus.last(subjects.draft_manifest("tiny", version))
            record = envelope.decode(message.data) if message is not None else None
            return record if isinstance(record, DraftManifest) else None

        return await eventually(found, limit_s)

    async def report(self) -> TrainerReport:
        """The newest report."""

        async def found() -> TrainerReport | None:
            message = await self.bus.last(subjects.report("tiny", "t1", "trainer"))
            record = envelope.decode(message.data) if message is not None else None
            return record if isinstance(record, TrainerReport) else None

        return await eventually(found, 10.0)

    async def versions(self, upto: Iterable[int]) -> list[int]:
        return [v for v in upto if await self.bus.last(subjects.draft_manifest("tiny", v)) is not None]


async def eventually(probe: Callable[[], Awaitable[T | None]], limit_s: float) -> T:
    async with asyncio.timeout(limit_s):
        while True:
            value = await probe()
            if value is not None:
                return value
            await asyncio.sleep(0.02)
