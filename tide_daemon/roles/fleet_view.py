"""A fleet as it shows on the bus: records in, one FleetStatus out. No I/O and no clock, see fleet_watch.py.

Whoever may read reports and the journal can make one: the controller's page, whether it leads or not, and
`tide-daemon status`. Nothing is decided here; what was decided is read from the journal (policy/why/history.py).
"""

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tide_daemon.bus.port import StreamDepth
from tide_daemon.policy.events import CandidatePublished, FleetState, ServerReported, StepCount
from tide_daemon.policy.instructions import Answered, FleetMoved, Judged, SetTrainer
from tide_daemon.policy.node import NodeState
from tide_daemon.policy.plain_pace import plain_pace
from tide_daemon.policy.why.decision import cause_words, decided_words, told
from tide_daemon.policy.why.fleet import why_workloads
from tide_daemon.policy.why.history import Decided, History
from tide_daemon.policy.why.version import why_version
from tide_daemon.policy.why.words import steps_words
from tide_daemon.roles.controller_records import event_of_record
from tide_daemon.roles.fleet_problems import problems_of
from tide_daemon.roles.fleet_status import (
    DecisionRow,
    DraftRow,
    FleetStatus,
    Said,
    ScoreRow,
    ServerRow,
    StreamRow,
    TrainerRow,
)
from tide_daemon.roles.pace import steps_at, tokens_per_s
from tide_daemon.wire.records import Decision, DesiredServer, DraftManifest, NodeReport, TrainerReport

_PACE_WINDOW_S = 10.0
_DROPS_WINDOW_S = 60.0
_PROGRESS_WINDOW_S = 60.0
_KEPT_REPORTS = 200
_SHOWN_DECISIONS, _SHOWN_DRAFTS = 40, 12
_MAX_WORDS = 400
"""A page is no log: a longer sentence is cut."""


@dataclass(slots=True)
class _Server:
    """A node's newest report, its costs, and what its last reports counted."""

    state: NodeState
    report: NodeReport
    heard_at: float
    counted: deque[tuple[float, tuple[tuple[int, StepCount], ...]]] = field(
        default_factory=lambda: deque(maxlen=_KEPT_REPORTS)
    )
    rows: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=_KEPT_REPORTS))

    def recent(self) -> list[tuple[int, StepCount]]:
        """Counters of the last seconds, up to the newest report."""
        return [item for at, counted in self.counted if at > self.heard_at - _PACE_WINDOW_S for item in counted]

    def dropped_share(self) -> float:
        """Of the rows captured in the last minute."""
        rows = [item for item in self.rows if item[0] > self.heard_at - _DROPS_WINDOW_S]
        if not rows:
            return 0.0
        written, dropped = rows[-1][1] - rows[0][1], rows[-1][2] - rows[0][2]
        return dropped / (written + dropped) if written >= 0 and dropped > 0 else 0.0


@dataclass(slots=True)
class _Trainer:
    """A trainer's newest report, and how it came there."""

    report: TrainerReport
    heard_at: float
    steps: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=_KEPT_REPORTS))

    def left_s(self) -> float | None:
        """Seconds until the round's last step at the pace of the last minute; None when no step was seen."""
        report = self.report
        seen = [
            (at, step)
            for at, number, step in self.steps
            if number == report.round and at > self.heard_at - _PROGRESS_WINDOW_S
        ]
        if report.state != "training" or len(seen) < 2 or seen[-1][1] <= seen[0][1]:
            return None
        pace = (seen[-1][0] - seen[0][0]) / (seen[-1][1] - seen[0][1])
        return pace * max(0, report.num_steps_total - report.step)


