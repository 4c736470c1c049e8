"""What happened, as read from the bus: reports and decisions become points over time.

The demonstration sees what any operator can see with the NATS CLI, nothing more: it subscribes to
reports and to the journal.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from tide_daemon.bus.port import Bus
from tide_daemon.errors import WireError
from tide_daemon.wire import envelope
from tide_daemon.wire.records import Decision, DraftManifest, NodeReport, TrainerReport

SPOKEN = 200
"""Decisions kept for the screen and the picture."""


@dataclass(frozen=True, slots=True)
class Point:
    """One node report, reduced to what is drawn.

    `num_rows` is the sum of batch sizes over all verify steps, plain ones included, so that
    num_tokens / num_rows is the accept length: exactly 1 while nothing is speculated.
    """

    at: float
    num_tokens: int
    num_rows: int
    step_s: float
    draft_version: int
    speculating: bool

    @property
    def accept_length(self) -> float | None:
        return self.num_tokens / self.num_rows if self.num_rows else None

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.step_s if self.step_s > 0 else 0.0


@dataclass(slots=True)
class Timeline:
    """Everything seen so far. `started_at` is unix seconds; all times are kept as unix seconds."""

    started_at: float = field(default_factory=time.time)
    points: list[Point] = field(default_factory=list)
    decisions: deque[Decision] = field(default_factory=lambda: deque(maxlen=SPOKEN))
    node: NodeReport | None = None
    trainer: TrainerReport | None = None
    num_candidates: int = 0

    def add(self, record: object) -> None:
        """Take one record; other kinds are ignored."""
        if isinstance(record, NodeReport):
            self.node = record
            self.points.append(point_of(record))
        elif isinstance(record, TrainerReport):
            self.trainer = record
        elif isinstance(record, Decision):
            if record.instructions:
                self.decisions.append(record)
        elif isinstance(record, DraftManifest):
            self.num_candidates += 1

    @property
    def num_versions(self) -> int:
        """How many drafts the server has run so far."""
        return len({point.draft_version for point in self.points if point.draft_version})

    def accept_length_since(self, at: float) -> float | None:
        """Tokens a request and step since `at`, plain steps included; None without a step."""
        points = [p for p in self.points if p.at >= at]
        rows = sum(p.num_rows for p in points)
        return sum(p.num_tokens for p in points) / rows if rows else None


def point_of(report: NodeReport) -> Point:
    """Totals of one report over all its batch sizes and step counts."""
    return Point(
        at=report.at,
        num_tokens=sum(s.num_tokens for s in report.steps),
        num_rows=sum(s.num_verifies * s.batch_size for s in report.steps),
        step_s=sum(s.step_s for s in report.steps),
        draft_version=report.running_version,
        speculating=any(s.num_steps > 0 for s in report.steps),
    )


async def follow(bus: Bus, timeline: Timeline) -> None:
    """Read reports, candidates and decisions into `timeline` until cancelled."""

    async def tail(subject: str) -> None:
        async for message in bus.tail(subject, since="new"):
            try:
                timeline.add(envelope.decode(message.data))
            except WireError:
                continue

    async with asyncio.TaskGroup() as group:
        for subject in ("tide.v1.report.>", "tide.v1.journal.>", "tide.v1.draft.*.*.manifest"):
            group.create_task(tail(subject))
