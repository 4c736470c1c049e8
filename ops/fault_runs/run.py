"""Inflicts one fault and finds out what came of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from demo_run.waiting import StartError

from fault_runs import latency
from fault_runs.clients import Clients
from fault_runs.ledger import applied_twice, missing_drafts
from fault_runs.observer import Observer
from fault_runs.outcome import Outcome
from fault_runs.stage import ROLES, Stage
from fault_runs.table import Fault

BEFORE_S = 10.0
"""Load without a fault that latencies are held against."""
AFTER_S = 3.0
_LOOK_S = 0.25
Page = Callable[[dict[str, Any]], object]
Metrics = Callable[[Mapping[str, float]], object]


@dataclass(slots=True)
class Expected:
    """Something that a daemon's page and its metrics must say at some moment."""

    what: str
    name: str
    page: Page
    metrics: Metrics
    on_page: bool = False
    in_metrics: bool = False


@dataclass(slots=True)
class Inflicting:
    """What a fault's function is given.

    Attributes:
        ended_at: when the outside cause was gone, monotonic; set by `over`, by the end of the function if not.
        broken: what did not hold, see `check`.
        notes: figures for the JSON file.
        second_store: samples may lie in a second trainer's files too.
    """

    stage: Stage
    clients: Clients | None
    observer: Observer
    broken: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)
    ended_at: float = 0.0
    away_s: float = 3600.0
    _expected: list[Expected] = field(default_factory=list)

    def expect(self, what: str, name: str, page: Page, metrics: Metrics) -> None:
        """From now on look for this on a daemon's page and in its metrics.

        Args:
            name: of the daemon; what it does not answer counts as {}.
            page: called with /status; a KeyError is a no.
            metrics: called with the map of metrics_text.py.
        """
        self._expected.append(Expected(what, name, page, metrics))

    def expect_restart(self, name: str) -> None:
        """The daemon stops answering, and another one answers later: Prometheus' `up` and the page's start time."""
        self.expect(f"{name} is down", name, lambda status: not status, lambda metrics: not metrics)
        began = time.time()
        self.expect(
            f"{name} was started anew",
            name,
            lambda status: status["daemon"]["started_at"] > began,
            lambda metrics: metrics["tide_start_time_seconds"] > began,
        )

    def expect_bus_lost(self, *names: str) -> None:
        """These daemons say that they have no broker."""
        for name in names or ROLES:
            self.expect(
                f"{name} has no broker",
                name,
                lambda status: not status["bus"]["connected"] and status["health"]["bus"] != "ok",
                lambda metrics: metrics["tide_bus_connected"] == 0,
            )

    def expect_unwell(self, name: str, dependency: str, word: str = "") -> None:
        """A dependency of a daemon is not "ok", with this word in what is said."""
        self.expect(
            f"{name}: {dependency} {word}".strip(),
            name,
            lambda status: status["health"][dependency] != "ok" and word in status["health"][dependency],
            lambda metrics: metrics[f"tide_dependency_ok{{{dependency}}}"] == 0,
        )

    def check(self, what: str, holds: object) -> None:
        """Note a sentence that does not hold."""
        if not holds:
            self.broken.append(what)

    def over(self) -> None:
        """The outside cause is gone: recovery counts from here."""
        self.ended_at = time.monotonic()

    async def until(self, what: str, condition: Callable[[], Awaitable[object]], within_s: float) -> bool:
        """Wait for a condition that must come true; whether it did."""
        try:
            await self.stage.until(what, condition, within_s)
        except StartError as error:
            self.broken.append(str(error))
            return False
        return True

    async def seen(self, within_s: float) -> bool:
        """Wait until everything expected so far was said."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if all(item.on_page and item.in_metrics for item in self._expected):
                return True
            await asyncio.sleep(_LOOK_S)
        return False

    async def look(self) -> None:
        """Keep looking at pages and metrics; runs beside the fault."""
        while True:
            for name in sorted({item.name for item in self._expected}):
                status, metrics = await self.stage.status(name), await self.stage.metrics(name)
                for item in self._expected:
                    if item.name == name:
                        item.on_page |= holds(item.page, status)
                        item.in_metrics |= holds(item.metrics, metrics)
            await asyncio.sleep(_LOOK_S)

    @property
    def expects(self) -> bool:
        """Whether the fault is one that pages and metrics must tell."""
        return bool(self._expected)

    def unreported(self) -> list[str]:
        """What was expected and not seen."""
        return [
            f"{item.what}: {' and '.join(where)}"
            for item in self._expected
            if (where := [word for word, seen in (("page", item.on_page), ("metrics", item.in_metrics)) if not seen])
        ]


def holds(condition: Callable[[Any], object], value: object) -> bool:
    """Whether a condition holds; what is not there is a no."""
    try:
        return bool(condition(value))
    except (KeyError, TypeError, IndexError):
        return False


async def inflict(
    fault: Fault, stage: Stage, clients: Clients | None, observer: Observer, commit: str, away_s: float
) -> Outcome:
    """Run one fault on a stage that is well."""
    outcome = Outcome(fault.name, stage.engine, commit, datetime.now(UTC).strftime("%Y-%m-%d %H:%M"))
    run = Inflicting(stage, clients, observer, away_s=away_s)
    num_reports, num_restarts = len(observer.reports), stage.num_restarts
    lost_before, doubled_before, _ = await observer.decisions()
    before_at = time.monotonic()
    await asyncio.sleep(BEFORE_S)
    began = time.monotonic()
    looking = asyncio.create_task(run.look())
    try:
        try:
            await fault.inflict()(run)
        except StartError as error:
            run.broken.append(str(error))
        ended = run.ended_at = run.ended_at or time.monotonic()
        await _recover(run, outcome, fault.recovers_within_s, ended)
        await asyncio.sleep(AFTER_S)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    if outcome.recovered:
        await _count(run, outcome, num_reports, lost_before, doubled_before)
    if clients is not None:
        during = latency.within(clients.requests, began, time.monotonic())
        before = latency.within(clients.requests, before_at, began)
        failed = latency.errors(during)
        outcome.client_errors = len(failed)
        outcome.client_requests = len(during) - len(failed)
        outcome.extra_latency_s = latency.extra([each for each in before if each.ended <= began], during)
        if failed and not fault.clients_may_fail:
            run.broken.append(f"{len(failed)} requests failed, the first one: {failed[0].error}")
        run.notes["baseline_requests"] = len(before)
    if stage.num_restarts > num_restarts:
        run.notes["daemons_that_ended_by_themselves"] = stage.num_restarts - num_restarts
    outcome.unreported = run.unreported()
    outcome.reported = not outcome.unreported if run.expects else None
    outcome.broken, outcome.notes = run.broken, run.notes
    return outcome


async def _recover(run: Inflicting, outcome: Outcome, within_s: float, ended: float) -> None:
    """Wait until everything works: roles, leader, desired draft, requests, new samples in the trainer's store."""
    stage = run.stage
    until = ended + within_s
    appended: int | None = None
    wrong = ["nothing was looked at"]
    while time.monotonic() < until and wrong:
        trainer = await stage.role("trainer")
        now = trainer.get("num_tokens")
        if appended is None:
            appended = now
        checks = {
            "a role is not ready": await stage.all_ready(),
            "the fleet has not converged": holds(bool, await _quietly(stage.is_converged)),
            "no new samples arrive": now is not None and appended is not None and now != appended,
        }
        if run.clients is not None:
            run.clients.check()
            answered = [each for each in run.clients.requests if each.started > ended and not each.error]
            checks["requests are not answered"] = {each.streamed for each in answered} == {True, False}
        wrong = [words for words, well in checks.items() if not well]
        if wrong:
            await asyncio.sleep(_LOOK_S)
    outcome.recovered = not wrong
    if outcome.recovered:
        outcome.recovery_s = round(time.monotonic() - ended, 1)
    else:
        run.broken += wrong


