"""A modelled server node: it serves what its traffic and steps table say, counts, swaps drafts, reports.

Serving is advanced in stretches, never per token: between two reports, and up to every moment at which
something changes on the node. In one stretch batch size, speed and acceptance are constant; expected
tokens are what counts as served, and the counters in the report are drawn around them, as an engine's
would be. What the load does is drawn from a source of its own, in the same order whatever the policy
does, so that policies meet the same traffic.
"""

import math
import random

from tide_daemon.policy.alone import Alone
from tide_daemon.policy.events import NO_DRAFT, ServerReported, StepCount, StepsTable
from tide_daemon.policy.instructions import SetServer
from tide_daemon.simulate.costs import CostCurve
from tide_daemon.simulate.learning import Drafts
from tide_daemon.simulate.scenario import Scenario, Servers
from tide_daemon.simulate.tally import Tally
from tide_daemon.simulate.traffic import Schedule, Traffic

_SPEED_MEMORY = 0.9
"""Share of a server's deviation from its usual speed that the next interval keeps."""
_EXACT_DRAWS = 30
"""Chains below which acceptance is drawn one by one; above it a normal distribution is close enough."""


class ModelledServer:
    """One server node. Changed by `advance`, `begin_interval`, `receive` and `complete_swap`.

    Args:
        counts: whether reports are wanted; without them no counters are drawn.

    Attributes:
        reachable: messages to and from it pass.
        led: a controller leads; the node sees it by the lease.
        engine: "ready" or "down".
    """

    def __init__(
        self,
        name: str,
        group: Servers,
        scenario: Scenario,
        schedule: Schedule,
        drafts: Drafts,
        tally: Tally,
        *,
        counts: bool,
    ) -> None:
        self.name = name
        self.reachable = True
        self.led = True
        self.engine = "ready"
        self.version = NO_DRAFT
        self.desired: SetServer | None = None
        self._group = group
        self._scenario = scenario
        self._curve = CostCurve(scenario.costs[group.cost])
        self._noise = scenario.costs[group.cost].noise
        self._schedule = schedule
        self._drafts = drafts
        self._tally = tally
        self._wants_counts = counts
        self._load = random.Random(f"{scenario.seed}/{name}/load")
        self._draws = random.Random(f"{scenario.seed}/{name}/draws")
        self._table: StepsTable = ()
        self._in_force: StepsTable = ()
        self._reached_at = 0.0
        # Its counting costs as much as a node costs the controller, so it is there only where it may be needed.
        long = (failure.kind for failure in scenario.failures if failure.seconds > scenario.policy.alone_after_s)
        may_be_alone = counts and not {"cut_off", "controller_lost"}.isdisjoint(long)
        self._alone = Alone(name, scenario.policy) if may_be_alone else None
        self._swap_at = math.inf
        self._generation = 0
        self._sequence = 0
        self._at = 0.0
        self._reported_at = 0.0
        self._slowness = 1.0
        self._deviation = 0.0
        self._jitter = 0.0
        self._spread = 0.0
        self._backlog = 0.0
        self._traffic = 0.0, schedule.at(0.0)
        self._counted: dict[tuple[int, int], _Counted] = {}
        self._steps_seen: dict[int, int] = {}

    def begin_interval(self, at: float) -> None:
        """Draw what the load does until the next report."""
        load = self._load
        self._deviation = _SPEED_MEMORY * self._deviation + self._noise * math.sqrt(1 - _SPEED_MEMORY**2) * load.gauss(
            0, 1
        )
        self._slowness = math.exp(self._deviation)
        self._jitter, self._spread = load.gauss(0.0, 1.0), load.gauss(0.0, 1.0)
        self._traffic = at, self._schedule.at(at)
        arrivals = self._traffic[1].arrivals_per_s * self._scenario.report_s
        if arrivals > 0.0:
            # A normal distribution in place of Poisson's: the batch size follows within one interval.
            came = max(0.0, arrivals + math.sqrt(arrivals) * load.gauss(0.0, 1.0))
            self._backlog += came * self._scenario.learning.response_tokens

    def advance(self, to: float) -> None:
        """Serve up to this second under what is in force."""
        seconds, at = to - self._at, self._at
        self._at = to
        if seconds <= 0.0 or self.engine != "ready":
            return
        traffic = self._traffic[1] if self._traffic[0] == at else self._schedule.at(at)
        survival = self._survival(traffic)
        batch, busy_s = self._batch(traffic, seconds, survival)
        if batch == 0 or busy_s <= 0.0:
            return
        steps = self._steps(batch)
        captured = {name: share * self._rate_of(name) for name, share in traffic.mix.items()}
        rate = math.fsum(captured.values())
        slowness = self._slowness * (1.0 + self._scenario.capture_cost * rate)
        step_s = self._curve.step_s(batch, steps) * slowness
        num_verifies = busy_s / step_s
        accept_length = 1.0 + sum(survival[:steps])
        tokens = num_verifies * batch * accept_length
        plain = batch * busy_s / (self._curve.step_s(batch, 0) * self._slowness)
        self._tally.served(self.name, at, to, tokens, plain, num_verifies * batch, steps)
        if rate > 0.0 and self.reachable:
            self._tally.captured(captured, tokens)
        if self._wants_counts:
            known = self._steps_seen.get(batch)
            self._steps_seen[batch] = steps
            if known is not None and known != steps:
                self._tally.steps_changed(at)
            self._count(batch, steps, num_verifies, step_s, survival)

    def receive(self, desired: SetServer, at: float) -> float | None:
        """Take in desired state; the second at which a swap that it begins will be complete, None without one."""
        if desired.generation <= self._generation:
            return None
        self.advance(at)
        self._generation, self.desired = desired.generation, desired
        if desired.draft_version in (NO_DRAFT, self.version):
            # Plain decoding needs no draft to be taken out: its steps table is empty.
            self._table, self._swap_at = desired.steps_table, math.inf
            self._choose_table(at)
            return None
        self._swap_at = at + self._scenario.swap_s
        return self._swap_at

    def complete_swap(self, at: float) -> None:
        """The draft that was desired is staged: it is swapped in, unless another one came up meanwhile."""
        if self.desired is None or at < self._swap_at or self.engine != "ready":
            return
        self.advance(at)
        self._at = at + self._scenario.stall_s
        self.version, self._table = self.desired.draft_version, self.desired.steps_table
        self._swap_at = math.inf
        self._choose_table(at)

    def go_down(self, at: float) -> None:
        """The engine ends; with it the draft that was in it."""
        self.advance(at)
        self.engine, self.version, self._table, self._swap_at = "down", NO_DRAFT, (), math.inf
        self._choose_table(at)

    def come_up(self, at: float) -> float | None:
        """A new engine; as `receive`: the draft that is desired is fetched again."""
        self.advance(at)
        self.engine = "ready"
        if self.desired is None or self.desired.draft_version == NO_DRAFT:
            return None
        self._swap_at = at + self._scenario.swap_s
        return self._swap_at

    def report(self, at: float) -> ServerReported:
        """What was counted since the last report."""
        steps = tuple(
            StepCount(
                batch, num_steps, c.num_verifies, c.num_tokens, tuple(c.accepted), c.step_s, c.target_s, c.median_s
            )
            for (batch, num_steps), c in sorted(self._counted.items())
            if c.num_verifies > 0
        )
        self._counted = {key: c.rest() for key, c in self._counted.items() if c.num_verifies == 0}
        self._sequence += 1
        interval_s, self._reported_at = at - self._reported_at, at
        digest = f"{self.version:064x}" if self.version else ""
        report = ServerReported(
            at, self.name, self._sequence, self.engine, self.version, digest, self._generation, interval_s, steps
        )
        if self._alone is not None:
            self._alone.observe(report)
            self._choose_table(at)
        return report

    def _choose_table(self, at: float) -> None:
        """What is desired, or what the node makes of it while nobody is in reach; see policy/alone.py."""
        self._in_force = self._table
        if self.reachable and self.led:
            self._reached_at = at
        elif self._alone is not None:
            self._in_force = self._alone.table(at, self._table, at - self._reached_at)

    def _rate_of(self, workload: str) -> float:
        """Share of a workload's requests that is captured."""
        if self.desired is None:
            return 0.0
        return self.desired.preferred_rate if workload in self.desired.preferred else self.desired.sample_rate

    def _steps(self, batch: int) -> int:
        if self.version == NO_DRAFT:
            return 0
        for largest, num_steps in self._in_force:
            if batch <= largest:
                return num_steps
        return 0

    def _survival(self, traffic: Traffic) -> list[float]:
        """S_1..S_max of what runs now on the mix that arrives, with this interval's jitter."""
        result = [0.0] * self._scenario.policy.max_steps
        if self.version == NO_DRAFT:
            return result
        for name, share in traffic.mix.items():
            factor = max(0.0, 1.0 + self._drafts.workloads[name].jitter * self._jitter)
            scale = 1.0
            for index, alive in enumerate(self._drafts.survival(self.version, name)):
                scale *= factor
                result[index] += share * min(1.0, alive * scale)
        for index in range(1, len(result)):
            result[index] = min(result[index], result[index - 1])
        return result

    def _batch(self, traffic: Traffic, seconds: float, survival: list[float]) -> tuple[int, float]:
        """(requests that run at once, busy seconds) of a stretch."""
        largest = self._group.max_running
        if traffic.running > 0.0:
            wanted = traffic.running * (1.0 + traffic.running_spread * self._spread)
            return max(1, min(largest, round(wanted))), seconds
        # Open loop: the smallest batch that keeps up with what is waiting (Little's law in a stretch).
        low, high = 1, largest
        needed = self._backlog / seconds
        while low < high:
            middle = (low + high) // 2
            if self._capacity(middle, survival) >= needed:
                high = middle
            else:
                low = middle + 1
        capacity = self._capacity(low, survival)
        busy_s = seconds * min(1.0, needed / capacity)
        self._backlog = max(0.0, self._backlog - busy_s * capacity)
        return low, busy_s

    def _capacity(self, batch: int, survival: list[float]) -> float:
        """Tokens a second at a batch size under the table in force."""
        steps = self._steps(batch)
        return batch * (1.0 + sum(survival[:steps])) / (self._curve.step_s(batch, steps) * self._slowness)

    def _count(self, batch: int, steps: int, num_verifies: float, step_s: float, survival: list[float]) -> None:
        counted = self._counted.get((batch, steps))
        if counted is None:
            counted = self._counted[batch, steps] = _Counted(steps)
        counted.owed += num_verifies
        whole = int(counted.owed)
        if whole == 0:
            return
        counted.owed -= whole
        reached, before, accepted = whole * batch, 1.0, 0
        for index in range(steps):
            prob = survival[index] / before if before > 0.0 else 0.0
            reached = _binomial(self._draws, reached, min(1.0, prob))
            counted.accepted[index] += reached
            accepted += reached
            before = survival[index]
        seen_s = step_s * math.exp(self._draws.gauss(0.0, self._noise / math.sqrt(whole)))
        share = self._curve.target_s(batch * (steps + 1)) / self._curve.step_s(batch, steps)
        counted.num_verifies += whole
        counted.num_tokens += whole * batch + accepted
        counted.step_s += seen_s * whole
        counted.target_s += seen_s * whole * share
        counted.median_s = seen_s


class _Counted:
    """Counters of one (batch size, num_steps); `owed` is the part of a step that is not over yet."""

    __slots__ = ("accepted", "median_s", "num_tokens", "num_verifies", "owed", "step_s", "target_s")

    def __init__(self, num_steps: int, owed: float = 0.0) -> None:
        self.num_verifies = 0
        self.num_tokens = 0
        self.accepted = [0] * num_steps
        self.step_s = 0.0
        self.target_s = 0.0
        self.median_s = 0.0
        self.owed = owed

    def rest(self) -> "_Counted":
        """What the next report goes on from."""
        return _Counted(len(self.accepted), self.owed)


def _binomial(rng: random.Random, num: int, prob: float) -> int:
    if num < _EXACT_DRAWS:
        return sum(rng.random() < prob for _ in range(num))
    mean = num * prob
    return max(0, min(num, round(rng.gauss(mean, math.sqrt(mean * (1.0 - prob))))))
