"""Every limit of the policy: one frozen record, checked once. Elsewhere the policy only compares.

An operator sets a part of them in [controller]; roles/build.py carries values over by name.
"""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Limits, by question. `_RANGES` holds the bounds of each.

    Attributes:
        max_steps: longest chain of drafted tokens, 1..15.
        max_batch_size: batch sizes above it decode plainly, 1..1024.

        speculate_on: predicted tokens/s over plain needed to switch on.
        speculate_off: below it speculation is switched off; not above speculate_on.
        step_gain: predicted gain, as a share, that a change from one positive num_steps to another needs.
        dwell_s: least seconds between two changes of one batch size's steps, except switching off.
        off_dwell_s: the same for switching off.
        min_proposals: chains of live evidence that a decision needs.
        evidence_max_age_s: live evidence older than this, in busy seconds, switches nothing on.
        short_half_life_s, long_half_life_s: forgetting of acceptance, seconds of speculative steps.
        change_z: standard errors between the two windows that count as a change of traffic.
        prior_accept_prob: accept probability of a draft of which nothing is known.
        prior_draft_cost: draft seconds a step over target seconds, before any was measured (c of eq. 5).
        prior_token_cost: slope of T(n) relative to T(n0) per doubling-free unit n/n0, before two sizes were measured.

        probe_share: tokens that probing may cost, as a share of busy time.
        probe_credit_s: largest budget that can be saved up, and half of it is there at the start; seconds lost.
        probe_s: busy seconds of one probe of speculation, at most.
        probe_proposals: chains that end a probe of speculation.
        probe_interval_s: busy seconds between probes while off; doubles after each failure.
        probe_interval_max_s: where doubling ends.
        probe_min_ratio: a new draft predicted below this is not probed on arrival.
        plain_probe_s: busy seconds of one re-measurement of plain decoding.
        plain_interval_s: busy seconds between those.
        probe_timeout_s: busy seconds after which a probe that measures too little is dropped.

        ema_short, ema_long: memory of Algorithm 1's averages a measurement; long above short.
        shift_epsilon: fall of the short below the long average that counts as a shift (accept probability).
        shift_initial: measurements that initialise the averages (N_init).
        shift_min_proposals: chains of one measurement.
        drift_initial: measurements of a draft whose mean is the level that it has to hold.
        drift_slack: fall below that level that is not added up, accept probability a measurement.
        drift_limit: sum of what is above the slack that counts as a drift.
        score_initial: held-out scores of a draft whose mean is the level that it has to hold.
        score_max_fall: fall of their running mean below that level, as a share, that counts as a shift.
        headroom_gain: a promoted draft that gained at least this much accept length leaves collection on.
        sample_rate: share of requests captured while collection is on.
        idle_sample_rate: the same while it is off, for shadow scores; 0 captures nothing.
        workload_max_fall: held-out accept length that a workload may have lost, as a share of the best that is known of
            it, before it is captured at sample_rate while collection is off.

        train_min_tokens: new response tokens that ask for a round.
        train_first_tokens: the same while there is no draft at all.
        train_shift_tokens: the same after a shift.
        train_retry_s: wait after a failed round.
        train_begin_s: a trainer that has not begun what it was asked for within this no longer holds up the others.
        train_late_s: the same for one that is in a round for so long.

        pool_size: drafts served before that are kept to be tried again, 0 for none.
        pool_deadline_s: a shift waits so long for their scores; then a round may begin.
        pool_promise: what one of them had above the serving draft's held-out accept length on traffic as it is, as a
            share, that asks for their scores without a shift.
        pool_interval_s: least seconds between two such.

        gate_min_requests, gate_min_positions: held-out requests and chain starts that a verdict needs.
        gate_min_gain: least lower confidence bound of the gain in accept length.
        gate_max_loss: share of its accept length that a workload, or a stretch of the response, with enough data may
            lose to a candidate.
        gate_confidence: one-sided confidence of the bound.

        watch_min_steps: chains under the new draft that a live comparison needs.
        watch_max_drop: live drop, as a share of the old draft's accept length, that rolls back.
        watch_max_downs: engines that may go down, once each, while a proven draft is rolled out and watched.
        watch_s: seconds that a rolled-out draft is watched.
        settle_s: seconds a confirmed canary runs before it may pass without live evidence (one node only).
        rollout_deadline_s: a node that does not report the new draft within this counts as failed.
        draft_max_tries: nor does one count as on its way that has tried it so often in a row and says why it cannot.
        canary_busy_s: busy seconds in which a canary must have shown live evidence (several nodes).

        alone_after_s: a server node that no leading controller has reached for so long looks after its own steps.
        lost_after_s: a node or trainer not heard of for so long is left out.
        forget_after_s: one that was silent for so long is forgotten; not below lost_after_s. Whoever comes back goes on
            from what stands on the bus, without what was measured of it.
        keep_state_s: seconds between two copies of FleetState in the journal.
    """

    max_steps: int = 5
    max_batch_size: int = 64

    speculate_on: float = 1.05
    speculate_off: float = 1.0
    step_gain: float = 0.03
    dwell_s: float = 5.0
    off_dwell_s: float = 1.0
    min_proposals: int = 80
    evidence_max_age_s: float = 30.0
    short_half_life_s: float = 3.0
    long_half_life_s: float = 20.0
    change_z: float = 3.0
    prior_accept_prob: float = 0.4
    prior_draft_cost: float = 0.1
    prior_token_cost: float = 0.1

    probe_share: float = 0.005
    probe_credit_s: float = 2.0
    probe_s: float = 4.0
    probe_proposals: int = 240
    probe_interval_s: float = 60.0
    probe_interval_max_s: float = 600.0
    probe_min_ratio: float = 0.95
    plain_probe_s: float = 1.5
    plain_interval_s: float = 120.0
    probe_timeout_s: float = 30.0

    ema_short: float = 0.8
    ema_long: float = 0.98
    shift_epsilon: float = 0.05
    shift_initial: int = 10
    shift_min_proposals: int = 20
    drift_initial: int = 100
    drift_slack: float = 0.02
    drift_limit: float = 1.5
    score_initial: int = 5
    score_max_fall: float = 0.15
    headroom_gain: float = 0.02
    sample_rate: float = 1.0
    idle_sample_rate: float = 0.05
    workload_max_fall: float = 0.1

    train_min_tokens: int = 8_000
    train_first_tokens: int = 3_000
    train_shift_tokens: int = 2_000
    train_retry_s: float = 30.0
    train_begin_s: float = 120.0
    train_late_s: float = 1800.0

    pool_size: int = 4
    pool_deadline_s: float = 120.0
    pool_promise: float = 0.05
    pool_interval_s: float = 600.0

    gate_min_requests: int = 8
    gate_min_positions: int = 300
    gate_min_gain: float = 0.0
    gate_max_loss: float = 0.05
    gate_confidence: float = 0.9

    watch_min_steps: int = 200
    watch_max_drop: float = 0.1
    watch_max_downs: int = 2
    watch_s: float = 30.0
    settle_s: float = 5.0
    rollout_deadline_s: float = 120.0
    draft_max_tries: int = 3
    canary_busy_s: float = 60.0

    alone_after_s: float = 15.0
    lost_after_s: float = 15.0
    forget_after_s: float = 86_400.0
    keep_state_s: float = 60.0

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):
            low, high = _RANGES[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                problems.append(f"{field.name} must be {low:g} to {high:g}, it is {value:g}")
        for smaller, larger in _ORDERED:
            if getattr(self, smaller) > getattr(self, larger):
                problems.append(f"{smaller} must not be above {larger}")
        if problems:
            raise ValueError("\n".join(problems))

    def to_map(self) -> dict[str, float]:
        """Field by field, for the journal."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_map(cls, values: dict[str, float]) -> "PolicySettings":
        """Inverse of to_map; ValueError for an unknown name or a value out of range."""
        kinds: dict[str, Any] = {field.name: field.type for field in fields(cls)}
        unknown = sorted(set(values) - set(kinds))
        if unknown:
            raise ValueError(f"no such policy setting: {', '.join(unknown)}")
        return cls(**{name: kinds[name](value) for name, value in values.items()})