class FleetView:
    """What is known of one model's fleet. Records may come twice; older ones after newer ones may not."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.history = History()
        self._token = 0
        self._servers: dict[str, _Server] = {}
        self._trainers: dict[str, _Trainer] = {}
        self._desired: dict[str, DesiredServer] = {}
        self._published: dict[int, CandidatePublished] = {}
        self._depths: dict[str, StreamDepth] = {}

    def decided(self, decision: Decision) -> None:
        """The next entry of the journal. One of a controller that led no longer is left out, as everywhere."""
        if decision.fencing_token < self._token:
            return
        self._token = decision.fencing_token
        d, maps = decision, [dict(item) for item in decision.instructions]
        try:
            self.history.add(Decided.from_maps(d.at, d.sequence, d.fencing_token, d.controller, dict(d.event), maps))
        except ValueError:
            # Written by another version of the policy: that it was written still says who leads.
            self.history.newest_at, self.history.leader = max(self.history.newest_at, d.at), d.controller

    def journal_made_anew(self) -> None:
        """The broker lost the journal: tokens begin again, and the next leader knows nothing of what stood in it."""
        self._token, self.history = 0, History()

    def reported(self, report: NodeReport | TrainerReport, stored_at: float) -> None:
        """The next report of a node or trainer; `stored_at` by the broker's clock."""
        if isinstance(report, TrainerReport):
            # Taken out and put last, so that both dicts are ordered by when each was heard of.
            trainer = self._trainers.pop(report.trainer, None) or _Trainer(report, stored_at)
            self._trainers[report.trainer] = trainer
            trainer.report, trainer.heard_at = report, stored_at
            trainer.steps.append((stored_at, report.round, report.step))
            _forget(self._trainers, stored_at - self.history.settings.forget_after_s)
            return
        event = event_of_record(report, stored_at)
        assert isinstance(event, ServerReported)
        server = self._servers.pop(report.node, None)
        again = server is not None
        if server is None:
            server = _Server(NodeState(report.node, self.history.settings), report, stored_at)
        self._servers[report.node] = server
        if again and (report.sequence, report.at) == (server.report.sequence, server.report.at):
            return
        server.report, server.heard_at = report, stored_at
        server.counted.append((stored_at, server.state.report(event)))
        if report.engine in ("ready", "capture_off"):  # else its counters are not known, and 0 in the report
            server.rows.append((stored_at, report.rows_written, report.rows_dropped))
        for node in _forget(self._servers, stored_at - self.history.settings.forget_after_s):
            self._desired.pop(node, None)

    def knows_desired(self, node: str) -> bool:
        """Whether what is asked of a server node is known."""
        return node in self._desired or self._asked(node) is not None

    def desired(self, record: DesiredServer) -> None:
        """What stands on the bus for a node of which the journal that was read says nothing."""
        self._desired[record.node] = record

    def published(self, manifest: DraftManifest, stored_at: float) -> None:
        """A draft version stands on the bus."""
        event = event_of_record(manifest, stored_at)
        assert isinstance(event, CandidatePublished)
        self._published[manifest.version] = event
        if len(self._published) > _SHOWN_DRAFTS:
            del self._published[min(self._published)]

    def measured(self, depth: StreamDepth) -> None:
        """How full a stream is now."""
        self._depths[depth.name] = depth

    def status(self, now: float) -> FleetStatus:
        """Everything that is shown, at `now`."""
        history = self.history
        fleet = history.fleet or FleetState()
        status = FleetStatus(self._model, now, history.leader, self._token, history.newest_at)
        if history.fleet is not None:
            status.serving_version, status.stage, status.pinned = fleet.serving_version, fleet.stage, fleet.pinned
            status.candidate_version, status.canary = fleet.candidate_version, fleet.canary
        status.servers = [self._server(self._servers[name], now) for name in sorted(self._servers)]
        status.trainers = [_trainer_row(self._trainers[name], now) for name in sorted(self._trainers)]
        status.streams = [
            StreamRow(d.name, d.num_messages, d.num_bytes, d.max_bytes, d.num_waiting) for d in self._depths.values()
        ]
        versions = sorted({*self._published, *history.versions}, reverse=True)[:_SHOWN_DRAFTS]
        status.drafts = [self._draft(version, fleet, now) for version in versions]
        newest = list(history.decisions)[-_SHOWN_DECISIONS:]
        status.decisions = [_decision_row(entry) for entry in reversed(newest)]
        status.workloads = why_workloads(history, fleet)
        status.problems = problems_of(status)
        return status

    def _asked(self, node: str) -> tuple[int, tuple[tuple[int, int], ...]] | None:
        """(version, steps table) that the journal last asked of a node."""
        past = self.history.nodes.get(node)
        if past is None:
            return None
        asked = past.asked[1] if past.asked is not None else past.found
        return None if asked is None else (asked.draft_version, asked.steps_table)

    def _server(self, server: _Server, now: float) -> ServerRow:
        report = server.report
        wanted = self._asked(report.node)
        if wanted is None and (record := self._desired.get(report.node)) is not None:
            wanted = record.draft_version, record.steps_table
        version, table = wanted or (0, ())
        recent = server.recent()
        pace = plain_pace(server.state.cost, recent)
        past = self.history.nodes.get(report.node)
        since, reason = 0.0, self._desired[report.node].reason if report.node in self._desired else ""
        if past is not None and past.steps_since is not None:
            since, reason = past.steps_since[0], past.steps_since[1].reason
        return ServerRow(
            node=report.node,
            engine=report.engine,
            version=report.running_version,
            desired_version=version,
            num_running=report.num_running,
            num_steps=steps_at(table, report.num_running),
            accept_length=_accept_length(recent),
            tokens_per_s=round(tokens_per_s(report), 1),
            decode_tokens_per_s=None if pace is None else round(pace.tokens_per_s, 1),
            plain_tokens_per_s=None if pace is None else round(pace.plain_tokens_per_s, 1),
            of_plain=None if pace is None else round(pace.of_plain, 3),
            steps=steps_words(table),
            reason=reason[:_MAX_WORDS],
            since=since,
            collecting=report.collecting,
            rows_dropped=report.rows_dropped,
            dropped_share=round(server.dropped_share(), 4),
            problem=_newest(report.problems),
            heard_s=round(max(0.0, now - server.heard_at), 1),
        )

    def _draft(self, version: int, fleet: FleetState, now: float) -> DraftRow:
        past = self.history.versions.get(version)
        published = self._published.get(version) or (None if past is None else past.published)
        known = (fleet.serving_version, fleet.previous_version, *fleet.judged, *fleet.refused)
        state, reason = "published before the part of the journal that was read", ""
        if past is not None or version in known:
            state = why_version(self.history, version, now)[0].partition(": ")[2].rstrip(".")
        if past is not None and past.judged is not None:
            reason = past.judged[1].reason
        scores = () if published is None else published.scores
        positions = sum(score.num_positions for score in scores)
        return DraftRow(
            version=version,
            published_at=0.0 if published is None else published.at,
            trainer="" if published is None else published.trainer,
            parent_version=0 if published is None else published.parent_version,
            num_train_tokens=0 if published is None else published.num_train_tokens,
            num_requests=len(scores),
            serving_accept_length=sum(s.serving_tokens for s in scores) / positions if positions else None,
            candidate_accept_length=sum(s.candidate_tokens for s in scores) / positions if positions else None,
            state=state,
            reason=reason[:_MAX_WORDS],
        )


