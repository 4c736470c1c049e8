"""What the policy is told. Every event carries its time (`at`, unix seconds by the controller's clock).

Fields mirror wire/records.py as far as decisions need them; roles/controller.py translates. A draft
that was swapped in is not an event of its own: it shows as `running_version` of a ServerReported.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tide_daemon.policy.collection import CollectionState
from tide_daemon.policy.plain import from_plain, to_plain

NO_DRAFT = 0
"""Version number that means "no trained draft"; the same as in wire/records.py."""

StepsTable = tuple[tuple[int, int], ...]
"""Ascending (largest batch size, num_steps); above the last entry plain decoding."""

DraftName = tuple[int, str]
"""(version, digest): a version names one content for ever."""

_MIN_STEP_S, _MAX_STEP_S = 1e-6, 3600.0
"""Bounds of one step's seconds, from a very small model on a fast device to a stalled machine."""


@dataclass(frozen=True, slots=True)
class StepCount:
    """What happened at one (batch size, num_steps) since the node's previous report.

    Attributes:
        num_verifies: target forward passes, each over `batch_size` requests.
        accepted_at: for each draft position, how many requests' drafts were accepted there.
        step_s, target_s: total seconds of those steps, and of the target's part.
        median_step_s: robust seconds of one step.
    """

    batch_size: int
    num_steps: int
    num_verifies: int
    num_tokens: int
    accepted_at: tuple[int, ...]
    step_s: float
    target_s: float
    median_step_s: float

    @property
    def num_proposals(self) -> int:
        """Chains that were verified (one a request a step)."""
        return self.num_verifies * self.batch_size

    @property
    def is_plausible(self) -> bool:
        """Whether these counts can be true. What a node sends is checked for form on the wire, for sense here."""
        falling = (self.num_proposals, *self.accepted_at)
        return (
            self.batch_size > 0
            and self.num_verifies > 0
            and len(self.accepted_at) == self.num_steps
            and all(0 <= later <= earlier for earlier, later in pairwise(falling))
            and 0 <= self.num_tokens <= self.num_proposals * (self.num_steps + 1)
            and _MIN_STEP_S <= self.median_step_s <= _MAX_STEP_S
            and _MIN_STEP_S <= self.step_s <= _MAX_STEP_S * self.num_verifies
            and self.target_s >= 0.0
        )


@dataclass(frozen=True, slots=True)
class WorkloadServed:
    """Drafted chains of captured requests of one workload, and the tokens that they gave, the target's own included."""

    workload: str
    num_chains: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class DraftFailed:
    """A draft that a node tried `num_tries` times in a row and cannot fetch or load; `reason` as the node has it.

    Tries that failed for another reason (no broker, a full disk, an engine that does not answer) begin the count again.
    """

    version: int
    digest: str
    num_tries: int
    reason: str


@dataclass(frozen=True, slots=True)
class ServerReported:
    """A server node said what it saw; `engine` is "starting", "ready", "capture_off" or "down"."""

    at: float
    node: str
    sequence: int
    engine: str
    running_version: int
    running_digest: str
    applied_generation: int
    interval_s: float
    steps: tuple[StepCount, ...]
    workloads: tuple[WorkloadServed, ...] = ()
    draft_failed: DraftFailed | None = None


@dataclass(frozen=True, slots=True)
class ShadowScored:
    """Accept length of the serving draft on recent held-out requests of one workload, offline."""

    workload: str
    num_requests: int
    num_positions: int
    num_tokens: float


@dataclass(frozen=True, slots=True)
class WorkloadStored:
    """Finished requests of a workload in a trainer's store, and response tokens of them since its last round began."""

    workload: str
    num_requests: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class PoolScored:
    """A draft of the pool against the draft that served, on chains of `num_steps`; no scores if it could not be had."""

    version: int
    serving_version: int
    num_steps: int
    scores: tuple["RequestScored", ...]


@dataclass(frozen=True, slots=True)
class TrainerReported:
    """A trainer said what it does; `state` is "waiting", "training", "scoring", "publishing" or "failed".

    Attributes:
        pool_scoring: number of the pool scoring that `pool` answers, 0 for none.
    """

    at: float
    trainer: str
    sequence: int
    state: str
    serving_version: int
    num_tokens: int
    new_tokens: int
    round: int
    shadow: tuple[ShadowScored, ...] = ()
    pool_scoring: int = 0
    pool: tuple[PoolScored, ...] = ()
    workloads: tuple[WorkloadStored, ...] = ()


