"""The engine contract on the modelled engine, and what only it does: virtual time, curves, a crash."""

from pathlib import Path

import pytest
import pytest_asyncio

from tests.contract.engine_contract import MAX_BYTES, EngineContract, Subject
from tide_daemon.draft.checkpoint import placeholder, save
from tide_daemon.draft.config import DraftConfig
from tide_daemon.engine.modelled import ModelledEngine, ModelledSettings, Traffic
from tide_daemon.engine.port import DraftState
from tide_daemon.errors import EngineError
from tide_daemon.wire.records import HiddenChunk, TargetSpec

SPEC = TargetSpec("m", "a" * 64, "b" * 64, (1, 2, 3), 16, 64)
CONFIG = DraftConfig(16, 16, 32, 2, 1, 8, 1e-5, 10_000.0, 128, 64, 32, (1, 2, 3))


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def drafts(tmp_path: Path) -> list[tuple[Path, str]]:
    made = []
    for name, value in (("a", 0.0), ("b", 1.0)):
        tensors = dict(placeholder(CONFIG).tensors)
        tensors["fc.weight"] = tensors["fc.weight"] + value
        made.append((tmp_path / name, save(tmp_path / name, CONFIG, tensors).digest))
    return made


class TestModelledEngine(EngineContract):
    """The shared suite."""

    @pytest_asyncio.fixture
    async def subject(self, drafts: list[tuple[Path, str]]) -> Subject:
        clock = Clock()
        engine = ModelledEngine(ModelledSettings(SPEC, "node"), clock)
        await engine.start()

        async def serve() -> None:
            clock.now += 20.0
            await engine.stats()

        async def chunks() -> list[HiddenChunk]:
            return engine.take_chunks(MAX_BYTES)

        return Subject(engine, serve, chunks, drafts)


async def test_acceptance_and_speed_follow_the_curves(drafts: list[tuple[Path, str]]) -> None:
    """Accept rate and step times are those of the given curves, by version, workload and batch size."""
    clock = Clock()
    settings = ModelledSettings(
        SPEC,
        "node",
        traffic=lambda now: Traffic("code" if now < 500 else "chat", 2 if now < 500 else 4),
        accept_prob=lambda version, workload: 0.8 if workload == "code" else 0.2,
        step_s=lambda batch, steps: 0.01 * batch * (1 + steps / 10),
    )
    engine = ModelledEngine(settings, clock)
    await engine.start()
    await engine.swap(str(drafts[0][0]), DraftState(1, drafts[0][1]))
    await engine.set_steps([(8, 1)])
    clock.now += 1000
    by_batch = {s.batch_size: s for s in (await engine.stats()).steps if s.num_verifies > 1000}
    for batch, prob in ((2, 0.8), (4, 0.2)):
        s = by_batch[batch]
        assert s.accepted_at[0] / (s.num_verifies * batch) == pytest.approx(prob, abs=0.02)
        assert s.step_s / s.num_verifies == pytest.approx(0.011 * batch)


async def test_start_takes_its_time_and_commands_wait() -> None:
    """Before it is ready it is "starting" and refuses commands; stopped it is "down"."""
    clock = Clock()
    engine = ModelledEngine(ModelledSettings(SPEC, "node", start_s=30), clock)
    assert engine.spec is None
    await engine.start()
    assert (await engine.stats()).state == "starting"
    with pytest.raises(EngineError):
        await engine.set_steps([])
    clock.now += 31
    assert (await engine.stats()).state == "ready"
    await engine.stop(1.0)
    assert (await engine.stats()).state == "down"


async def test_crash_loses_the_draft_and_changes_the_epoch(drafts: list[tuple[Path, str]]) -> None:
    clock = Clock()
    engine = ModelledEngine(ModelledSettings(SPEC, "node"), clock)
    await engine.start()
    await engine.swap(str(drafts[0][0]), DraftState(1, drafts[0][1]))
    before = await engine.stats()
    engine.crash()
    after = await engine.stats()
    assert after.epoch != before.epoch
    assert (after.draft.version, after.engine_starts, after.steps) == (0, 2, ())


async def test_same_seed_same_life() -> None:
    lives = []
    for _ in range(2):
        clock = Clock()
        engine = ModelledEngine(ModelledSettings(SPEC, "node", seed=4), clock)
        await engine.start()
        clock.now += 10
        lives.append(([c.request_id for c in engine.take_chunks(MAX_BYTES)], (await engine.stats()).steps))
    assert lives[0] == lives[1]
