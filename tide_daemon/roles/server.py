"""The server role: an engine on one side, the bus on the other, and nothing in a request's path.

Six loops that do not wait for each other: ship captured rows, converge the engine and report what
happened, follow the desired state, follow what is to be forgotten, share the target's frozen rows with trainers once,
look whether anybody leads. Each survives the loss of what it talks to, and one that fails is run again: serving does
not end because something beside it did. What is decided is not decided here, see policy/; how the engine
obeys is behind engine/port.py.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from tide_daemon.bus.outbox import Outbox
from tide_daemon.bus.port import Bus
from tide_daemon.engine.port import NO_EPOCH, Engine, EngineStats
from tide_daemon.errors import TideError, WireError
from tide_daemon.policy.alone import Alone
from tide_daemon.policy.events import ServerReported
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.roles import pace
from tide_daemon.roles.continuity import Continuity
from tide_daemon.roles.controller_records import event_of_record
from tide_daemon.roles.convergence import Convergence
from tide_daemon.roles.heartbeat import Heartbeat
from tide_daemon.roles.leadership import Leadership
from tide_daemon.roles.leaving import Leaving
from tide_daemon.roles.node_report import ReportBuilder
from tide_daemon.roles.shipping import Shipping
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredServer, ForgetSamples, NodeReport, Record, TargetSpec

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Pace and limits of the server role.

    Attributes:
        node: this node's name, a subject token.
        drain_interval_s: how often ready chunks are taken from the engine.
        report_interval_s: how often a report is made.
        max_rows: captured rows a request, 0 for no limit.
        max_sample_rate: share of requests that may be captured; the controller can only lower it.
        excluded_workloads: of which nothing is captured.
        token_ids: whether chunks name the tokens, see wire/withheld.py.
        chunk_bytes: largest encoded chunk, the broker's limit permitting.
        publish_bytes: chunks that may wait for the broker's answer. Beyond, chunks stay in the engine's ring, which
            drops the newest rows when it is full and counts them.
        stop_deadline_s: time for the engine to end by itself at shutdown.
        flush_deadline_s: time for waiting chunks to reach the broker at shutdown.
    """

    node: str
    drain_interval_s: float = 0.05
    report_interval_s: float = 1.0
    max_rows: int = 0
    max_sample_rate: float = 1.0
    excluded_workloads: tuple[str, ...] = ()
    token_ids: bool = True
    chunk_bytes: int = 768 * 1024
    publish_bytes: int = 8 << 20
    stop_deadline_s: float = 10.0
    flush_deadline_s: float = 3.0


_RETRY_S = 1.0
_SHARE_RETRY_S = 5.0
"""Every try reads the target's embedding again, which may be a gigabyte."""
_TARGET_ROWS = "target_rows"
_LOOKS, _MIN_LOOK_S = 3, 0.1
_CALM_S = 10.0
"""A loop that has run this long since it failed counts as well again."""

_TURN_LIMITS_S = {"observe": 300.0}
"""A turn may swap in a draft of gigabytes. The other loops are not watched: by design they wait for the broker."""

REPORT_BYTES = 1 << 20
"""About a thousand reports: what may wait while the broker is away."""

FetchDraft = Callable[[TargetSpec, int, str], Awaitable[Path]]
ShareTarget = Callable[[TargetSpec], Awaitable[object]]
"""Puts the target's frozen rows on the bus unless they are there; see roles/target_rows.py."""


