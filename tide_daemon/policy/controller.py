"""The controller of one model's fleet: events in, instructions out. The one place where state changes.

Who decides what: gate.py and rollout.py (which draft), pool_try.py (an earlier one instead of a new one),
speculation.py (how many steps), collection.py, trainers.py (rounds). This file keeps the state, asks them in a
fixed order, and turns what they say into instructions when it differs from what was last asked for.

Work. A node's report costs what that node costs, however large the fleet is: its own table is planned
again, and what the fleet needs to know of it goes into roster.py. All nodes are looked at only when all
are concerned (another draft is served, collection goes on or off), at most once for every report of the
canary and every Tick during its stage, and while a candidate waits for a node to try it. A trainer's
report costs what there are trainers, which are few.

What concerns all nodes is asked of so many at a time (MAX_SERVERS_ASKED) that a decision fits on the wire.
"""

import itertools
import math
from dataclasses import replace
from typing import Any

from tide_daemon.policy import collection, gate, node_view, pool, requests, rollout, snapshot
from tide_daemon.policy.acceptance import token_accept_prob
from tide_daemon.policy.asked import Asked
from tide_daemon.policy.collection import CollectionState
from tide_daemon.policy.events import (
    NO_DRAFT,
    CandidatePublished,
    ControllerStarted,
    Event,
    FleetState,
    NodeMemory,
    OperatorRequested,
    ServerFound,
    ServerReported,
    StepsTable,
    Tick,
    TrainerFound,
    TrainerReported,
    event_cause,
)
from tide_daemon.policy.instructions import Answered, FleetMoved, Instruction, Judged, SetServer
from tide_daemon.policy.node import NodeState, OfflineScore
from tide_daemon.policy.pool_try import PoolTry, best_of, judge_pool, not_held
from tide_daemon.policy.roster import Roster
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.shadows import ShadowScores
from tide_daemon.policy.speculation import Speculation
from tide_daemon.policy.trainers import Trainers
from tide_daemon.policy.workloads import Workloads

MAX_SERVERS_ASKED = 512
"""Nodes that one event asks anew at most; the others follow with the next events, a Tick at the latest.

A journal entry holds 1,024 instructions and 131,072 values (wire/). Beside these there are at most MAX_TRAINERS_ASKED
trainers, a verdict for each waiting candidate and each earlier draft, an answer and a FleetMoved: below 800 in all.
"""
_MAX_PENDING = 16
_KEPT_SCORES = 64
_COPY_DUE = "the copy of the state was due"


