import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from tide_daemon.engine.port import CaptureSettings, DraftState, EngineStats
from tide_daemon.errors import BusUnavailableError, DraftError, EngineError, EngineRefusedError, StoreError, TideError
from tide_daemon.roles.convergence import Convergence
from tide_daemon.wire.records import NO_DRAFT, DesiredServer, DraftFailure


class RecordingEngine:
    """The four commands of the port that a convergence uses, written down in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.running = DraftState(NO_DRAFT, "")
        self.fail_swap = False

    async def swap(self, checkpoint_dir: str, state: DraftState) -> DraftState:
        self.calls.append(("swap", state.version))
        if self.fail_swap:
            raise EngineError("what was read back is not what was staged")
        self.running = state
        return state

    async def set_steps(self, table: Sequence[tuple[int, int]]) -> None:
        self.calls.append(("steps", tuple(table)))

    async def set_capture(self, settings: CaptureSettings) -> None:
        self.calls.append(("capture", settings.collect))

    def stats(self, epoch: int = 1, state: str = "ready") -> EngineStats:
        return EngineStats(state, epoch, self.running, 0, (), False, 0, 0, 0, 0, 1)


def desired(generation: int, version: int = 7, token: int = 1, table=((4, 3),)) -> DesiredServer:
    return DesiredServer("n", generation, token, 0.0, version, f"digest{version}", table, True, 1.0, "because")


async def fetched(version: int, digest: str) -> Path:
    return Path(f"/drafts/{version}")


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


async def test_draft_before_steps(engine: RecordingEngine) -> None:
    """A draft is applied before any step may speculate with it."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1))
    assert await convergence.converge(engine.stats())
    assert engine.calls == [("capture", True), ("swap", 7), ("steps", ((4, 3),))]
    assert convergence.applied_generation == 1


async def test_the_steps_in_force_are_those_that_the_engine_took(engine: RecordingEngine) -> None:
    """Not those that are desired: there may be others instead, and a swap that fails leaves plain decoding."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1))
    assert convergence.steps_in_force(engine.stats()) == ()
    await convergence.converge(engine.stats())
    assert convergence.steps_in_force(engine.stats()) == ((4, 3),)
    assert convergence.steps_in_force(engine.stats(epoch=2)) == (), "another process, which knows nothing yet"
    convergence.steps_instead = ((1, 2),)
    assert convergence.steps_in_force(engine.stats()) == ((4, 3),)
    await convergence.converge(engine.stats())
    assert convergence.steps_in_force(engine.stats()) == ((1, 2),)
    engine.running = DraftState(NO_DRAFT, "")
    assert convergence.steps_in_force(engine.stats()) == (), "nothing is drafted without a draft"


async def test_rates_are_the_desired_ones_within_the_nodes_own_limit(engine: RecordingEngine) -> None:
    """Of all requests, and of preferred workloads."""
    settings = []

    async def set_capture(wanted: CaptureSettings) -> None:
        settings.append(wanted)

    engine.set_capture = set_capture  # type: ignore[method-assign]
    convergence = Convergence(engine, fetched, max_sample_rate=0.5, excluded=("medical",))
    wanted = dataclasses.replace(desired(1), sample_rate=0.05, preferred=("code",), preferred_rate=1.0)
    convergence.offer(wanted)
    assert await convergence.converge(engine.stats())
    assert settings == [CaptureSettings(True, 0.05, 0, ("code",), 0.5, ("medical",))]
    assert [settings[0].rate_of(name) for name in ("code", "chat", "medical")] == [0.5, 0.05, 0.0]


async def test_converged_engine_is_left_alone(engine: RecordingEngine) -> None:
    """A second call with nothing new sends no command."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1))
    await convergence.converge(engine.stats())
    engine.calls.clear()
    assert await convergence.converge(engine.stats())
    assert engine.calls == []