class ServerRole:
    """Looks after one engine until told to stop.

    Args:
        policy: by which the node looks after its own steps while the controller is away; defaults if None.
        share_target: None when trainers have the target's files, or another node shares them.
    """

    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        fetch_draft: FetchDraft,
        settings: ServerSettings,
        policy: PolicySettings | None = None,
        share_target: ShareTarget | None = None,
    ) -> None:
        self._bus = bus
        self._share_target = share_target
        self._policy = policy or PolicySettings()
        self._alone = Alone(settings.node, self._policy)
        self._leadership = Leadership(bus)
        self._chunks = Outbox(bus, max_bytes=settings.publish_bytes)
        # Only the newest reports matter, and chunks must not hold them up.
        self._reports = Outbox(bus, num_tasks=1, max_bytes=REPORT_BYTES, when_full="drop_oldest")
        self._engine = engine
        self._settings = settings
        self._report = ReportBuilder(settings.node)

        async def fetch(version: int, digest: str) -> Path:
            if (spec := engine.spec) is None:
                raise TideError("the engine has not said yet which target it serves")
            return await fetch_draft(spec, version, digest)

        self._convergence = Convergence(
            engine, fetch, settings.max_rows, settings.max_sample_rate, excluded=settings.excluded_workloads
        )
        self._control = Continuity()
        self._leaving = Leaving(token_ids=settings.token_ids, excluded=settings.excluded_workloads)
        self._shipping = Shipping(
            engine,
            bus,
            self._chunks,
            self._leaving,
            chunk_bytes=settings.chunk_bytes,
            drain_interval_s=settings.drain_interval_s,
            note=self._report.note,
        )
        self._stats: EngineStats | None = None
        self._last_report: NodeReport | None = None
        self._accept_length = pace.RecentAcceptLength()
        self._failed: dict[str, str] = {}
        self._heartbeat = Heartbeat(_TURN_LIMITS_S)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then stop the engine. Cancellation stops it as well."""
        async with self._chunks, self._reports:
            try:
                await self._run(stop)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.flush_deadline_s):
                        await self._shipping.rest()
                        await self._chunks.flush(self._settings.flush_deadline_s)
            finally:
                self._leaving.end()

    async def _run(self, stop: asyncio.Event) -> None:
        await self._engine.start()
        self._heartbeat.start()
        works = {
            "ship": self._shipping.run,
            "observe": self._observe,
            "follow": self._follow,
            "forget": self._forget,
            "share": self._share,
            "seek a leader": self._seek_leader,
        }
        loops = [asyncio.create_task(self._keep_running(name, work), name=name) for name, work in works.items()]
        try:
            await stop.wait()
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            self._convergence.stop()
            await self._engine.stop(self._settings.stop_deadline_s)

    async def _keep_running(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await self._run_once(name, work)
            except TideError as error:
                problem = str(error)
            except Exception as error:
                log.exception("server_loop_raised", loop=name)
                problem = f"{type(error).__name__}: {error}"
            else:
                problem = "it ended by itself"
            if self._failed.get(name) != problem:
                log.error("server_loop_failed", loop=name, error=problem)
            self._failed[name] = problem
            self._report.note(f"the loop {name!r} failed: {problem}")
            await asyncio.sleep(_RETRY_S)

    async def _run_once(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        running = asyncio.ensure_future(work())
        try:
            await asyncio.wait([running], timeout=_CALM_S)
            if not running.done():
                self._failed.pop(name, None)
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _observe(self) -> None:
        """Converge the engine and report, at the report's pace."""
        while True:
            started = time.monotonic()
            self._heartbeat.beat("observe")
            stats = self._stats = await self._engine.stats()
            await self._convergence.converge(stats)
            if self._convergence.last_error:
                self._report.note(self._convergence.last_error)
            if (spec := self._engine.spec) is not None:
                report = self._report.build(
                    stats,
                    time.time(),
                    applied_generation=self._convergence.applied_generation,
                    rows_published=self._shipping.num_rows,
                    bytes_published=self._chunks.stats.bytes_stored,
                    draft_failure=self._convergence.draft_failure,
                )
                self._last_report = report
                self._accept_length.take(report, time.monotonic())
                self._look_after_steps(report)
                await self._reports.offer(*message(spec.model, report))
            await asyncio.sleep(max(0.0, self._settings.report_interval_s - (time.monotonic() - started)))

    def _look_after_steps(self, report: NodeReport) -> None:
        """Let the node's own figures take steps away while no controller that leads is in reach."""
        now = time.monotonic()
        event = event_of_record(report, now)
        assert isinstance(event, ServerReported)
        self._alone.observe(event)
        desired = self._convergence.desired
        if desired is not None:
            table = self._alone.table(now, desired.steps_table, self._leadership.away_s())
            if (table != desired.steps_table) != (self._convergence.steps_instead is not None):
                log.warning("steps_by_ourselves", steps_table=table, desired=desired.steps_table)
            self._convergence.steps_instead = table if table != desired.steps_table else None

    async def _seek_leader(self) -> None:
        """Keep knowing whether anybody leads: several looks within the time after which the node is on its own."""
        spec = await self._served()
        await self._leadership.watch(spec.model, max(_MIN_LOOK_S, self._policy.alone_after_s / _LOOKS))

    async def _follow(self) -> None:
        """Keep the newest desired state; the broker hands over the last one first."""
        spec = await self._served()
        subject = subjects.control_server(spec.model, self._settings.node)
        async for stored in self._bus.tail(subject, since="last"):
            try:
                record = envelope.decode(stored.data)
                subjects.verify(subject, record)
            except WireError as error:
                log.warning("desired_state_undecodable", subject=subject, error=str(error))
                self._report.note(f"desired state was refused: {error}")
                continue
            if isinstance(record, DesiredServer):
                if self._control.broken_by(stored):
                    self._convergence.start_over()
                self._convergence.offer(record)

    async def _forget(self) -> None:
        """Let nothing more leave of requests whose samples are to be forgotten. What left is the trainers' to erase."""
        spec = await self._served()
        async for stored in self._bus.tail(subjects.all_forgets(spec.model), since="all"):
            try:
                record = envelope.decode(stored.data)
                subjects.verify(stored.subject, record)
            except WireError as error:
                log.warning("forget_undecodable", subject=stored.subject, error=str(error))
                continue
            if isinstance(record, ForgetSamples):
                self._leaving.forgotten.add(record.request_id)

    async def _share(self) -> None:
        """Until it succeeded once: it costs one look at the bus when the rows are there already."""
        spec = await self._served()
        while self._share_target is not None:
            if self._bus.connected:
                try:
                    await self._share_target(spec)
                    break
                except TideError as error:
                    self._failed[_TARGET_ROWS] = str(error)
                    self._report.note(f"the target's rows could not be shared with trainers: {error}")
            await asyncio.sleep(_SHARE_RETRY_S)
        self._failed.pop(_TARGET_ROWS, None)
        await asyncio.Event().wait()

    async def _served(self) -> TargetSpec:
        """What the engine serves, once it has said so."""
        while (spec := self._engine.spec) is None:  # noqa: ASYNC110  the engine is another process, not a task of ours
            await asyncio.sleep(self._settings.drain_interval_s)
        return spec

    def ready(self) -> bool:
        """True once the engine takes requests."""
        return self._stats is not None and self._stats.state in ("ready", "capture_off")

    def late(self) -> Mapping[str, float]:
        """See port.Role.late."""
        return self._heartbeat.late()

    def limit_capture(self, max_sample_rate: float, max_rows: int, excluded_workloads: tuple[str, ...]) -> None:
        """This node's own limits on capture from now on; see ServerSettings."""
        self._convergence.max_sample_rate, self._convergence.max_rows = max_sample_rate, max_rows
        self._convergence.excluded = self._leaving.excluded = excluded_workloads

    def health(self) -> dict[str, str]:
        """Each dependency: "ok" or what is wrong."""
        state = "starting" if self._stats is None else self._stats.state
        return {
            "engine": "ok" if state == "ready" else f"the engine is {state}",
            "bus": self._bus.problem or "ok",
            "samples": self._chunks.stats.problem or "ok",
            "reports": self._reports.stats.problem or "ok",
            "desired_state": self._convergence.last_error or "ok",
            **self._failed,
        }

    def snapshot(self) -> dict[str, object]:
        """What the status page shows of this node."""
        stats, wanted, report = self._stats, self._convergence.desired, self._last_report
        paced = self._alone.pace()
        return {
            "node": self._settings.node,
            "engine": "starting" if stats is None else stats.state,
            "draft_version": 0 if stats is None else stats.draft.version,
            "draft_digest": "" if stats is None else stats.draft.digest,
            "num_running": 0 if stats is None else stats.num_running,
            "accept_length": self._accept_length.value(time.monotonic()),
            "tokens_per_s": 0.0 if report is None else pace.tokens_per_s(report),
            "decode_tokens_per_s": None if paced is None else paced.tokens_per_s,
            "plain_tokens_per_s": None if paced is None else paced.plain_tokens_per_s,
            "of_plain": None if paced is None else paced.of_plain,
            "num_steps": 0 if stats is None else self._num_steps(stats),
            "collecting": stats is not None and stats.collecting,
            **_counted(stats),
            "rows_published": self._shipping.num_rows,
            "bytes_published": self._chunks.stats.bytes_stored,
            "requests_published": self._leaving.num_requests,
            "chunks_kept": self._leaving.num_kept,
            "chunks_waiting": self._chunks.stats.waiting_messages + self._chunks.stats.in_flight,
            "chunks_dropped": self._shipping.num_refused
            + self._chunks.stats.num_dropped
            + self._chunks.stats.num_failed,
            "engine_starts": 0 if stats is None else stats.engine_starts,
            "desired_draft_version": 0 if wanted is None else wanted.draft_version,
            "steps_table": [] if wanted is None else [list(entry) for entry in wanted.steps_table],
            "reason": "" if wanted is None else wanted.reason,
            "applied_generation": self._convergence.applied_generation,
            "last_error": self._convergence.last_error,
            "problems": [] if stats is None else list(stats.problems),
        }

    def _num_steps(self, stats: EngineStats) -> int:
        return pace.steps_at(self._convergence.steps_in_force(stats), stats.num_running)


def _counted(stats: EngineStats | None) -> dict[str, int]:
    """What the engine counts. Nothing while it does not answer: from 0 back to what they were, counters would seem to
    have grown by all of it."""
    if stats is None or stats.epoch == NO_EPOCH:
        return {}
    return {
        "rows_written": stats.rows_written,
        "rows_dropped": stats.rows_dropped,
        "requests_opted_out": stats.requests_opted_out,
        "num_swaps": stats.num_swaps,
    }


def message(model: str, record: Record) -> tuple[str, bytes, str]:
    """(subject, bytes, message id) of a record."""
    return subjects.subject_of(model, record), envelope.encode(record), subjects.message_id(model, record)
