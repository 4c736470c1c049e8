"""The trainer role: chunks in, drafts out, and a report every second or two.

Loops that do not wait for each other: store chunks (trainer_ingest.py), forget what is to be forgotten
(trainer_forget.py), follow the desired state, follow what is published (draft_catalog.py), run rounds
(trainer_rounds.py), report. With the bus away training goes on; with the disk
full nothing is acknowledged; with the worker dead it is started again from its checkpoint. Whether and when to train is
the controller's choice.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from tide_daemon.bus.port import Bus
from tide_daemon.errors import BusError, DraftError, StoreError, WireError
from tide_daemon.roles.continuity import Continuity
from tide_daemon.roles.draft_catalog import DraftCatalog
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.roles.heartbeat import Heartbeat
from tide_daemon.roles.target_rows import fetch_target_rows, is_intact
from tide_daemon.roles.target_spec import SpecKeeper
from tide_daemon.roles.trainer_forget import Forgetter
from tide_daemon.roles.trainer_ingest import FORGOTTEN, Ingest
from tide_daemon.roles.trainer_pool import PoolScorer
from tide_daemon.roles.trainer_rounds import RoundRunner
from tide_daemon.trainer.scores import accept_lengths
from tide_daemon.trainer.settings import TrainerSettings, target_dir
from tide_daemon.trainer.worker_link import JobStoppedError, WorkerLink
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.kinds import MAX_POOL
from tide_daemon.wire.records import NO_DRAFT, DesiredTrainer, TargetSpec, TrainerReport

log = structlog.get_logger()

_RETRY_S = 2.0
_POLL_S = 0.5
_MAX_PROBLEM_CHARS = 500
_ADVICE = {
    "tokens_withheld": ": they name no token and hold no top-k to tell it from; on the server set capture.token_ids, "
    "or capture.topk_logprobs to at least 1"
}
_TURN_LIMITS_S = {"ingest": 300.0, "report": 60.0}
"""Rounds last for hours and have their own watch: trainer/worker_link.py ends a worker that falls silent."""


class TrainerRole:
    """One trainer on one state directory. Built for one run."""

    def __init__(self, bus: Bus, settings: TrainerSettings, state_dir: Path) -> None:
        """Open the state directory.

        Raises:
            StoreError: it, or the target's folder, cannot be used.
        """
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the trainer's state directory: {error}") from error
        self._bus = bus
        self._settings = settings
        self._state_dir = state_dir
        self._target_is_here = False
        self._specs = SpecKeeper(state_dir, settings.model, settings.target_path)
        self._heartbeat = Heartbeat(_TURN_LIMITS_S)
        self._ingest = Ingest(
            bus, settings, state_dir / "store", self._specs, time.time, lambda: self._heartbeat.beat("ingest")
        )
        self._forgetter = Forgetter(bus, settings.model, settings.name, self._ingest)
        self._link = WorkerLink(settings, state_dir)
        self._catalog = DraftCatalog(bus, settings.model, settings.keep_versions)
        # Earlier drafts are scored together, so all of them and the serving one have to be there at once.
        fetcher = DraftFetcher(bus, state_dir / "drafts", keep=max(settings.keep_versions, MAX_POOL + 1))
        self._runner = RoundRunner(bus, settings, state_dir, self._link, fetcher, self._catalog.listed)
        self._pool = PoolScorer(settings, self._link, fetcher)
        self._desired: DesiredTrainer | None = None
        self._desired_changed = asyncio.Event()
        self._control = Continuity()
        self._highest_token = 0
        self._sequence = 0
        self._shadowed_sequence = 0
        self._shadowed_at = -settings.shadow_interval_s
        self._problem = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then checkpoint and return. Cancellation ends the worker at once."""
        self._heartbeat.start()
        loops = [
            asyncio.create_task(loop)
            for loop in (
                self._forgetter.follow(),
                self._forgetter.work(),
                self._ingest.run(),
                self._follow(),
                self._catalog.run(),
                self._train(),
                self._report(),
            )
        ]
        waiter = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([waiter, *loops], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except asyncio.CancelledError:
            await self._link.kill()
            raise
        finally:
            for task in (waiter, *loops):
                task.cancel()
            await asyncio.gather(waiter, *loops, return_exceptions=True)
            await self._link.close()
            self._ingest.close()

    async def _follow(self) -> None:
        """Keep the newest desired state; the broker hands over the last one first."""
        subject = subjects.control_trainer(self._settings.model, self._settings.name)
        async for message in self._bus.tail(subject, since="last"):
            try:
                record = envelope.decode(message.data)
                subjects.verify(subject, record)
            except WireError as error:
                log.warning("desired_state_undecodable", subject=subject, error=str(error))
                continue
            if not isinstance(record, DesiredTrainer):
                continue
            if self._control.broken_by(message):
                log.warning("desired_state_starts_over", highest_fencing_token=self._highest_token)
                self._desired, self._highest_token = None, 0
            if self._offer(record):
                try:
                    self._runner.note_serving(record)
                except StoreError as error:
                    self._note(str(error))

    def _offer(self, desired: DesiredTrainer) -> bool:
        """Take a desired state unless it comes from a controller that lost its lease, or is a replay."""
        held = self._desired
        if desired == held:
            return False
        if desired.fencing_token < self._highest_token or (
            held is not None and (desired.fencing_token, desired.generation) <= (held.fencing_token, held.generation)
        ):
            log.warning("desired_state_refused", generation=desired.generation, fencing_token=desired.fencing_token)
            return False
        self._highest_token = desired.fencing_token
        self._desired = desired
        self._desired_changed.set()
        return True

    def _wanted(self) -> DesiredTrainer:
        assert self._desired is not None
        return self._desired

    async def _train(self) -> None:
        """One round after another, as desired; between them scores of earlier drafts and shadow scores."""
        while True:
            self._desired_changed.clear()
            try:
                await self._next_work()
            except JobStoppedError:
                log.info("round_stopped", round=self._runner.progress.round)
            except (DraftError, StoreError, BusError, WireError) as error:
                self._note(str(error))
                await asyncio.sleep(_RETRY_S)
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._desired_changed.wait()
            except TimeoutError:
                continue

    async def _next_work(self) -> None:
        desired, spec = self._desired, self._specs.spec
        if desired is None or spec is None:
            return
        if not await self._has_target(spec):
            self._note("waits for the target's frozen tensors: set trainer.target_path, or have a server publish them")
            return
        self._problem = ""
        self._pool.follow(desired, self._ingest.stats.newest_finished_sequence)
        self._ingest.mark = self._pool.mark
        pending = self._runner.pending()
        if pending is not None:
            await self._round(pending.number)
        elif desired.round > self._runner.last_begun():
            if self._ingest.stats.new_tokens < self._settings.round_min_tokens:
                have, need = self._ingest.stats.new_tokens, self._settings.round_min_tokens
                self._runner.progress.reason = f"round {desired.round} waits for data: {have} of {need} new tokens"
                return
            await self._round(desired.round)
        elif self._pool.is_due(desired, self._ingest.stats):
            await self._pool.score(desired, spec)
        elif self._shadow_is_due():
            self._shadowed_sequence = self._ingest.stats.newest_finished_sequence
            self._shadowed_at = time.monotonic()
            await self._runner.shadow(desired, spec)

    async def _has_target(self, spec: TargetSpec) -> bool:
        """Whether the target's tensors are on this machine; fetches them once if they are on the bus."""
        if self._settings.target_path or self._target_is_here:
            return True
        folder = target_dir(self._settings, self._state_dir)
        if await asyncio.to_thread(is_intact, folder) or await fetch_target_rows(self._bus, spec, folder):
            self._target_is_here = True
        return self._target_is_here

    async def _round(self, number: int) -> None:
        spec = self._specs.spec
        assert spec is not None
        await self._runner.run(number, self._wanted, spec)
        await self._ingest.count_from(self._runner.cursor())

    def _shadow_is_due(self) -> bool:
        interval_s = self._settings.shadow_interval_s
        return (
            interval_s > 0
            and self._ingest.stats.newest_finished_sequence > self._shadowed_sequence
            and time.monotonic() - self._shadowed_at >= interval_s
        )

    async def _report(self) -> None:
        """Tell the controller; a report that cannot be sent is followed by a newer one."""
        while True:
            self._heartbeat.beat("report")
            await self._ingest.count_from(self._runner.cursor())
            self._sequence += 1
            report = self._make_report(time.time())
            model = self._settings.model
            try:
                await self._bus.publish(
                    subjects.subject_of(model, report),
                    envelope.encode(report),
                    message_id=subjects.message_id(model, report),
                    timeout_s=self._settings.report_interval_s + 1.0,
                )
            except BusError as error:
                log.debug("report_not_sent", error=str(error))
            await asyncio.sleep(self._settings.report_interval_s)

    def _make_report(self, at: float) -> TrainerReport:
        stats, progress, desired = self._ingest.stats, self._runner.progress, self._desired
        return TrainerReport(
            trainer=self._settings.name,
            at=at,
            sequence=self._sequence,
            state=progress.state,
            serving_version=desired.serving_version if desired is not None else NO_DRAFT,
            applied_generation=desired.generation if desired is not None else 0,
            num_requests=stats.num_requests,
            num_tokens=stats.num_tokens,
            num_heldout=stats.num_heldout,
            new_tokens=stats.new_tokens,
            store_bytes=stats.num_bytes,
            round=progress.round,
            step=progress.step,
            num_steps_total=progress.num_steps_total,
            loss=progress.loss,
            shadow=progress.shadow,
            refused=dict(self._ingest.refused),
            problems=tuple(problem[:_MAX_PROBLEM_CHARS] for problem in self._problems()),
            pool_scoring=self._pool.number if self._pool.scores is not None else 0,
            pool=self._pool.scores or (),
            workloads=stats.workloads,
        )

    def _problems(self) -> list[str]:
        """Plain sentences about what is wrong now."""
        refused = [
            f"{count} chunks were refused as {reason}{_ADVICE.get(reason, '')}"
            for reason, count in sorted(self._ingest.refused.items())
            if reason != FORGOTTEN  # as it should be
        ]
        own = (self._ingest.problem, self._forgetter.problem, self._problem, self._runner.progress.reason)
        return [text for text in (*own, *refused) if text]

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            log.warning("training_delayed", problem=problem)
        self._problem = problem

    def ready(self) -> bool:
        """True once the broker answers and the disk takes samples."""
        return self._bus.connected and not self._ingest.problem

    def late(self) -> Mapping[str, float]:
        """See port.Role.late."""
        return self._heartbeat.late()

    def health(self) -> Mapping[str, str]:
        """Each dependency: "ok" or what is wrong."""
        progress = self._runner.progress
        return {
            "bus": "ok" if self._bus.connected else "not connected to the broker",
            "store": self._ingest.problem or "ok",
            # What keeps a round from going on, publishing included; a round that waits for data is well.
            "training": (progress.reason if progress.state != "waiting" else "") or self._problem or "ok",
        }

    def snapshot(self) -> Mapping[str, object]:
        """What the status page shows of this trainer."""
        stats, progress, desired = self._ingest.stats, self._runner.progress, self._desired
        serving, candidate = accept_lengths(progress.last_scores)
        return {
            "trainer": self._settings.name,
            "state": progress.state,
            "reason": progress.reason,
            "round": progress.round,
            "step": progress.step,
            "num_steps_total": progress.num_steps_total,
            "loss": progress.loss,
            "left_s": progress.left_s,
            "num_passed_tokens": progress.num_passed_tokens,
            "serving_version": desired.serving_version if desired is not None else NO_DRAFT,
            "desired_round": desired.round if desired is not None else 0,
            "num_requests": stats.num_requests,
            "num_tokens": stats.num_tokens,
            "num_heldout": stats.num_heldout,
            "new_tokens": stats.new_tokens,
            "store_bytes": stats.num_bytes,
            "store": self._ingest.counters(),
            "requests_forgotten": self._forgetter.num_forgotten,
            "refused": dict(self._ingest.refused),
            "serving_accept_length": serving,
            "candidate_accept_length": candidate,
            "shadow": [
                {
                    "workload": score.workload,
                    "num_requests": score.num_requests,
                    "accept_length": score.num_tokens / max(1, score.num_positions),
                }
                for score in progress.shadow
            ],
            "candidates_published": self._runner.num_published,
            "pool": [version for version, _ in desired.pool] if desired is not None else [],
            "pool_scoring": self._pool.number,
            "versions": sorted(self._catalog.listed()),
            "worker_pid": self._link.pid,
            "worker_starts": self._link.num_starts,
            "problems": self._problems(),
        }