async def test_restarted_engine_gets_everything_again(engine: RecordingEngine) -> None:
    """A new epoch has lost draft, steps and capture; all three are set again, draft before steps."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1))
    await convergence.converge(engine.stats())
    engine.calls.clear()
    engine.running = DraftState(NO_DRAFT, "")
    assert await convergence.converge(engine.stats(epoch=2))
    assert engine.calls == [("capture", True), ("swap", 7), ("steps", ((4, 3),))]


async def test_failed_swap_does_not_speculate(engine: RecordingEngine) -> None:
    """With the draft not in force no step table is set, and the reason is kept for the report."""
    engine.fail_swap = True
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1))
    assert not await convergence.converge(engine.stats())
    assert ("steps", ((4, 3),)) not in engine.calls
    assert "read back" in convergence.last_error
    assert convergence.applied_generation == 0


async def test_draft_that_cannot_be_had_is_retried(engine: RecordingEngine) -> None:
    """A failed fetch leaves the engine as it is and the next call tries again."""
    answers = [DraftError("part 3 is missing"), Path("/drafts/7")]

    async def fetch(version: int, digest: str) -> Path:
        answer = answers.pop(0)
        if isinstance(answer, DraftError):
            raise answer
        return answer

    convergence = Convergence(engine, fetch)
    convergence.offer(desired(1))
    assert not await convergence.converge(engine.stats())
    assert await convergence.converge(engine.stats())
    assert engine.running.version == 7


async def test_no_draft_means_plain_whatever_the_table_says(engine: RecordingEngine) -> None:
    """Without a draft nothing is speculated, even if a table was sent along."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1, version=NO_DRAFT))
    assert await convergence.converge(engine.stats())
    assert engine.calls == [("capture", True), ("steps", ())]


@pytest.mark.parametrize("late", [desired(1), desired(2, token=0), desired(9, token=0)])
async def test_stale_controller_is_refused(engine: RecordingEngine, late: DesiredServer) -> None:
    """Neither an old generation nor a lower fencing token replaces what is held."""
    convergence = Convergence(engine, fetched)
    assert convergence.offer(desired(2))
    assert not convergence.offer(late)
    assert convergence.desired == desired(2)


async def test_new_reign_may_count_from_one(engine: RecordingEngine) -> None:
    """A higher fencing token wins even with a smaller generation."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(5))
    assert convergence.offer(desired(1, token=2, version=8))


async def test_starting_engine_is_not_commanded(engine: RecordingEngine) -> None:
    """Nothing is sent to an engine that is not ready."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1))
    assert not await convergence.converge(engine.stats(state="starting"))
    assert engine.calls == []


async def test_steps_of_its_own_replace_the_desired_ones_until_they_are_withdrawn(engine: RecordingEngine) -> None:
    """While the controller is away a node may run fewer steps than were desired; afterwards those are back."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1))
    await convergence.converge(engine.stats())
    engine.calls.clear()
    convergence.steps_instead = ()
    await convergence.converge(engine.stats())
    convergence.steps_instead = None
    await convergence.converge(engine.stats())
    assert engine.calls == [("steps", ()), ("steps", ((4, 3),))]


def failing(*errors: TideError | None) -> tuple[RecordingEngine, Convergence]:
    """A node whose tries end so, one after the other; None is a success."""
    engine, left = RecordingEngine(), list(errors)

    async def fetch(version: int, digest: str) -> Path:
        if (error := left.pop(0)) is not None:
            raise error
        return Path(f"/drafts/{version}")

    convergence = Convergence(engine, fetch)
    convergence.offer(desired(1))
    return engine, convergence


async def test_tries_that_speak_against_the_draft_are_counted() -> None:
    """In a row, with what the newest one said; a success ends it."""
    engine, convergence = failing(DraftError("no manifest"), EngineRefusedError("other shapes"), None)
    counted = []
    for _ in range(3):
        await convergence.converge(engine.stats())
        counted.append(convergence.draft_failure)
    assert counted == [
        DraftFailure(7, "digest7", 1, "no manifest"),
        DraftFailure(7, "digest7", 2, "other shapes"),
        None,
    ]


@pytest.mark.parametrize(
    "error", [BusUnavailableError("away"), StoreError("disk full"), EngineError("no answer"), TideError("not yet")]
)
async def test_what_may_pass_by_itself_does_not_speak_against_a_draft(error: TideError) -> None:
    """And the count begins again after it."""
    engine, convergence = failing(DraftError("a"), DraftError("b"), error, DraftError("c"))
    counted = []
    for _ in range(4):
        await convergence.converge(engine.stats())
        counted.append(0 if convergence.draft_failure is None else convergence.draft_failure.num_tries)
    assert counted == [1, 2, 0, 1]


async def test_another_draft_has_its_own_tries() -> None:
    """Also the same version with another content; asked for none or for what runs, nothing has failed."""
    engine, convergence = failing(*(DraftError("a") for _ in range(3)))
    await convergence.converge(engine.stats())
    for generation, wanted in (
        (2, desired(2, version=8)),
        (3, dataclasses.replace(desired(3, version=8), draft_digest="x")),
    ):
        convergence.offer(wanted)
        await convergence.converge(engine.stats())
        failure = convergence.draft_failure
        assert failure is not None and (failure.version, failure.digest) == (8, wanted.draft_digest), generation
        assert failure.num_tries == 1
    convergence.offer(desired(4, version=NO_DRAFT))
    await convergence.converge(engine.stats())
    assert convergence.draft_failure is None


class SlowLink:
    """Drafts that arrive when they are let through, or fail with `error`."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.cancelled: list[int] = []
        self.arrived = asyncio.Event()
        self.error: TideError | None = None

    async def fetch(self, version: int, digest: str) -> Path:
        self.asked.append(version)
        try:
            await self.arrived.wait()
        except asyncio.CancelledError:
            self.cancelled.append(version)
            raise
        if self.error is not None:
            raise self.error
        return Path(f"/drafts/{version}")


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> SlowLink:
    monkeypatch.setattr("tide_daemon.roles.convergence._PATIENCE_S", 0.01)
    return SlowLink()


