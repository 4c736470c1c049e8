"""Turns the engine's cumulative counters into reports of what is new. Pure: no clock, no I/O.

The engine counts since it started; the controller wants differences, and must not mistake a
restarted engine for negative traffic, nor what an engine has counted before for something new: not when
this daemon was started beside an engine that ran already, not when the engine fell silent for a while.
`engine/port.py` describes both sides' fields.
"""

from dataclasses import dataclass, field, replace

from tide_daemon.engine.port import NO_EPOCH, EngineStats
from tide_daemon.wire.records import DraftFailure, NodeReport, StepStats, WorkloadSteps

MAX_WORKLOADS = 16
"""Workloads that a report tells of: labels are the clients' choice."""

StepKey = tuple[int, int]


@dataclass(slots=True)
class ReportBuilder:
    """Makes one NodeReport after another from successive EngineStats. `node` is the report's name."""

    node: str
    _sequence: int = 0
    _counted: EngineStats | None = None
    _counted_at: float = 0.0
    _reported_at: float | None = None
    _problems: list[str] = field(default_factory=list)

    def note(self, problem: str, keep: int = 16) -> None:
        """Add a plain sentence to the next report; beyond `keep` the oldest goes."""
        self._problems.append(problem)
        del self._problems[:-keep]

    def build(
        self,
        stats: EngineStats,
        at: float,
        *,
        applied_generation: int,
        rows_published: int,
        bytes_published: int,
        draft_failure: DraftFailure | None = None,
    ) -> NodeReport:
        """What happened since the engine was heard of before.

        Args:
            stats: cumulative since the engine's epoch began.
            at: unix seconds; the interval is the span that the counts cover (0.0 on the first call).

        Returns:
            A report whose `steps` hold differences; problems noted since the last report are handed over.
        """
        # The first statistics are what later ones are compared with: an engine that was started just now has counted
        # next to nothing, one that ran before this daemon did has told it to another.
        before = stats if self._counted is None else self._counted
        is_silent = stats.epoch == NO_EPOCH
        same_engine = before.epoch == stats.epoch
        old = {step_key(s): s for s in before.steps} if same_engine else {}
        steps = tuple(
            difference
            for current in stats.steps
            if (difference := subtract(current, old.get(step_key(current)))).num_verifies > 0
        )
        earlier = {w.workload: w for w in before.workloads} if same_engine else {}
        workloads = [newer(current, earlier.get(current.workload)) for current in stats.workloads]
        since = self._reported_at if is_silent or self._counted is None else self._counted_at
        interval_s = max(0.0, at - since) if since is not None else 0.0
        self._sequence += 1
        self._reported_at = at
        if not is_silent:
            self._counted, self._counted_at = stats, at
        problems, self._problems = tuple(self._problems) + stats.problems[-4:], []
        return NodeReport(
            node=self.node,
            at=at,
            sequence=self._sequence,
            engine=stats.state,
            running_version=stats.draft.version,
            running_digest=stats.draft.digest,
            applied_generation=applied_generation,
            num_running=stats.num_running,
            interval_s=interval_s,
            steps=steps,
            collecting=stats.collecting,
            rows_written=stats.rows_written,
            rows_dropped=stats.rows_dropped,
            rows_published=rows_published,
            bytes_published=bytes_published,
            requests_opted_out=stats.requests_opted_out,
            num_swaps=stats.num_swaps,
            engine_starts=stats.engine_starts,
            problems=problems,
            workloads=largest(workloads),
            draft_failure=draft_failure,
        )


def step_key(step: StepStats) -> StepKey:
    """What identifies a counter: (batch size, num_steps)."""
    return step.batch_size, step.num_steps


def subtract(current: StepStats, earlier: StepStats | None) -> StepStats:
    """Counts of `current` that came after `earlier`; the median is the current one."""
    if earlier is None:
        return current
    return replace(
        current,
        num_verifies=current.num_verifies - earlier.num_verifies,
        num_tokens=current.num_tokens - earlier.num_tokens,
        accepted_at=tuple(now - then for now, then in zip(current.accepted_at, earlier.accepted_at, strict=True)),
        step_s=current.step_s - earlier.step_s,
        target_s=current.target_s - earlier.target_s,
    )


def newer(current: WorkloadSteps, earlier: WorkloadSteps | None) -> WorkloadSteps:
    """Counts of `current` that came after `earlier`."""
    if earlier is None:
        return current
    return WorkloadSteps(
        current.workload, current.num_chains - earlier.num_chains, current.num_tokens - earlier.num_tokens
    )


def largest(workloads: list[WorkloadSteps]) -> tuple[WorkloadSteps, ...]:
    """Those with most chains, without any that had none, by name."""
    some = [each for each in workloads if each.num_chains > 0]
    kept = sorted(some, key=lambda each: (-each.num_chains, each.workload))[:MAX_WORKLOADS]
    return tuple(sorted(kept, key=lambda each: each.workload))
