"""Streams, limits and consumers as data. No I/O here: see admin.py (JetStream) and memory.py.

What each stream is for, and what happens when it is full:

    TIDE_HIDDEN   hidden-state chunks; oldest go first, stale samples are worth little
    TIDE_REPORT   what nodes report; oldest go first
    TIDE_DRAFT    draft parts, manifests, claims; a full stream refuses, nobody loses a draft in use
    TIDE_TARGET   the target's frozen rows; a full stream refuses
    TIDE_CONTROL  desired state; one message a subject, the last one counts
    TIDE_JOURNAL  every decision with its cause; oldest go first
    TIDE_OPERATOR what operators asked; one message a request, gone after an hour
    TIDE_FORGET   which requests' samples are to be forgotten, and what each trainer erased; kept for longer than any
                  store keeps samples, and a full stream refuses: no trainer that was away misses one
    TIDE_DEAD     advisories about messages that were given up; the messages stay in their stream
    KV_TIDE_LEASE the leases, a KV bucket with a time to live per key
"""

from dataclasses import dataclass, fields

ROOT = "tide.v1"
LEASE_SUBJECT = "$KV.TIDE_LEASE"
TRAINERS = "trainers"
_ADVISORY = "$JS.EVENT.ADVISORY.CONSUMER"

MIB = 1 << 20
HOUR_S = 3600.0
FORGET_MAX_AGE_S = 400 * 24 * HOUR_S
"""Longer than trainer.store_max_age_s may be (366 days)."""


@dataclass(frozen=True, slots=True)
class TopologyLimits:
    """What an operator may choose. Bytes are what the broker may keep on disk; 0 s means no limit of age.

    Attributes:
        duplicate_window_s: how long the broker remembers message ids; a retry after that may be stored twice.
        ack_wait_s: a chunk not acknowledged for so long goes to another trainer.
        max_ack_pending: chunks handed out and not acknowledged, all trainers together.
        max_deliver: a chunk that failed so often is given up (and told of in TIDE_DEAD).
        replicas: 1, 3 or 5 servers of a cluster.
    """

    hidden_max_bytes: int = 1024 * MIB
    hidden_max_age_s: float = 24 * HOUR_S
    report_max_bytes: int = 64 * MIB
    report_max_age_s: float = 24 * HOUR_S
    draft_max_bytes: int = 2048 * MIB
    target_max_bytes: int = 4096 * MIB
    control_max_bytes: int = 64 * MIB
    journal_max_bytes: int = 512 * MIB
    journal_max_age_s: float = 0.0
    duplicate_window_s: float = 600.0
    ack_wait_s: float = 60.0
    max_ack_pending: int = 512
    max_deliver: int = 8
    replicas: int = 1

    def __post_init__(self) -> None:
        problems = [
            f"{item.name} must not be negative, it is {getattr(self, item.name)}"
            for item in fields(self)
            if getattr(self, item.name) < 0
        ]
        problems += [
            f"{item.name} must be at least 1 MiB, it is {getattr(self, item.name)}"
            for item in fields(self)
            if item.name.endswith("_max_bytes") and 0 <= getattr(self, item.name) < MIB
        ]
        if self.replicas not in (1, 3, 5):
            problems.append(f"replicas must be 1, 3 or 5, it is {self.replicas}")
        if self.duplicate_window_s < 1 or self.ack_wait_s <= 0 or self.max_deliver < 1 or self.max_ack_pending < 1:
            problems.append("duplicate_window_s, ack_wait_s, max_deliver and max_ack_pending must be positive")
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream.

    Attributes:
        subjects: what it stores; the subjects of two streams never overlap.
        max_bytes: the broker reserves this much.
        max_age_s: 0.0 for no limit.
        max_per_subject: messages kept of one subject, 0 for no limit.
        refuse_when_full: True: a full stream refuses. False: its oldest messages go.
        persist_async: acknowledged before it is written (server 2.12 and later). A server killed at
            once loses what came in the last 0.1 s (measured, messages of 100 bytes); readers of such a
            stream live with holes.
        message_ttl: a message may carry its own time to live.
    """

    name: str
    subjects: tuple[str, ...]
    max_bytes: int
    max_age_s: float = 0.0
    max_per_subject: int = 0
    refuse_when_full: bool = False
    persist_async: bool = False
    message_ttl: bool = False
    duplicate_window_s: float = 120.0
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable pull consumer with explicit acknowledgement, shared by all who bind to it."""

    name: str
    stream: str
    filter_subject: str
    ack_wait_s: float
    max_ack_pending: int
    max_deliver: int