class Controller:
    """Decides for one model. `handle` is the only method that mutates; everything else reads.

    Invariants (check_invariants): generations grow by one with every instruction for a node; outside a
    canary stage no node is asked to run anything but the serving draft, except that those which are `behind` were not
    asked yet; in it only the canary is; a node that shall run no draft has an empty steps table; a candidate is judged
    once, and again only from the pool, which holds neither the serving draft nor one that was rolled back.

    Attributes:
        behind: nodes that what was decided for all has yet to reach, in the order of their turns; an ordered set.
    """

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings
        self.now = -math.inf
        self.led_since = -math.inf
        self.fleet = FleetState()
        self.collection = CollectionState()
        self.nodes: dict[str, NodeState] = {}
        self.speculation: dict[str, Speculation] = {}
        self.asked: dict[str, Asked] = {}
        self.behind: dict[str, None] = {}
        self.trainers = Trainers(settings)
        self.pool_try = PoolTry(settings)
        self.workloads = Workloads()
        self.shadows = ShadowScores(settings)
        self.pending: list[CandidatePublished] = []
        self._roster = Roster()
        self._offline: dict[int, OfflineScore] = {}
        self._assigned: FleetState | None = None
        self._rates: tuple[float, tuple[str, ...]] | None = None
        self._weak: tuple[str, ...] = ()
        self._trained_for: tuple[object, ...] = ()
        self._kept: tuple[FleetState, bool, bool, bool] | None = None
        self._kept_at = -math.inf
        self._moved: tuple[str, dict[str, float]] = (_COPY_DUE, {})

    def handle(self, event: Event) -> list[Instruction]:
        """Take in one event; returns what is to be done now, in the order in which it is to be written.

        Time never goes back: an event older than one before it counts as happening now.
        """
        self.now = max(self.now, event.at)
        if event.at < self.now:
            event = replace(event, at=self.now)
        reporter = ""
        match event:
            case ServerReported():
                self._server_reported(event)
                reporter = event.node
            case TrainerReported():
                self.shadows.take(event, self.now)
                self._watch_scores(event)
                self._trainer_reported(event)
            case CandidatePublished():
                self._candidate_published(event)
            case ControllerStarted():
                self._controller_started(event)
            case ServerFound():
                self._server_found(event)
            case TrainerFound():
                self.trainers.found(event)
                self.pool_try.adopt(event)
            case Tick() | OperatorRequested():
                pass
            case _:
                raise TypeError(f"unknown event {type(event).__name__}")
        self._roster.expire(self.now, self.settings.lost_after_s)
        if isinstance(event, Tick):
            self._forget()
        cause = event_cause(event)
        answers = self._answer(event, cause) if isinstance(event, OperatorRequested) else []
        verdicts = [*self._judge(cause), *self._judge_pool(cause)]
        self._roll_out(reporter, ticked=isinstance(event, Tick))
        trainers = self._set_trainers(cause, of_trainers=isinstance(event, (TrainerReported, Tick)))
        # Before all are found, nobody knows for whom capture pays.
        servers = [] if isinstance(event, ServerFound) else self._set_servers(cause, reporter)
        return [*answers, *verdicts, *self._keep_fleet(cause), *servers, *trainers]

    def knows(self, event: Event) -> bool:
        """Whether it knows from whom a report is. If not, what stands on the bus for them has to come first.

        As ServerFound or TrainerFound: generations go on from there.
        """
        match event:
            case ServerReported():
                return event.node in self.nodes
            case TrainerReported():
                return event.trainer in self.trainers.by_name
        return True

    def state_map(self) -> dict[str, Any]:
        """A snapshot as plain types; see snapshot.py."""
        return snapshot.state_map(self)

    def check_invariants(self) -> None:
        """Raise AssertionError when the class's invariants do not hold."""
        snapshot.check_invariants(self)

    def renewal(self, model: str) -> list[ControllerStarted | ServerFound | CandidatePublished]:
        """What a new reign of the same controller begins with: the state as it is, nodes by when they were heard of.

        Nodes that are behind or silent, and trainers, are found when they report. So a draft on its way, averages of
        workloads and a scoring of earlier drafts begin anew as at a takeover: see `is_quiet`.
        """
        there = (name for name in self._roster.by_age() if name in self.asked and name not in self.behind)
        return [
            ControllerStarted(self.now, model, self.settings.to_map(), self.fleet, self.collection),
            *(self.asked[name].as_found(name, self.now, self.speculation[name].remember()) for name in there),
            *(replace(candidate, at=self.now) for candidate in self.pending),
        ]

    def is_quiet(self) -> bool:
        """Whether nothing is under way that a renewal of the reign would begin anew."""
        busy = self.behind or self.pending or self._weak or self.pool_try.under_way is not None
        return self.fleet.stage == rollout.STEADY and not busy

    def is_alive(self, node: str) -> bool:
        """Whether a server node was heard of lately."""
        return self.now - self.nodes[node].heard_at <= self.settings.lost_after_s

    # What events change

    def _controller_started(self, event: ControllerStarted) -> None:
        self.led_since = event.at
        self.fleet = event.fleet or FleetState()
        self.collection = event.collection or CollectionState()
        newest = rollout.newest(self.fleet)
        if newest != NO_DRAFT and self.fleet.offline_accept_length > 1.0:
            self._score_offline(newest, self.fleet.offline_accept_length, self.fleet.offline_num_steps)
        self._moved = ("a reign began", {})

    def _server_found(self, event: ServerFound) -> None:
        if event.node not in self.nodes:
            self._add_node(event.node)
            self.speculation[event.node].adopt(event.steps_table, event.draft_version, event.at)
            self.asked[event.node] = Asked.from_found(event)
            if event.memory is not None:
                self._remember(event.node, event.memory)

    def _remember(self, name: str, memory: NodeMemory) -> None:
        """A node that was there in the reign before is there in this one."""
        self.speculation[name].go_on(memory)
        self.nodes[name].score_offline(self._offline.get(memory.running_version))
        self._roster.heard(name, memory.heard_at)
        self._roster.set_pays(name, self.speculation[name].pays())

    def _server_reported(self, event: ServerReported) -> None:
        if event.node not in self.nodes:
            self._add_node(event.node)
        node = self.nodes[event.node]
        counted = node.report(event)
        self._roster.heard(event.node, self.now)
        self.speculation[event.node].account_for(counted)
        node.score_offline(self._offline.get(node.running_version))
        if event.running_version == self.fleet.serving_version:
            self.workloads.served(event.running_version, event.workloads)
        self._compare_canary(node)
        drafted = [step for _, step in counted if step.num_steps > 0]
        proposals = sum(step.num_proposals for step in drafted)
        if event.running_version == self.fleet.serving_version and proposals >= self.settings.shift_min_proposals:
            accept_prob = sum(step.accepted_at[0] for step in drafted) / proposals
            self._see(collection.measure(self.collection, accept_prob, self.settings))

    def _see(self, seen: CollectionState) -> None:
        """Take in what a measurement made of Algorithm 1's memory; a shift is noted of the draft that serves."""
        before, self.collection = self.collection, seen
        if seen.num_shifts > before.num_shifts:
            self.fleet = pool.with_shift(self.fleet, settled=not before.wanted)
            self._moved = (seen.reason, {"num_shifts": float(seen.num_shifts)})

    def _watch_scores(self, event: TrainerReported) -> None:
        """A new held-out score of the draft that serves; reports repeat the last one until there is another.

        Workloads take in the trainer's own requests; a shift is looked for in what all trainers together say.
        """
        known = self.trainers.by_name.get(event.trainer)
        again = known is not None and known.report is not None and known.report.shadow == event.shadow
        if again or not event.serving_version == self.fleet.serving_version != NO_DRAFT:
            return
        self.workloads.observe(event.serving_version, event.shadow)
        self._weak = self.workloads.weak(pool.best_lengths(self.fleet), self._weak, self.settings)
        has_scores = any(scored.num_positions > 0 for scored in event.shadow)
        accept_length = self.shadows.accept_length(event.serving_version, self.now) if has_scores else None
        if accept_length is not None:
            self._see(collection.score(self.collection, accept_length, self.settings))

    def _compare_canary(self, node: NodeState) -> None:
        """A canary that began under an earlier leader is compared with what that one saw of the draft before."""
        fleet = self.fleet
        if fleet.stage != rollout.CANARY or node.name != fleet.canary or self.led_since <= fleet.since:
            return
        if node.running_version == fleet.candidate_version and fleet.canary_accept_length > 0.0:
            node.compare_with(fleet.canary_accept_length, fleet.canary_num_steps)

    def _trainer_reported(self, event: TrainerReported) -> None:
        self.trainers.take(event, self.now)
        accept_length = self.shadows.accept_length(event.serving_version, self.now)
        if accept_length is not None:
            self._score_offline(event.serving_version, accept_length, self.fleet.offline_num_steps)

    def _candidate_published(self, event: CandidatePublished) -> None:
        known = rollout.was_judged(self.fleet, event.version) or any(c.version == event.version for c in self.pending)
        if event.version != NO_DRAFT and not known:
            self.pending = sorted([*self.pending, event], key=lambda item: item.version)[-_MAX_PENDING:]

    def _add_node(self, name: str) -> None:
        self.nodes[name] = NodeState(name, self.settings)
        self.speculation[name] = Speculation(self.nodes[name])

    def _forget(self) -> None:
        """Drop who has been silent for very long: nodes that come and go may have a new name each time."""
        for name in self._roster.forget(self.now, self.settings.forget_after_s):
            del self.nodes[name], self.speculation[name]
            self.asked.pop(name, None)
        self.trainers.forget(self.now)

    def _score_offline(self, version: int, accept_length: float, num_steps: int) -> None:
        """Keep a held-out score; each node that runs the version takes it with its next report."""
        prior = token_accept_prob(accept_length, max(1, num_steps))
        self._offline[version] = OfflineScore(accept_length, prior, num_steps)
        for old in sorted(self._offline)[:-_KEPT_SCORES]:
            del self._offline[old]

    # What follows

    def _answer(self, event: OperatorRequested, cause: str) -> list[Instruction]:
        """Do what an operator asks, unless it was answered before or cannot be done."""
        if requests.was_answered(self.fleet, event.request):
            return []
        outcome = requests.answer(self.fleet, event, self.now)
        before = self._move_fleet(outcome.fleet)
        if outcome.granted and event.action == "forget":
            self.pending = [candidate for candidate in self.pending if candidate.version != event.version]
            self.fleet = pool.without(self.fleet, (event.version,))
        if before.stage != self.fleet.stage or before.serving_version != self.fleet.serving_version:
            self._roster.outstanding.clear()
        answer = "granted" if outcome.granted else "refused"
        reason = f"{event.action.replace('_', ' ')}, asked by {event.operator}, is {answer}: {outcome.reason}"
        self._moved = (reason, {})
        return [Answered(event.request, outcome.granted, cause, reason, {})]

    def _judge(self, cause: str) -> list[Instruction]:
        """Ask the gate about waiting candidates, oldest first; none while a rollout is under way."""
        instructions: list[Instruction] = []
        while self.pending and not self.fleet.pinned and self.fleet.stage == rollout.STEADY:
            canary = self._pick_canary()
            if canary is None:
                break
            candidate = self.pending.pop(0)
            verdict = gate.judge(candidate, self.fleet.serving_version, self.settings)
            self.fleet = rollout.with_judged(self.fleet, candidate.version)
            self.collection = collection.judged(self.collection, verdict.verdict, verdict.gain, self.settings)
            self._moved = (f"version {candidate.version}: {verdict.verdict}, {verdict.reason}", verdict.numbers)
            instructions.append(Judged(candidate.version, verdict.verdict, cause, verdict.reason, verdict.numbers))
            if verdict.verdict == gate.PROMOTE:
                self._begin_rollout(candidate, verdict, canary)
        return instructions

    def _judge_pool(self, cause: str) -> list[Instruction]:
        """Ask the gate about earlier drafts that were scored; the best of those that pass goes to a canary."""
        scored, scoring = self.pool_try.answer(self.trainers), self.pool_try.under_way
        free = not (self.pending or self.fleet.pinned) and self.fleet.stage == rollout.STEADY
        if scored is None or scoring is None or not free or (canary := self._pick_canary()) is None:
            return []
        verdicts = judge_pool(scored, self.fleet, self.now, scoring.trainer, self.settings)
        best = best_of(verdicts)
        self.fleet = pool.without(self.fleet, not_held(scored))
        for each in verdicts:
            self.fleet = pool.with_lengths(
                self.fleet, each.past.version, self.workloads.lengths_of(each.verdict.lengths)
            )
        self.pool_try.end("none of them is better" if best is None else f"version {best.past.version} is better")
        self._moved = (f"earlier drafts were scored: {self.pool_try.reason}", {"num_scored": float(len(verdicts))})
        if best is not None:
            reason = f"version {best.past.version}, served before: {best.verdict.verdict}, {best.verdict.reason}"
            self._moved = (reason, best.verdict.numbers)
            self._begin_rollout(best.candidate, best.verdict, canary)
        return [
            Judged(each.past.version, each.verdict.verdict, cause, each.verdict.reason, each.verdict.numbers, True)
            for each in verdicts
        ]

    def _begin_rollout(self, candidate: CandidatePublished, verdict: gate.Verdict, canary: str) -> None:
        self._score_offline(candidate.version, verdict.accept_length, candidate.num_steps)
        before = self.nodes[canary].shown_now(self.now)
        fleet = rollout.begin(self.fleet, candidate, verdict.accept_length, verdict.gain, canary, self.now, before)
        self.fleet = replace(fleet, candidate_lengths=tuple((name, length) for name, _, length in verdict.lengths))

    def _pick_canary(self) -> str | None:
        """The ready node with most busy time of late, the first by name when equal; None without one.

        None too while nodes are behind: one that was to give up an earlier draft may run the candidate still.
        """
        if self.behind:
            return None
        alive = (self.nodes[name] for name in self._roster.names())
        ready = [node for node in alive if node.engine == "ready"]
        return max(ready, key=lambda node: node.recent_busy_s).name if ready else None

    def _roll_out(self, reporter: str, *, ticked: bool) -> None:
        """Advance a rollout by what this event can have changed of it."""
        if self.fleet.stage == rollout.STEADY:
            return
        led = rollout.reign(self.fleet, self.now, self.led_since, self.settings)
        names = self._concerned(reporter, led, ticked=ticked)
        if names is None:
            return
        views = [
            node_view.view(self.nodes[name], self.is_alive(name), self.speculation[name].has_settled(self.now))
            for name in names
        ]
        move = rollout.advance(self.fleet, views, self.now, self.settings, self.led_since)
        if move is None:
            return
        before = self._move_fleet(move.fleet)
        stage = f"{before.stage} of version {before.candidate_version or before.serving_version}"
        if before.stage == self.fleet.stage:
            self._moved = (f"{stage}: {move.reason}", move.numbers)
            return
        failed = self.fleet.refused != before.refused
        self._moved = (f"{stage} {'failed, rolled back' if failed else 'passed'}: {move.reason}", move.numbers)
        self._roster.outstanding.clear()
        if self.fleet.stage == rollout.REST:
            for name in self._roster.names():
                self._roster.set_outstanding(name, node_view.is_outstanding(self.fleet, self.nodes[name]))

    def _move_fleet(self, after: FleetState) -> FleetState:
        """Take the next state, with its pool, its score and what follows if another draft serves; returns the last."""
        before, self.fleet = self.fleet, self._with_score(pool.follow(self.fleet, after, self.settings))
        if before.serving_version != self.fleet.serving_version:
            self._another_draft(before)
        return before

    def _with_score(self, after: FleetState) -> FleetState:
        """`after` without the held-out score of a draft that was given up: the one on its canary or served counts."""
        newest = rollout.newest(after)
        if newest == rollout.newest(self.fleet):
            return after
        score = self._offline.get(newest, OfflineScore(1.0, 0.0, after.offline_num_steps))
        return replace(after, offline_accept_length=score.accept_length, offline_num_steps=score.num_steps)

    def _another_draft(self, before: FleetState) -> None:
        """Another draft serves now: a new one, an earlier one, or the one before because this one was rolled back."""
        self.collection, self._weak = collection.draft_changed(self.collection), ()
        serving = self.fleet.serving_version
        if self.fleet.stage != rollout.REST:
            if self.fleet.outdated:
                self.collection = collection.reopened(self.collection)
        elif (past := pool.find(before, serving)) is not None:
            self.collection = collection.answered_by_pool(self.collection, serving, settled=past.settled)

    def _concerned(self, reporter: str, led: rollout.Reign, *, ticked: bool) -> list[str] | None:
        """The nodes whose views decide about the stage after this event; None when nothing can have changed."""
        if self.fleet.stage == rollout.CANARY:
            canary = self.fleet.canary
            if canary not in self._roster:
                return [canary] if canary in self.nodes else []
            return sorted(self.nodes) if ticked or reporter == canary else None
        if not reporter and not ticked:
            return None
        own = [reporter] if reporter else []
        if self.fleet.stage == rollout.REST and reporter:
            self._roster.set_outstanding(reporter, node_view.is_outstanding(self.fleet, self.nodes[reporter]))
        if rollout.is_late(self.fleet, led, self.settings):
            return sorted(self.nodes)
        if self.fleet.stage == rollout.WATCH or not led.knows_all:
            return own
        waiting = [name for name in itertools.islice(self._roster.outstanding, 1) if name != reporter]
        # One that runs it has to be among them, so nobody else's report can be the last that was waited for.
        if waiting or (reporter and not node_view.runs_served(self.fleet, self.nodes[reporter])):
            return [*own, *waiting]
        return sorted(self.nodes)

    def _set_trainers(self, cause: str, *, of_trainers: bool) -> list[Instruction]:
        served, earlier = (self.fleet.serving_version, self.fleet.serving_digest), pool.names(self.fleet)
        decided_by = (
            *(*served, self.fleet.stage, earlier, bool(self.pending)),
            *(self.collection.shifted, self.collection.num_shifts, self.pool_try.under_way),
        )
        if not of_trainers and decided_by == self._trained_for:
            return []
        self._trained_for = decided_by
        # Not before a canary has passed: the round would start from a draft that is about to be replaced.
        free = not self.pending and self.fleet.stage not in (rollout.CANARY, rollout.REST)
        tried = self.pool_try.plan(self.now, self.fleet, self.collection, self.workloads, self.trainers, free=free)
        if tried and not self.collection.pool_tried:
            self.collection = replace(self.collection, pool_tried=True)
        scoring = self.pool_try.under_way
        wanted = None
        if free and scoring is None:
            wanted = self.trainers.next_round(self.now, served[0], shifted=self.collection.shifted)
        if wanted is not None:
            self.collection = collection.round_began(self.collection)
        scorer = "" if scoring is None else scoring.trainer
        return self.trainers.ask(self.now, served, wanted, cause, earlier, scorer, self.pool_try.reason)

    def _set_servers(self, cause: str, reporter: str) -> list[Instruction]:
        if self.fleet is not self._assigned:
            self._assigned = self.fleet
            self.behind |= dict.fromkeys(name for name in self._roster.names() if self._has_another_draft(name))
        turn = self._next_turn(reporter)
        tables = {name: self._plan(name) for name in turn if name == reporter or self._has_another_draft(name)}
        learnt_from = not self.trainers.all_away(self.now, self.led_since)
        collect, why = collection.decide(
            self.collection,
            has_draft=self.fleet.serving_version != NO_DRAFT,
            pays=bool(self._roster.paying),
            learnt_from=learnt_from,
        )
        rate = self.settings.sample_rate if collect else self.settings.idle_sample_rate
        prefers = learnt_from and not collect and self.settings.sample_rate > rate
        preferred = self._weak if prefers else ()
        preferred_rate = self.settings.sample_rate if preferred else 0.0
        if (rate, preferred) != self._rates:
            self._rates = rate, preferred
            self.behind |= dict.fromkeys(self._roster.names())
            turn = self._next_turn(*tables)
        instructions: list[Instruction] = []
        for name in sorted(turn):
            self.behind.pop(name, None)
            asked, speculation = self.asked.get(name, Asked()), self.speculation[name]
            draft = rollout.draft_for(self.fleet, name)
            table = tables.get(name, asked.steps_table)
            captures = max(rate, preferred_rate) > 0.0
            wanted = Asked(asked.generation + 1, *draft, table, captures, rate, preferred, preferred_rate)
            reason = asked.difference(wanted, speculation.reason, why)
            if not reason:
                continue
            self.asked[name] = wanted
            numbers = speculation.numbers()
            instructions.append(
                SetServer(
                    name,
                    wanted.generation,
                    *draft,
                    table,
                    captures,
                    rate,
                    cause,
                    reason,
                    numbers,
                    preferred,
                    preferred_rate,
                )
            )
        return instructions

    def _next_turn(self, *first: str) -> list[str]:
        """Whom this event may ask anew: `first` ("" for nobody), then nodes that are behind, those of them that left
        passed over: they are asked when they report again."""
        names = dict.fromkeys(name for name in first if name)
        for name in list(self.behind):
            if len(names) == MAX_SERVERS_ASKED:
                break
            if name in self._roster:
                names[name] = None
            else:
                del self.behind[name]
        return list(names)

    def _has_another_draft(self, name: str) -> bool:
        """Whether a node shall run another draft than it was asked for last."""
        asked = self.asked.get(name, Asked())
        return rollout.draft_for(self.fleet, name) != (asked.draft_version, asked.draft_digest)

    def _plan(self, name: str) -> StepsTable:
        """A node's steps table from now on."""
        node = self.nodes[name]
        version, _ = rollout.draft_for(self.fleet, name)
        is_canary = self.fleet.stage == rollout.CANARY and name == self.fleet.canary
        table = self.speculation[name].plan(
            self.now,
            may_speculate=version != NO_DRAFT,
            must_probe=is_canary and len(self._roster) > 1 and node.running_version == version,
        )
        self._roster.set_pays(name, self.speculation[name].pays())
        return table

    def _keep_fleet(self, cause: str) -> list[Instruction]:
        """FleetMoved when what the next leader needs changed, or when the newest copy in the journal is old.

        The averages of Algorithm 1 change with every report; of them a copy that is not older will do.
        """
        wanted = (self.fleet, self.collection.wanted, self.collection.shifted, self.collection.pool_tried)
        due = self.now - self._kept_at >= self.settings.keep_state_s
        if not due and wanted == self._kept:
            return []
        self._kept, self._kept_at = wanted, self.now
        (reason, numbers), self._moved = self._moved, (_COPY_DUE, {})
        return [FleetMoved(self.fleet, cause, reason, numbers, self.collection)]