async def _quietly(condition: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await condition()
    except (KeyError, IndexError):
        return False


async def _count(run: Inflicting, outcome: Outcome, num_reports: int, lost_before: int, doubled_before: int) -> None:
    """What was lost and what was done twice."""
    observer = run.observer
    seen, drafts = observer.samples.by_now(), observer.drafts.by_now()
    run.check("the trainer takes what is waiting", await observer.drained())
    observer.check()
    stored = observer.stored()
    lost_samples, unacknowledged, stored_twice = observer.samples.missing(stored, seen)
    observer.samples.forget_missing(stored, seen)
    lost_drafts = missing_drafts(drafts, await observer.manifests())
    lost, doubled, kinds = await observer.decisions()
    outcome.acknowledged_lost = lost_samples + lost_drafts + lost - lost_before
    outcome.unacknowledged_lost = unacknowledged
    swapped = applied_twice(observer.reports[max(0, num_reports - 1) :])
    outcome.applied_twice = swapped + stored_twice + doubled - doubled_before + observer.drafts.num_contradictions
    run.notes |= {"chunks_seen": observer.samples.num_seen, "decisions": len(observer.entries)}
    if outcome.acknowledged_lost or outcome.applied_twice:
        run.notes["lost_and_doubled"] = {
            "samples": lost_samples,
            "drafts": lost_drafts,
            "swapped_twice": swapped,
            "stored_twice": stored_twice,
            **kinds,
        }