async def test_a_draft_on_a_slow_link_holds_nothing_up(engine: RecordingEngine, link: SlowLink) -> None:
    """Asked for once; what the engine runs goes on, and the draft comes before its steps when it is there."""
    convergence = Convergence(engine, link.fetch)
    convergence.offer(desired(1))
    for _ in range(3):
        assert not await convergence.converge(engine.stats())
    assert engine.calls == [("capture", True)]
    assert convergence.last_error == "draft 7 is on its way"
    assert convergence.draft_failure is None
    link.arrived.set()
    assert await convergence.converge(engine.stats())
    assert engine.calls == [("capture", True), ("swap", 7), ("steps", ((4, 3),))]
    assert link.asked == [7]


async def test_while_a_draft_is_on_its_way_the_one_before_is_switched_off_when_asked(
    engine: RecordingEngine, link: SlowLink
) -> None:
    """Plain decoding needs no draft: it does not wait for one."""
    convergence = Convergence(engine, fetched)
    convergence.offer(desired(1))
    await convergence.converge(engine.stats())
    convergence.fetch_draft = link.fetch
    engine.calls.clear()
    convergence.offer(desired(2, version=8, table=()))
    assert not await convergence.converge(engine.stats())
    assert engine.calls == [("steps", ())]
    convergence.steps_instead = ()
    convergence.offer(desired(3, version=8))
    assert not await convergence.converge(engine.stats())
    assert engine.running.version == 7


async def test_a_draft_no_longer_wanted_is_not_waited_for(engine: RecordingEngine, link: SlowLink) -> None:
    """Another one is asked for instead; and none at all when the running one is wanted again, or at the end."""
    convergence = Convergence(engine, link.fetch)
    convergence.offer(desired(1, version=7))
    await convergence.converge(engine.stats())
    convergence.offer(desired(2, version=8))
    await convergence.converge(engine.stats())
    engine.running = DraftState(9, "digest9")
    convergence.offer(desired(3, version=9))
    assert await convergence.converge(engine.stats())
    convergence.offer(desired(4, version=10))
    await convergence.converge(engine.stats())
    convergence.stop()
    await asyncio.sleep(0)
    assert (link.asked, link.cancelled) == ([7, 8, 10], [7, 8, 10])


async def test_a_draft_that_fails_on_its_way_is_asked_for_again(engine: RecordingEngine, link: SlowLink) -> None:
    convergence = Convergence(engine, link.fetch)
    convergence.offer(desired(1))
    await convergence.converge(engine.stats())
    link.error = DraftError("part 3 of draft 7 is not on the bus")
    link.arrived.set()
    assert not await convergence.converge(engine.stats())
    assert convergence.draft_failure == DraftFailure(7, "digest7", 1, "part 3 of draft 7 is not on the bus")
    link.error = None
    assert await convergence.converge(engine.stats())
    assert (link.asked, convergence.draft_failure) == ([7, 7], None)
