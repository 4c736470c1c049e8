"""The bounded price of finding out.

Off can only come back on when somebody looks, and on is only honest while plain decoding is measured
too. Two kinds of probe do that, each for a few busy seconds on one node:

    "speculate"  while off: a new draft arrived, held-out scores rose, or the interval is over
    "plain"      while on: the plain step time is old or was never seen

What a probe costs is counted in busy seconds lost against the better choice, as measured, not as
planned. A node earns `probe_share` of its busy time (0.005 = 0.5%) up to `probe_credit_s`, and begins
with half of that; a probe starts only if the account covers what it is expected to lose, or is full. So over
any span the loss is at most probe_share of the busy time + probe_credit_s + what one probe overran, and
an overrun is paid back before the next probe starts. A canary among several nodes is charged as well and does
not wait for credit: one probe a candidate is what a rollout costs.
"""

from dataclasses import dataclass, field

from tide_daemon.policy.settings import PolicySettings


@dataclass(slots=True)
class ProbeAccount:
    """Busy seconds that probing may still lose; negative after an overrun.

    Attributes:
        lost_s: all that probing has lost so far.
    """

    credit_s: float
    lost_s: float = 0.0

    def earn(self, busy_s: float, settings: PolicySettings) -> None:
        """Add the share of `busy_s`, up to the cap."""
        self.credit_s = min(settings.probe_credit_s, self.credit_s + settings.probe_share * busy_s)

    def spend(self, lost_s: float) -> None:
        """Take off a measured loss; a gain (negative) is not credited."""
        if lost_s > 0.0:
            self.credit_s -= lost_s
            self.lost_s += lost_s

    def affords(self, lost_s: float, settings: PolicySettings) -> bool:
        """Whether an expected loss is covered; a full account covers any, or what seems dear would never be tried."""
        return self.credit_s > 0.0 and self.credit_s >= min(lost_s, settings.probe_credit_s)


@dataclass(slots=True)
class Probe:
    """A probe under way.

    Attributes:
        kind: "speculate" or "plain".
        began_busy_s: the node's busy clock when it was asked for.
        steps_by_edge: what the table holds instead, by batch edge; other edges keep their choice.
        min_proposals: chains below which it does not end early: a canary among several has to show them.
        busy_s, num_proposals, num_verifies: what was measured in the probed state.
    """

    kind: str
    began_busy_s: float
    reason: str
    steps_by_edge: dict[int, int] = field(default_factory=dict)
    busy_s: float = 0.0
    num_proposals: int = 0
    num_verifies: int = 0
    min_proposals: int = 0

    def is_over(self, node_busy_s: float, settings: PolicySettings) -> bool:
        """Whether enough was measured, or traffic went to batch sizes that are not probed. It waits while idle."""
        if node_busy_s - self.began_busy_s >= settings.probe_timeout_s:
            return True
        if self.kind == "plain":
            return self.busy_s >= settings.plain_probe_s
        if self.num_proposals < self.min_proposals:
            return False
        return self.busy_s >= settings.probe_s or self.num_proposals >= settings.probe_proposals


@dataclass(slots=True)
class ProbeSchedule:
    """When the next probe of speculation is due; pure bookkeeping in busy seconds.

    Attributes:
        new_draft: the running version has not been tried yet.
        last_busy_s: the node's busy clock when the last probe ended.
        interval_s: busy seconds to wait; doubles after each failure.
        failed_accept_length: held-out accept length known when the last probe failed, 0.0 if none failed.
    """

    interval_s: float
    new_draft: bool = False
    last_busy_s: float = 0.0
    failed_accept_length: float = 0.0

    def draft_arrived(self, settings: PolicySettings) -> None:
        """A version that was never tried here is running."""
        self.new_draft = True
        self.interval_s = settings.probe_interval_s
        self.failed_accept_length = 0.0

    def switched_off(self, busy_s: float, offline_accept_length: float) -> None:
        """Live evidence switched speculation off: the next probe waits its interval, or for a better held-out score."""
        self.new_draft = False
        self.last_busy_s = busy_s
        self.failed_accept_length = offline_accept_length

    def ended(self, busy_s: float, *, paid: bool, offline_accept_length: float, settings: PolicySettings) -> None:
        """A probe of speculation ended; `paid` if speculation stayed on."""
        self.new_draft = False
        self.last_busy_s = busy_s
        if paid:
            self.interval_s = settings.probe_interval_s
            self.failed_accept_length = 0.0
        else:
            self.interval_s = min(settings.probe_interval_max_s, 2.0 * self.interval_s)
            self.failed_accept_length = offline_accept_length
