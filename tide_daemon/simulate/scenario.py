"""What is simulated, as frozen records. Units are in the names; the TOML format is described in SCENARIOS.md."""

from dataclasses import dataclass, field

from tide_daemon.policy.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step costs on one kind of server.

    Attributes:
        tokens, target_ms: points of T(n), the target's time for n tokens in parallel; lines between them.
        draft_ms: D0, one draft step.
        noise: standard deviation of a server's speed from interval to interval, as a share; it wanders slowly.
    """

    tokens: tuple[float, ...]
    target_ms: tuple[float, ...]
    draft_ms: float
    noise: float = 0.02


@dataclass(frozen=True, slots=True)
class Servers:
    """A group of equal servers.

    Attributes:
        max_running: requests that one of them runs at once.
        only_without_training: they are there in the comparison "all_serve" only: under TIDE these devices train.
    """

    name: str
    count: int
    cost: str
    max_running: int = 64
    only_without_training: bool = False


@dataclass(frozen=True, slots=True)
class Trainers:
    """A group of equal trainers.

    Attributes:
        tokens_per_s: response tokens that a round works through a second, all passes over them included.
        round_s: what a round costs besides: loading, scoring, publishing.
        pool_s: scoring earlier drafts, once enough requests are there.
        report_s: between two reports.
    """

    name: str
    count: int
    tokens_per_s: float
    round_s: float = 20.0
    pool_s: float = 5.0
    report_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Workload:
    """How well drafts do on one kind of requests; see learning.py for the curve.

    Attributes:
        start, ceiling: accept probability of the first drafted token, untrained and in the limit.
        half_tokens: response tokens of it after which half of the difference is learnt.
        depth: each further position's conditional probability over the one before.
        jitter: standard deviation of a server's accept probability from interval to interval.
        request_spread: standard deviation of a held-out request's accept length.
    """

    start: float
    ceiling: float
    half_tokens: float
    depth: float = 0.95
    jitter: float = 0.02
    request_spread: float = 0.3


@dataclass(frozen=True, slots=True)
class Learning:
    """What all workloads share.

    Attributes:
        transfer: what a token of another workload teaches, as a share of one of its own.
        forget_tokens: response tokens of other workloads after which half of a workload is forgotten; 0 for never.
        max_round_tokens: most that a trainer's store holds for one round; older ones fall out.
        response_tokens: of a request.
        heldout_share: share of requests held out for scoring.
        heldout_requests: most recent held-out requests that are scored.
        paired_spread: standard deviation of the difference of two drafts' accept lengths on one request.
    """

    transfer: float = 0.02
    forget_tokens: float = 0.0
    max_round_tokens: float = 2e6
    response_tokens: int = 256
    heldout_share: float = 0.05
    heldout_requests: int = 64
    paired_spread: float = 0.1


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of traffic, the same for all servers.

    Attributes:
        mix, mix_end: share of requests by workload at its start and its end; lines between.
        wave_s: when above 0, the mix jumps from one to the other and back, each for so long.
        running, running_end: requests that a server runs at once, when clients wait for answers (closed loop).
        arrivals_per_s, arrivals_per_s_end: requests a second and server instead (open loop); 0 for closed loop.
        running_spread: standard deviation of `running` from interval to interval, as a share.
    """

    name: str
    seconds: float
    mix: dict[str, float]
    mix_end: dict[str, float]
    wave_s: float = 0.0
    running: float = 0.0
    running_end: float = 0.0
    arrivals_per_s: float = 0.0
    arrivals_per_s_end: float = 0.0
    running_spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Something breaks for a while.

    Attributes:
        kind: "trainers_lost", "controller_lost", "cut_off" (servers out of reach, serving on) or "engine_down".
        at_s, seconds: when, and for how long; a lost controller is replaced after `seconds`.
        share: of the trainers or servers concerned, the first ones by name.
    """

    kind: str
    at_s: float
    seconds: float
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Poison:
    """One candidate is good offline and bad live.

    Attributes:
        after_s: it is the first one that is published at or after this second.
        live_share: its live accept probability over what it should be.
    """

    after_s: float
    live_share: float


@dataclass(frozen=True, slots=True)
class Network:
    """Messages: mean delay, and the share that is lost (desired state is then read with the next report)."""

    delay_s: float = 0.05
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One whole scenario.

    Attributes:
        report_s: between two reports of a server, and between two ticks of the controller.
        first_draft: response tokens by workload that the draft served from the start was trained on; None for no draft.
        swap_s, stall_s: from a desired draft to one that runs, and how long serving pauses for it.
        capture_cost: share of a step's time that capturing every request costs.
        heldout_steps: chain length of held-out scores.
        phases: in order; `repeat` is already carried out.
    """

    name: str
    title: str
    seed: int
    report_s: float
    costs: dict[str, Cost]
    servers: tuple[Servers, ...]
    trainers: tuple[Trainers, ...]
    workloads: dict[str, Workload]
    phases: tuple[Phase, ...]
    policy: PolicySettings
    learning: Learning = field(default_factory=Learning)
    first_draft: dict[str, float] | None = None
    network: Network = field(default_factory=Network)
    failures: tuple[Failure, ...] = ()
    poison: tuple[Poison, ...] = ()
    swap_s: float = 3.0
    stall_s: float = 0.02
    capture_cost: float = 0.0
    heldout_steps: int = 3

    @property
    def seconds(self) -> float:
        """Length of the whole."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def num_servers(self) -> int:
        """Servers under TIDE."""
        return sum(group.count for group in self.servers if not group.only_without_training)
