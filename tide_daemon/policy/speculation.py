"""Whether one node speculates, at which batch sizes and how deep: choices, and the probes that keep them honest.

Ties what is known (node.py) to the rules (steps.py) and to the price of finding out (probing.py).
"""

import math

from tide_daemon.policy.events import NO_DRAFT, NodeMemory, StepCount, StepsTable
from tide_daemon.policy.node import NodeState
from tide_daemon.policy.probing import Probe, ProbeAccount, ProbeSchedule
from tide_daemon.policy.steps import Choice, best_steps, build_table, choose_steps, read_table

_FADED_EVIDENCE = 20.0
"""Chains that old evidence counts for when a probe begins."""
_EARLY_PROPOSALS = 40
"""Chains after which a probe that is clearly losing is ended."""
_RISEN = 1.03
"""A held-out accept length this much above the one known at the last failure is news."""


class Speculation:
    """The steps table of one node. Changed by `adopt`, `account_for` and `plan` only, all called by the controller."""

    def __init__(self, node: NodeState) -> None:
        self.node = node
        self.settings = node.settings
        self.account = ProbeAccount(self.settings.probe_credit_s / 2)
        self.schedule = ProbeSchedule(self.settings.probe_interval_s)
        self.probe: Probe | None = None
        self.reason = "no draft yet"
        self.choices = {edge: Choice(0, -math.inf) for edge in node.edges}
        self._tried_version = NO_DRAFT
        self._built: tuple[Probe | None, StepsTable] | None = None  # the table of these choices, under this probe

    def adopt(self, table: StepsTable, version: int, at: float) -> None:
        """Start from the steps table that an earlier leader had set for `version`.

        A table without steps does not tell a draft that lost from one that nobody has tried yet, so it will be tried:
        the price is one probe, paid from the account.
        """
        steps = read_table(table, self.node.edges)
        self.choices = {edge: Choice(min(steps[edge], self.settings.max_steps), at) for edge in self.node.edges}
        self._built = None
        self._tried_version = version if table else NO_DRAFT

    def remember(self) -> NodeMemory:
        """What a reign that this controller renews goes on with."""
        node, schedule = self.node, self.schedule
        lately, long = node.acceptance.remembered()
        return NodeMemory(
            heard_at=node.heard_at,
            engine=node.engine,
            running_version=node.running_version,
            running_digest=node.running_digest,
            running_since=max(0.0, node.running_since),  # a journal holds no infinity
            busy_s=node.busy_s,
            timed=node.cost.remembered(),
            plain_seen_at=node.plain_seen_at(),
            num_steps=node.acceptance.num_steps,
            lately=lately,
            long=long,
            choices=tuple((edge, each.num_steps, max(0.0, each.since)) for edge, each in self.choices.items()),
            tried_version=self._tried_version,
            untried=schedule.new_draft,
            credit_s=self.account.credit_s,
            lost_s=self.account.lost_s,
            probe_interval_s=schedule.interval_s,
            probe_ended_at=schedule.last_busy_s,
            failed_accept_length=schedule.failed_accept_length,
        )

    def go_on(self, memory: NodeMemory) -> None:
        """Start from what was remembered, the node itself included."""
        self.node.adopt(memory)
        self.account = ProbeAccount(min(memory.credit_s, self.settings.probe_credit_s), memory.lost_s)
        self.schedule = ProbeSchedule(
            memory.probe_interval_s, memory.untried, memory.probe_ended_at, memory.failed_accept_length
        )
        self.choices |= {edge: Choice(steps, since) for edge, steps, since in memory.choices if edge in self.choices}
        self._tried_version = memory.tried_version
        self._built = None

    def account_for(self, counted: tuple[tuple[int, StepCount], ...]) -> None:
        """Book one report's counters: what probing earned, measured and lost."""
        for edge, step in counted:
            self.account.earn(step.step_s, self.settings)
            speculated, chosen = step.num_steps > 0, self.choices[edge].num_steps > 0
            if speculated != chosen:
                self.account.spend(self._lost_s(edge, step))
            if self.probe is not None and speculated == (self.probe.kind == "speculate"):
                self.probe.busy_s += step.step_s
                self.probe.num_verifies += step.num_verifies
                self.probe.num_proposals += step.num_proposals

    def plan(self, at: float, *, may_speculate: bool, must_probe: bool) -> StepsTable:
        """The steps table from now on.

        Args:
            may_speculate: False when the node shall run no draft.
            must_probe: try the running draft until it has shown the chains that a rollout compares, even if its
                held-out score promises nothing (a canary among several).
        """
        if not may_speculate:
            self.probe = None
            self.choices = {edge: Choice(0, at) if c.num_steps else c for edge, c in self.choices.items()}
            self._built = None
            self.reason = "no draft to speculate with"
            return ()
        if self.node.can_speculate:
            self._notice_draft()
            ended = self._end_probe()
            if self.node.has_evidence:
                self.schedule.new_draft = False
                self._choose(at)
            if ended is not None:
                self._probe_ended(ended)
            if self.probe is None:
                self.probe = self._next_probe(must_probe)
        if self._built is None or self._built[0] is not self.probe:
            override = self.probe.steps_by_edge if self.probe else {}
            table = build_table({edge: override.get(edge, self.choices[edge].num_steps) for edge in self.node.edges})
            self._built = self.probe, table
        return self._built[1]

    def speculates(self) -> bool:
        """Whether any batch size is switched on by choice (a probe does not count)."""
        return any(choice.num_steps > 0 for choice in self.choices.values())

    def pays(self) -> bool:
        """Whether the batch size with most traffic is switched on; any of them for an idle node."""
        edge = self.node.busiest()
        return self.speculates() if edge is None else self.choices[edge].num_steps > 0

    def has_settled(self, at: float) -> bool:
        """Whether nothing is under way that would soon bring live evidence about the running draft."""
        # An idle node shows nothing soon, whatever is asked of it.
        coming = self.node.busiest() is not None and (self.probe is not None or self.speculates())
        return not coming and at - self.node.running_since >= self.settings.settle_s

    def numbers(self) -> dict[str, float]:
        """What the table was based on, at the busiest batch size."""
        node = self.node
        edge = node.busiest() or 1
        result = {
            "batch_size": float(edge),
            "num_steps": float(self.choices[edge].num_steps),
            "evidence": round(node.acceptance.evidence, 1),
            "probe_lost_s": round(self.account.lost_s, 3),
        }
        ratios = node.ratios(edge)
        if ratios and node.running_version != NO_DRAFT:
            shown = self.choices[edge].num_steps or best_steps(ratios)
            result["accept_length"] = round(node.acceptance.accept_length(shown), 4)
            result["ratio_to_plain"] = round(ratios[shown], 4)
            result["ratio_steps"] = float(shown)
        plain = node.cost.step_s(edge, 0)
        if plain is not None:
            result["plain_step_s"] = round(plain, 6)
        return result

    def _notice_draft(self) -> None:
        """A version that was never tried here calls for a probe. The same one again, in a new engine, does not."""
        if self.node.running_version != self._tried_version:
            self._tried_version = self.node.running_version
            self.schedule.draft_arrived(self.settings)
            if self.probe is not None and self.probe.kind == "speculate":
                self.probe = None

    def _lost_s(self, edge: int, step: StepCount) -> float:
        """Busy seconds that these steps took longer than the chosen way would have for the same tokens."""
        if step.num_steps > 0:
            plain = self.node.cost.step_s(edge, 0)
            return 0.0 if plain is None else step.step_s - plain * step.num_tokens / step.batch_size
        if self.probe is None or self.probe.kind != "plain":
            return 0.0
        ratio = self.node.ratios(edge).get(self.choices[edge].num_steps, 1.0)
        return step.step_s * (1.0 - 1.0 / max(1.0, ratio))

    def _choose(self, at: float) -> None:
        """Choose again where there is traffic; elsewhere only when that changed, so idle entries do not chatter."""
        busy = self.node.busy_edges()
        changed = [edge for edge in busy if self._choose_at(at, edge)]
        if changed:
            for edge in self.node.edges:
                if edge not in busy:
                    self._choose_at(at, edge)

    def _choose_at(self, at: float, edge: int) -> bool:
        """Choose for one batch edge; whether that changed anything."""
        node, current = self.node, self.choices[edge]
        ratios = node.ratios(edge)
        if not ratios:
            return False
        # By the busy clock: while nobody asks, traffic does not change.
        recent = node.busy_s - node.live_at_busy_s <= self.settings.evidence_max_age_s
        chosen = choose_steps(current, at, ratios, can_switch_on=recent and self.probe is None, settings=self.settings)
        if chosen == current.num_steps:
            return False
        self.choices[edge] = Choice(chosen, at)
        self._built = None
        if node.is_busy(edge):
            if chosen == 0:
                self.schedule.switched_off(node.busy_s, node.offline_accept_length)
            shown = chosen or current.num_steps
            self.reason = (
                f"{current.num_steps} to {chosen} steps at batch {edge}: accept length "
                f"{node.acceptance.accept_length(shown):.2f} with {shown} steps over "
                f"{node.acceptance.evidence:.0f} chains predicts {ratios[shown]:.3f} of plain"
            )
        return True

    def _end_probe(self) -> Probe | None:
        """The probe if it is over now; it is then no longer under way."""
        probe = self.probe
        if probe is None or not (probe.is_over(self.node.busy_s, self.settings) or self._clearly_loses(probe)):
            return None
        self.probe = None
        return probe

    def _probe_ended(self, probe: Probe) -> None:
        seen = f"{probe.num_proposals} chains" if probe.kind == "speculate" else f"{probe.num_verifies} steps"
        ratio = self.numbers().get("ratio_to_plain")
        found = "nothing to compare" if ratio is None else f"{ratio:.3f} of plain"
        self.reason = f"probe over ({probe.reason}): {seen}, {found}"
        if probe.kind == "speculate":
            offline = self.node.offline_accept_length
            self.schedule.ended(
                self.node.busy_s, paid=self.pays(), offline_accept_length=offline, settings=self.settings
            )

    def _clearly_loses(self, probe: Probe) -> bool:
        node, edge = self.node, self.node.busiest()
        needed = max(_EARLY_PROPOSALS, probe.min_proposals)
        if probe.kind != "speculate" or probe.num_proposals < needed or edge is None:
            return False
        ratios = node.ratios(edge)
        if not ratios:
            return False
        best = best_steps(ratios)
        error = node.acceptance.standard_error(best) / node.acceptance.accept_length(best)
        return ratios[best] * (1.0 + 2.0 * error) < self.settings.speculate_off

    def _next_probe(self, must_probe: bool) -> Probe | None:
        edge = self.node.busiest()
        if edge is None:
            return None
        if self.choices[edge].num_steps > 0:
            return self._plain_probe(edge)
        return self._speculative_probe(edge, must_probe)

    def _plain_probe(self, edge: int) -> Probe | None:
        age_s = self.node.plain_age_s(edge)
        if age_s is not None and age_s < self.settings.plain_interval_s:
            return None
        ratio = self.node.ratios(edge).get(self.choices[edge].num_steps, 1.0)
        if not self.account.affords(self.settings.plain_probe_s * (1.0 - 1.0 / max(1.0, ratio)), self.settings):
            return None
        reason = "plain steps were never timed" if age_s is None else "the timing of plain steps is old"
        self.reason = f"measuring plain decoding at batch {edge}: {reason}"
        return Probe("plain", self.node.busy_s, reason, dict.fromkeys(self.node.edges, 0))

    def _speculative_probe(self, edge: int, must_probe: bool) -> Probe | None:
        node, schedule, s = self.node, self.schedule, self.settings
        offline = node.ratios(edge, offline=True)
        if not offline or node.cost.measured_at(edge, 0) is None:
            return None
        promised = offline[best_steps(offline)]
        risen = node.offline_accept_length >= _RISEN * schedule.failed_accept_length > 0.0
        owed = must_probe and node.trial.num_seen < s.watch_min_steps
        if owed:
            reason = f"version {node.running_version} is on its canary"
        elif schedule.new_draft and promised >= s.probe_min_ratio:
            reason = f"version {node.running_version} is new"
        elif risen and promised >= s.speculate_on:
            reason = "its held-out score rose"
        elif node.busy_s - schedule.last_busy_s >= schedule.interval_s:
            reason = f"{schedule.interval_s:.0f} busy seconds went by"
        else:
            return None
        by_score = schedule.new_draft or risen or not node.has_evidence
        ratios = node.ratios(edge, offline=by_score)
        expected_loss_s = s.probe_s * max(0.0, 1.0 - ratios[best_steps(ratios)])
        # Without its chains the canary fails and the draft is refused for ever: it is charged, and never has to wait.
        if not owed and not self.account.affords(expected_loss_s, s):
            return None
        # Load moves while a probe runs: batch sizes up to twice the busiest one are tried with it.
        steps = {
            other: best_steps(node.ratios(other, offline=by_score))
            for other in node.edges
            if other <= 2 * edge and self.choices[other].num_steps == 0
        }
        node.acceptance.fade(_FADED_EVIDENCE)
        self.reason = f"trying {steps[edge]} steps at batch {edge}: {reason}"
        return Probe("speculate", node.busy_s, reason, steps, min_proposals=s.watch_min_steps if owed else 0)