_ORDERED = (
    ("speculate_off", "speculate_on"),
    ("short_half_life_s", "long_half_life_s"),
    ("ema_short", "ema_long"),
    ("probe_interval_s", "probe_interval_max_s"),
    ("idle_sample_rate", "sample_rate"),
    ("lost_after_s", "forget_after_s"),
)

_SECONDS = (0.0, 86_400.0)
_COUNT = (1, 1 << 40)
_SHARE = (0.0, 1.0)

_RANGES: dict[str, tuple[float, float]] = {
    "max_steps": (1, 15),
    "max_batch_size": (1, 1024),
    "speculate_on": (1.0, 2.0),
    "speculate_off": (0.5, 2.0),
    "step_gain": _SHARE,
    "dwell_s": _SECONDS,
    "off_dwell_s": _SECONDS,
    "min_proposals": _COUNT,
    "evidence_max_age_s": _SECONDS,
    "short_half_life_s": (0.01, 86_400.0),
    "long_half_life_s": (0.01, 86_400.0),
    "change_z": (0.5, 100.0),
    "prior_accept_prob": (0.0, 0.99),
    "prior_draft_cost": (0.0, 10.0),
    "prior_token_cost": _SHARE,
    "probe_share": (0.0, 0.1),
    "probe_credit_s": (0.0, 600.0),
    "probe_s": (0.01, 600.0),
    "probe_proposals": _COUNT,
    "probe_interval_s": (0.1, 86_400.0),
    "probe_interval_max_s": (0.1, 86_400.0),
    "probe_min_ratio": (0.0, 2.0),
    "plain_probe_s": (0.01, 600.0),
    "plain_interval_s": (0.1, 86_400.0),
    "probe_timeout_s": (0.1, 86_400.0),
    "ema_short": (0.0, 0.9999),
    "ema_long": (0.0, 0.9999),
    "shift_epsilon": (0.0, 5.0),
    "shift_initial": _COUNT,
    "shift_min_proposals": _COUNT,
    "drift_initial": _COUNT,
    "drift_slack": _SHARE,
    "drift_limit": (0.0, 1e6),
    "score_initial": _COUNT,
    "score_max_fall": _SHARE,
    "headroom_gain": (0.0, 10.0),
    "sample_rate": _SHARE,
    "idle_sample_rate": _SHARE,
    "workload_max_fall": _SHARE,
    "train_min_tokens": _COUNT,
    "train_first_tokens": _COUNT,
    "train_shift_tokens": _COUNT,
    "train_retry_s": _SECONDS,
    "pool_size": (0, 8),
    "pool_deadline_s": _SECONDS,
    "pool_promise": _SHARE,
    "pool_interval_s": _SECONDS,
    "train_begin_s": _SECONDS,
    "train_late_s": _SECONDS,
    "gate_min_requests": (2, 1 << 20),
    "gate_min_positions": _COUNT,
    "gate_min_gain": (-1.0, 5.0),
    "gate_max_loss": _SHARE,
    "gate_confidence": (0.5, 0.9999),
    "watch_min_steps": _COUNT,
    "watch_max_drop": _SHARE,
    "watch_max_downs": (0, 1 << 20),
    "watch_s": _SECONDS,
    "settle_s": _SECONDS,
    "rollout_deadline_s": _SECONDS,
    "draft_max_tries": _COUNT,
    "canary_busy_s": _SECONDS,
    "alone_after_s": _SECONDS,
    "lost_after_s": (0.1, 86_400.0),
    "forget_after_s": (0.1, 1e8),
    "keep_state_s": _SECONDS,
}