@dataclass(frozen=True, slots=True)
class PositionScored:
    """The chain starts of a RequestScored from index `first_index` of the response on, up to the next such part."""

    first_index: int
    num_positions: int
    serving_tokens: float
    candidate_tokens: float


@dataclass(frozen=True, slots=True)
class RequestScored:
    """One held-out request under two drafts: sums of accept lengths over the same `num_positions` chain starts.

    Attributes:
        by_position: the same by place in the response; empty when it was not counted.
    """

    request: str
    workload: str
    num_positions: int
    serving_tokens: float
    candidate_tokens: float
    by_position: tuple[PositionScored, ...] = ()


@dataclass(frozen=True, slots=True)
class CandidatePublished:
    """A trainer published a draft; `scores` compare it with `parent_version` on chains of `num_steps`."""

    at: float
    version: int
    digest: str
    parent_version: int
    trainer: str
    num_train_tokens: int
    num_steps: int
    scores: tuple[RequestScored, ...]


@dataclass(frozen=True, slots=True)
class OperatorRequested:
    """A person asked for something; see requests.py. `version` is NO_DRAFT where none is named."""

    at: float
    request: str
    asked_at: float
    operator: str
    action: str
    version: int
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went on."""

    at: float


@dataclass(frozen=True, slots=True)
class StepTimed:
    """What the cost model knows of one (batch size, num_steps).

    Attributes:
        seconds: of one step; `variance` is that of its logarithm.
        target_share: of the step's seconds, the target's part.
        at: when it was last seen.
    """

    batch_size: int
    num_steps: int
    num_verifies: int
    seconds: float
    variance: float
    target_share: float
    at: float


@dataclass(frozen=True, slots=True)
class ChainsCounted:
    """Forgotten counts of chains, and by position of those that reached it and were accepted there."""

    num_proposals: float
    reached: tuple[float, ...]
    accepted: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What a controller that renews its reign goes on with for a server node, so that it need not probe again.

    Attributes:
        heard_at: when it reported last.
        busy_s: its busy clock, by which plain_seen_at and probe_ended_at count.
        plain_seen_at: (batch edge, when plain decoding was last timed there).
        num_steps: of the chains seen last; lately, long: the two windows of acceptance.
        choices: (batch edge, num_steps in force, since when). A probe under way is given up.
        tried_version: the draft that was tried last; untried: it has not shown itself yet.
        credit_s, lost_s: of the account of probes.
        probe_interval_s, probe_ended_at, failed_accept_length: as in ProbeSchedule.
    """

    heard_at: float
    engine: str
    running_version: int
    running_digest: str
    running_since: float
    busy_s: float
    timed: tuple[StepTimed, ...]
    plain_seen_at: tuple[tuple[int, float], ...]
    num_steps: int
    lately: ChainsCounted
    long: ChainsCounted
    choices: tuple[tuple[int, int, float], ...]
    tried_version: int
    untried: bool
    credit_s: float
    lost_s: float
    probe_interval_s: float
    probe_ended_at: float
    failed_accept_length: float


@dataclass(frozen=True, slots=True)
class ServerFound:
    """Desired state of a server node as an earlier leader left it; comes before the node's first report.

    Attributes:
        memory: None from another controller's reign.
    """

    at: float
    node: str
    generation: int
    draft_version: int
    draft_digest: str
    steps_table: StepsTable
    collect: bool
    sample_rate: float
    preferred: tuple[str, ...] = ()
    preferred_rate: float = 0.0
    memory: NodeMemory | None = None


@dataclass(frozen=True, slots=True)
class TrainerFound:
    """Desired state of a trainer as an earlier leader left it; comes before the trainer's first report."""

    at: float
    trainer: str
    generation: int
    round: int
    serving_version: int
    serving_digest: str
    pool: tuple[DraftName, ...] = ()
    pool_scoring: int = 0


@dataclass(frozen=True, slots=True)
class ControllerStarted:
    """A controller became leader, or renews its reign so that the journal holds a beginning; first event of a reign.

    Attributes:
        settings: PolicySettings as a plain map, so that a journal can be replayed by itself.
        fleet: newest FleetState of the journal, None if there is none.
        collection: Algorithm 1's memory as it stood with it, None if there is none.
    """

    at: float
    model: str
    settings: dict[str, float]
    fleet: "FleetState | None"
    collection: CollectionState | None = None