def _forget(known: dict[str, Any], before: float) -> list[str]:
    """Drop those that were heard of before then, which come first; returns their names."""
    gone = list(itertools.takewhile(lambda name: known[name].heard_at < before, known))
    for name in gone:
        del known[name]
    return gone


def _accept_length(counted: list[tuple[int, StepCount]]) -> float | None:
    drafted = [step for _, step in counted if step.num_steps > 0]
    num_chains = sum(step.num_proposals for step in drafted)
    return sum(step.num_tokens for step in drafted) / num_chains if num_chains else None


def _trainer_row(trainer: _Trainer, now: float) -> TrainerRow:
    report = trainer.report
    return TrainerRow(
        trainer=report.trainer,
        state=report.state,
        round=report.round,
        step=report.step,
        num_steps_total=report.num_steps_total,
        loss=report.loss,
        left_s=trainer.left_s(),
        num_requests=report.num_requests,
        num_tokens=report.num_tokens,
        new_tokens=report.new_tokens,
        store_bytes=report.store_bytes,
        num_refused=sum(report.refused.values()),
        scores=tuple(
            ScoreRow(score.workload, score.num_requests, score.num_tokens / max(1, score.num_positions))
            for score in report.shadow
        ),
        problem=_newest(report.problems),
        heard_s=round(max(0.0, now - trainer.heard_at), 1),
    )


def _decision_row(entry: Decided) -> DecisionRow:
    items = told(entry)
    kind = "steps"
    if any(isinstance(item, Judged | Answered | FleetMoved) for item in items):
        kind = "drafts"
    elif any(isinstance(item, SetTrainer) for item in items):
        kind = "training"
    said = tuple(Said(decided_words(item)[:_MAX_WORDS], dict(item.numbers)) for item in items)
    return DecisionRow(f"{entry.token}-{entry.sequence}", entry.at, kind, cause_words(entry.event), said)


def _newest(problems: tuple[str, ...]) -> str:
    return problems[-1][:_MAX_WORDS] if problems else ""