@dataclass(frozen=True, slots=True)
class Topology:
    """All streams and consumers of one deployment."""

    streams: tuple[StreamSpec, ...]
    consumers: tuple[ConsumerSpec, ...]

    @property
    def max_bytes(self) -> int:
        """What the broker must be able to reserve on disk for all streams together."""
        return sum(stream.max_bytes for stream in self.streams)

    def stream_of(self, subject: str) -> StreamSpec:
        """The stream that stores a subject, or all subjects of a wildcard.

        Raises:
            ValueError: no stream stores it.
        """
        for stream in self.streams:
            if any(covers(pattern, subject) for pattern in stream.subjects):
                return stream
        raise ValueError(f"no stream stores {subject}")

    def consumer(self, name: str) -> ConsumerSpec:
        """The consumer of that name; ValueError if there is none."""
        for consumer in self.consumers:
            if consumer.name == name:
                return consumer
        raise ValueError(f"no consumer {name} in the topology")


def covers(pattern: str, subject: str) -> bool:
    """True if every subject that `subject` stands for (it may hold wildcards) also matches `pattern`."""
    wanted = pattern.split(".")
    given = subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or given[index] == ">" or (token != "*" and token != given[index]):
            return False
    return len(given) == len(wanted)


def build_topology(limits: TopologyLimits) -> Topology:
    """The streams and consumers of nats.md's table under the operator's limits."""

    def window(max_age_s: float) -> float:
        # The server refuses a window longer than the stream's maximum age.
        return min(limits.duplicate_window_s, max_age_s) if max_age_s else limits.duplicate_window_s

    def stream(name: str, subjects: tuple[str, ...], max_bytes: int, max_age_s: float, **more: object) -> StreamSpec:
        return StreamSpec(
            name,
            subjects,
            max_bytes,
            max_age_s,
            duplicate_window_s=window(max_age_s),
            replicas=limits.replicas,
            **more,  # type: ignore[arg-type]
        )

    streams = (
        stream(
            "TIDE_HIDDEN",
            (f"{ROOT}.hidden.>",),
            limits.hidden_max_bytes,
            limits.hidden_max_age_s,
            # The server takes asynchronous persistence on unreplicated streams only.
            persist_async=limits.replicas == 1,
        ),
        stream("TIDE_REPORT", (f"{ROOT}.report.>",), limits.report_max_bytes, limits.report_max_age_s),
        stream("TIDE_DRAFT", (f"{ROOT}.draft.>",), limits.draft_max_bytes, 0.0, refuse_when_full=True),
        stream(
            "TIDE_TARGET",
            (f"{ROOT}.target.>",),
            limits.target_max_bytes,
            0.0,
            refuse_when_full=True,
            max_per_subject=1,
        ),
        stream("TIDE_CONTROL", (f"{ROOT}.control.>",), limits.control_max_bytes, 0.0, max_per_subject=1),
        stream("TIDE_JOURNAL", (f"{ROOT}.journal.>",), limits.journal_max_bytes, limits.journal_max_age_s),
        stream("TIDE_OPERATOR", (f"{ROOT}.operator.>",), MIB, HOUR_S, max_per_subject=1),
        stream(
            "TIDE_FORGET",
            (f"{ROOT}.forget.>",),
            16 * MIB,
            FORGET_MAX_AGE_S,
            refuse_when_full=True,
            max_per_subject=1,
        ),
        stream(
            "TIDE_DEAD",
            (f"{_ADVISORY}.MAX_DELIVERIES.TIDE_HIDDEN.>", f"{_ADVISORY}.MSG_TERMINATED.TIDE_HIDDEN.>"),
            16 * MIB,
            7 * 24 * HOUR_S,
        ),
        stream("KV_TIDE_LEASE", (f"{LEASE_SUBJECT}.>",), MIB, 0.0, max_per_subject=1, message_ttl=True),
    )
    consumers = (
        ConsumerSpec(
            TRAINERS,
            "TIDE_HIDDEN",
            f"{ROOT}.hidden.>",
            limits.ack_wait_s,
            limits.max_ack_pending,
            limits.max_deliver,
        ),
    )
    return Topology(streams, consumers)
