"""What is shown of a fleet, as plain values: the same record for the status page and for `tide-daemon status`.

It is made in fleet_view.py and holds no prompts, no token ids and no request ids. All times are unix seconds.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong. `page` is the runbook's name in ops/runbooks/, "" without one."""

    what: str
    do: str
    page: str = ""


@dataclass(frozen=True, slots=True)
class ServerRow:
    """A server node: what it last said, and what it is asked for.

    Attributes:
        accept_length: tokens a request got from a speculative step lately, None when nothing was drafted.
        tokens_per_s: emitted a second of wall time, over the newest report.
        decode_tokens_per_s, plain_tokens_per_s, of_plain: see policy/plain_pace.py; None for an idle node.
        steps: the steps table in words.
        reason: why it has that table; since: for how long, 0.0 if not known.
        dropped_share: of rows captured in the last minute, 0..1.
        problem: the newest sentence of its own, "" if none.
        heard_s: age of the newest report.
    """

    node: str
    engine: str
    version: int
    desired_version: int
    num_running: int
    num_steps: int
    accept_length: float | None
    tokens_per_s: float
    decode_tokens_per_s: float | None
    plain_tokens_per_s: float | None
    of_plain: float | None
    steps: str
    reason: str
    since: float
    collecting: bool
    rows_dropped: int
    dropped_share: float
    problem: str
    heard_s: float


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Accept length of the serving draft on held-out requests of one workload."""

    workload: str
    num_requests: int
    accept_length: float


@dataclass(frozen=True, slots=True)
class TrainerRow:
    """A trainer: what it last said.

    Attributes:
        left_s: seconds until the round's last step, from its steps of the last minute; None if that cannot be told.
        num_refused: chunks that were not stored.
    """

    trainer: str
    state: str
    round: int
    step: int
    num_steps_total: int
    loss: float
    left_s: float | None
    num_requests: int
    num_tokens: int
    new_tokens: int
    store_bytes: int
    num_refused: int
    scores: tuple[ScoreRow, ...]
    problem: str
    heard_s: float


@dataclass(frozen=True, slots=True)
class DraftRow:
    """A draft version: who made it, how it scored against the draft that served, and what became of it.

    Attributes:
        published_at: by the broker's clock.
        serving_accept_length, candidate_accept_length: on the same held-out requests; None without scores.
        state, reason: in words; the reason is the gate's.
    """

    version: int
    published_at: float
    trainer: str
    parent_version: int
    num_train_tokens: int
    num_requests: int
    serving_accept_length: float | None
    candidate_accept_length: float | None
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that a decision said, and its numbers."""

    words: str
    numbers: dict[str, float]


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One decision. `kind` is "drafts", "training" or "steps"; `id` is its place in the journal."""

    id: str
    at: float
    kind: str
    cause: str
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class StreamRow:
    """A stream of the broker; see bus/port.py StreamDepth."""

    name: str
    num_messages: int
    num_bytes: int
    max_bytes: int
    num_waiting: int | None


@dataclass(slots=True)
class FleetStatus:
    """All that is shown. `problems` are sorted, most urgent first; drafts and decisions newest first.

    Attributes:
        workloads: a sentence for each workload that the serving draft was scored on.
    """

    model: str
    at: float = 0.0
    leader: str = ""
    fencing_token: int = 0
    decided_at: float = 0.0
    serving_version: int = 0
    stage: str = "unknown"
    candidate_version: int = 0
    canary: str = ""
    pinned: bool = False
    servers: list[ServerRow] = field(default_factory=list)
    trainers: list[TrainerRow] = field(default_factory=list)
    streams: list[StreamRow] = field(default_factory=list)
    drafts: list[DraftRow] = field(default_factory=list)
    decisions: list[DecisionRow] = field(default_factory=list)
    workloads: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