@dataclass(frozen=True, slots=True)
class PastDraft:
    """A draft that was served before; see pool.py.

    Attributes:
        lengths: (workload, held-out accept length) when it was promoted or scored last.
        outdated: a shift of the traffic was seen while it served.
        settled: its learning curve was flat by then.
        served_until: unix seconds.
    """

    version: int
    digest: str
    lengths: tuple[tuple[str, float], ...]
    outdated: bool
    settled: bool
    served_until: float


@dataclass(frozen=True, slots=True)
class FleetState:
    """Which draft the fleet serves and what is being rolled out. Kept whole in the journal at every change.

    Attributes:
        serving_version, serving_digest: what every node runs unless it is the canary.
        previous_version, previous_digest: where a rollback goes.
        stage: "steady", "canary", "rest" or "watch"; see rollout.py.
        candidate_version, candidate_digest: on the canary; NO_DRAFT outside that stage.
        canary: node name, "" outside that stage.
        since: when the stage began.
        offline_accept_length: held-out accept length of the candidate, else of the serving draft; 1.0 if not known.
        offline_num_steps: chain length of that score.
        last_gain: gain in accept length of the newest promoted draft, at the gate.
        judged: versions that the gate has answered, newest last.
        refused: versions that were rolled back and are not tried again, newest last.
        canary_accept_length, canary_num_steps: what the canary accepted live before the candidate, on chains of what
            length; 0.0 when that was not known.
        proven: the draft being rolled out or watched passed its canary on live figures.
        downs: (node, since when) of engines that went down while it was rolled out or watched.
        pool: drafts that were served before and may be again, by version.
        lengths, outdated, settled: of the serving draft, as in PastDraft.
        candidate_lengths: the same of the candidate.
        pinned: an operator wants nothing promoted.
        answered: operators' requests that were answered, newest last.
    """

    serving_version: int = NO_DRAFT
    serving_digest: str = ""
    previous_version: int = NO_DRAFT
    previous_digest: str = ""
    stage: str = "steady"
    candidate_version: int = NO_DRAFT
    candidate_digest: str = ""
    canary: str = ""
    since: float = 0.0
    offline_accept_length: float = 1.0
    offline_num_steps: int = 3
    last_gain: float = 0.0
    judged: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    proven: bool = False
    downs: tuple[tuple[str, float], ...] = ()
    pool: tuple[PastDraft, ...] = ()
    lengths: tuple[tuple[str, float], ...] = ()
    outdated: bool = False
    settled: bool = False
    candidate_lengths: tuple[tuple[str, float], ...] = ()
    canary_accept_length: float = 0.0
    canary_num_steps: int = 0
    pinned: bool = False
    answered: tuple[str, ...] = ()


Event = (
    ServerReported
    | TrainerReported
    | CandidatePublished
    | Tick
    | ControllerStarted
    | ServerFound
    | TrainerFound
    | OperatorRequested
)

_KINDS: dict[str, type[Any]] = {
    "server_reported": ServerReported,
    "trainer_reported": TrainerReported,
    "candidate_published": CandidatePublished,
    "tick": Tick,
    "controller_started": ControllerStarted,
    "server_found": ServerFound,
    "trainer_found": TrainerFound,
    "operator_requested": OperatorRequested,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def event_name(event: Event) -> str:
    """Name of the event's kind, as in its map."""
    return _NAMES[type(event)]


def event_to_map(event: Event) -> dict[str, Any]:
    """Plain map of an event; its kind is under "event"."""
    return {"event": _NAMES[type(event)], **to_plain(event)}


def event_from_map(value: dict[str, Any]) -> Event:
    """Inverse of event_to_map. ValueError when the map is not one."""
    fields = dict(value)
    kind = _KINDS.get(str(fields.pop("event", "")))
    if kind is None:
        raise ValueError(f"unknown event {value.get('event')!r}")
    event: Event = from_plain(kind, fields)
    return event


def event_cause(event: Event) -> str:
    """In a few words which event it was, for the instructions that follow from it."""
    match event:
        case ServerReported():
            return f"server_reported {event.node} {event.sequence}"
        case TrainerReported():
            return f"trainer_reported {event.trainer} {event.sequence}"
        case CandidatePublished():
            return f"candidate_published {event.version}"
        case OperatorRequested():
            return f"operator_requested {event.action} {event.request}"
    return event_name(event)
