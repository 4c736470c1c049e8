"""Brings the engine to the desired state, again and again, whatever happened in between.

Level-triggered: only the newest desired state counts, and each call compares it with what the
engine itself says it runs. So a restart of the engine, of this daemon, or a missed message needs no
special case. Order matters: a draft is applied and read back before any step may speculate with it.
A draft of gigabytes may be on its way for minutes: it is fetched beside all this, and meanwhile the node reports, goes
on with what it has, and decodes plainly if that is what is asked of it.
Deciding what is desired is not done here, see policy/ and roles/controller.py.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from tide_daemon.engine.port import CaptureSettings, DraftState, Engine, EngineStats
from tide_daemon.errors import DraftError, EngineRefusedError, TideError
from tide_daemon.wire.records import NO_DRAFT, DesiredServer, DraftFailure

log = structlog.get_logger()

FetchDraft = Callable[[int, str], Awaitable[Path]]
"""(version, digest) -> directory of a verified checkpoint; raises a TideError if it cannot be had."""

PLAIN: tuple[tuple[int, int], ...] = ()

_PATIENCE_S = 0.5
"""A draft that is there within this is swapped in at once; a longer wait would hold up the node's reports."""


class _NotYet(TideError):
    """The draft is on its way."""


@dataclass(slots=True)
class Convergence:
    """Desired state on one side, an engine on the other.

    Attributes:
        max_rows, max_sample_rate: this node's own limits on capture; the desired state can only lower them.
        excluded: workloads of which nothing is captured, whatever is desired.
        applied_generation: generation of the desired state that is fully in force, 0 before the first.
        steps_instead: steps table to run in place of the desired one, None for that one; see policy/alone.py.
        last_error: why the newest desired state is not in force, "" if it is.
        draft_failure: the draft that was tried last and cannot be had or is not taken, None while none is such.
    """

    engine: Engine
    fetch_draft: FetchDraft
    max_rows: int = 0
    max_sample_rate: float = 1.0
    applied_generation: int = 0
    last_error: str = ""
    draft_failure: DraftFailure | None = None
    desired: DesiredServer | None = None
    steps_instead: tuple[tuple[int, int], ...] | None = None
    excluded: tuple[str, ...] = ()
    _steps: tuple[tuple[int, int], ...] | None = None
    _capture: CaptureSettings | None = None
    _epoch: int = -1
    _highest_token: int = 0
    _fetching: tuple[DraftState, asyncio.Task[Path]] | None = None
    _refused: int = field(default=0)

    def offer(self, desired: DesiredServer) -> bool:
        """Take a desired state if it is not older than the one held.

        A record with a lower fencing token than one already seen comes from a controller that lost its
        lease; one with the same token and a lower generation is a replay. Both are refused and counted.
        """
        held = self.desired
        stale = desired.fencing_token < self._highest_token
        replayed = held is not None and (desired.fencing_token, desired.generation) < (
            held.fencing_token,
            held.generation,
        )
        if stale or replayed:
            self._refused += 1
            log.warning(
                "desired_state_refused",
                generation=desired.generation,
                fencing_token=desired.fencing_token,
                highest_fencing_token=self._highest_token,
            )
            return False
        self._highest_token = desired.fencing_token
        self.desired = desired
        return True

    def start_over(self) -> None:
        """Forget what was offered so far: the bus that it came from was made anew, and tokens begin again there."""
        log.warning("desired_state_starts_over", highest_fencing_token=self._highest_token)
        self.desired, self._highest_token, self.applied_generation = None, 0, 0
        self.stop()

    def stop(self) -> None:
        """Give up the draft that is being fetched, if any. `converge` begins anew."""
        if self._fetching is not None:
            self._fetching[1].cancel()
            self._fetching = None

    async def converge(self, stats: EngineStats) -> bool:
        """One attempt to bring the engine to the desired state; True when it is in force.

        Never raises for a failure of the engine or of the bus: `last_error` says what is missing, and the
        caller tries again at its own pace.
        """
        desired = self.desired
        if desired is None or stats.state not in ("ready", "capture_off"):
            return False
        if stats.epoch != self._epoch:
            self._epoch, self._steps, self._capture = stats.epoch, None, None
        table = desired.steps_table if self.steps_instead is None else self.steps_instead
        if desired.draft_version == NO_DRAFT:
            table = PLAIN
        try:
            await self._apply_capture(desired)
            if table == PLAIN:
                await self._apply_steps(PLAIN)
            await self._apply_draft(desired, stats.draft)
            await self._apply_steps(table)
        except TideError as error:
            if str(error) != self.last_error and not isinstance(error, _NotYet):
                log.warning("desired_state_not_reached", generation=desired.generation, error=str(error))
            self.last_error = str(error)
            return False
        if self.applied_generation != desired.generation:
            log.info(
                "desired_state_reached",
                generation=desired.generation,
                draft_version=desired.draft_version,
                steps_table=desired.steps_table,
                collect=desired.collect,
                reason=desired.reason,
            )
        self.applied_generation, self.last_error = desired.generation, ""
        return True

    def steps_in_force(self, stats: EngineStats) -> tuple[tuple[int, int], ...]:
        """The table that the engine was given and that it drafts by; PLAIN while it runs no draft."""
        if self._steps is None or stats.epoch != self._epoch or stats.draft.version == NO_DRAFT:
            return PLAIN
        return self._steps

    async def _apply_capture(self, desired: DesiredServer) -> None:
        wanted = CaptureSettings(
            desired.collect,
            min(desired.sample_rate, self.max_sample_rate),
            self.max_rows,
            desired.preferred,
            min(desired.preferred_rate, self.max_sample_rate),
            self.excluded,
        )
        if wanted != self._capture:
            await self.engine.set_capture(wanted)
            self._capture = wanted

    async def _apply_draft(self, desired: DesiredServer, running: DraftState) -> None:
        wanted = DraftState(desired.draft_version, desired.draft_digest)
        if running == wanted or desired.draft_version == NO_DRAFT:
            self.draft_failure = None
            self.stop()
            return
        try:
            path = await self._fetched(wanted)
            await self.engine.swap(str(path), wanted)
        except _NotYet:
            raise
        except TideError as error:
            self.draft_failure = self._failure(wanted, error)
            raise
        self.draft_failure = None
        log.info("draft_swapped", version=wanted.version, digest=wanted.digest[:12], replaced=running.version)

    async def _fetched(self, wanted: DraftState) -> Path:
        if self._fetching is None or self._fetching[0] != wanted:
            self.stop()
            task = asyncio.ensure_future(self.fetch_draft(wanted.version, wanted.digest))
            self._fetching = wanted, task
        task = self._fetching[1]
        await asyncio.wait([task], timeout=_PATIENCE_S)
        if not task.done():
            raise _NotYet(f"draft {wanted.version} is on its way")
        self._fetching = None
        return task.result()

    def _failure(self, wanted: DraftState, error: TideError) -> DraftFailure | None:
        """What a failed try says against the draft: nothing if the broker, the disk or an engine that does not
        answer is to blame. These may be well again in a moment, and the count begins again after them."""
        if not isinstance(error, DraftError | EngineRefusedError):
            return None
        before = self.draft_failure
        again = before is not None and (before.version, before.digest) == (wanted.version, wanted.digest)
        num_tries = before.num_tries + 1 if before is not None and again else 1
        return DraftFailure(wanted.version, wanted.digest, num_tries, str(error))

    async def _apply_steps(self, table: tuple[tuple[int, int], ...]) -> None:
        if table != self._steps:
            await self.engine.set_steps(table)
            self._steps = table
