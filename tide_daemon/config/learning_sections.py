"""Sections of the learning side: [trainer] and [controller]."""

from dataclasses import dataclass
from pathlib import Path

from tide_daemon.config.daemon_sections import GIB, MIB
from tide_daemon.config.fields import setting


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """Sample store and training rounds. When a round runs is the controller's choice."""

    target_path: Path | None = setting(
        None, "Folder of the target model, read once for its embedding, norm and head. Empty: asked for over the bus."
    )
    device: str = setting(
        "auto",
        "Where the draft is trained. auto: on a GPU (CUDA or ROCm) if there is one, on the CPU beside the role server.",
        choices=("auto", "cpu", "cuda"),
    )
    threads: int = setting(1, "Threads of the training process on a CPU.", unit="threads", minimum=1, maximum=1024)
    nice: int = setting(10, "Added to the training process's niceness.", minimum=0, maximum=19)
    only_idle: bool = setting(
        False,
        "Train only on processors that nothing else wants (SCHED_IDLE): for a trainer beside a server. "
        "Stronger than nice.",
    )
    store_max_bytes: int = setting(
        2 * GIB, "Size of the sample store; the oldest samples go first.", unit="bytes", minimum=16 * MIB
    )
    store_max_age_s: float = setting(
        7 * 86400.0, "Age at which samples are deleted.", unit="s", minimum=60, maximum=366 * 86400
    )
    heldout_share: float = setting(
        0.1, "Share of requests that are never trained on and score the drafts.", minimum=0.01, maximum=0.5
    )
    heldout_max_age_s: float = setting(
        86400.0, "Held-out requests older than this are not scored.", unit="s", minimum=60, maximum=366 * 86400
    )
    heldout_max_requests: int = setting(
        64, "Most recent held-out requests that a candidate is scored on.", unit="requests", minimum=4, maximum=10_000
    )
    round_min_tokens: int = setting(
        2_000, "Response tokens that a round needs at least.", unit="tokens", minimum=100, maximum=1 << 30
    )
    round_max_tokens: int = setting(
        40_000,
        "Response tokens that a round passes through at most, repeats counted.",
        unit="tokens",
        minimum=100,
        maximum=1 << 40,
    )
    replay_share: float = setting(
        0.8, "Share of a round's tokens taken from older samples, against forgetting.", minimum=0, maximum=0.9
    )
    learning_rate: float = setting(5e-4, "Peak of AdamW's learning rate.", minimum=1e-7, maximum=1e-1)
    batch_tokens: int = setting(512, "Tokens of one optimizer step.", unit="tokens", minimum=16, maximum=1 << 20)
    sequence_tokens: int = setting(
        512, "Longest piece of a request that is trained on at once.", unit="tokens", minimum=16, maximum=1 << 17
    )
    context_tokens: int = setting(
        256, "Prompt positions kept before the first generated token.", unit="tokens", minimum=0, maximum=1 << 17
    )
    unroll_steps: int = setting(3, "Steps of the train-time-test unroll.", unit="steps", minimum=1, maximum=15)
    unroll_decay: float = setting(0.8, "Weight of unroll step i is this to the power i.", minimum=0.1, maximum=1)
    num_steps: int = setting(3, "Length of the drafted chain that scores are for.", unit="steps", minimum=1, maximum=15)
    shadow_interval_s: float = setting(
        30.0,
        "Between rounds the serving draft is scored on new requests this often; 0 for never.",
        unit="s",
        minimum=0,
        maximum=86400,
    )
    checkpoint_interval_s: float = setting(
        30.0, "A killed round goes on from a checkpoint at most this old.", unit="s", minimum=1, maximum=3600
    )
    keep_versions: int = setting(
        8, "Newest versions kept on the draft stream, besides those in use.", unit="versions", minimum=2, maximum=1000
    )
    anchor_interval: int = setting(
        8, "Every n-th version travels whole, the others as deltas.", unit="versions", minimum=1, maximum=1000
    )
    report_interval_s: float = setting(
        2.0, "Time between two reports to the controller.", unit="s", minimum=0.1, maximum=60
    )


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """Thresholds of the decisions in policy/, and who may take them."""

    lease_ttl_s: int = setting(
        5, "Another controller takes over when the leader was silent for this.", unit="s", minimum=1, maximum=300
    )
    tick_s: float = setting(
        1.0, "Time between two looks at the clock when no report comes.", unit="s", minimum=0.1, maximum=60
    )
    max_batch_size: int = setting(
        64, "Larger running batches decode plainly.", unit="requests", minimum=1, maximum=1024
    )
    speculate_on: float = setting(1.05, "Speculate when the expected speed-up is at least this.", minimum=1, maximum=2)
    speculate_off: float = setting(
        1.0,
        "Stop speculating when the expected speed-up is below this; not above speculate_on.",
        minimum=0.5,
        maximum=2,
    )
    step_gain: float = setting(
        0.03,
        "Expected gain, as a share, that changing from one positive number of steps to another needs.",
        minimum=0,
        maximum=1,
    )
    dwell_s: float = setting(
        5.0, "Least time between two changes of a batch size's number of steps.", unit="s", minimum=0, maximum=86400
    )
    off_dwell_s: float = setting(1.0, "The same for switching off.", unit="s", minimum=0, maximum=86400)
    probe_share: float = setting(
        0.005, "Share of busy time that trying out other numbers of steps may cost.", minimum=0, maximum=0.1
    )
    probe_interval_s: float = setting(
        60.0,
        "Busy time between two trials while speculation is off; doubles after each that failed.",
        unit="s",
        minimum=0.1,
        maximum=600,
    )
    ema_short: float = setting(
        0.8, "Memory of the short average of Algorithm 1, a measurement.", minimum=0, maximum=0.9999
    )
    ema_long: float = setting(0.98, "Memory of the long one; above ema_short.", minimum=0, maximum=0.9999)
    shift_epsilon: float = setting(
        0.05,
        "A shift of the workload is seen when the short average is this far below the long one.",
        minimum=0,
        maximum=5,
    )
    idle_sample_rate: float = setting(
        0.05,
        "Share of requests captured while collection is off, so that drafts can still be scored.",
        minimum=0,
        maximum=1,
    )
    train_min_tokens: int = setting(
        8_000,
        "New response tokens after which a training round is asked for.",
        unit="tokens",
        minimum=1,
        maximum=1 << 40,
    )
    train_first_tokens: int = setting(
        3_000, "The same while there is no draft at all.", unit="tokens", minimum=1, maximum=1 << 40
    )
    train_shift_tokens: int = setting(
        2_000, "The same after a shift of the workload.", unit="tokens", minimum=1, maximum=1 << 40
    )
    pool_size: int = setting(
        4,
        "Drafts served before that are tried again when traffic shifts, before anything is trained; 0 for none.",
        unit="versions",
        minimum=0,
        maximum=8,
    )
    train_late_s: float = setting(
        1800.0,
        "A trainer that is at one round for this no longer keeps the others from beginning one.",
        unit="s",
        minimum=1,
        maximum=86400,
    )
    gate_min_requests: int = setting(
        8, "Held-out requests that a verdict needs.", unit="requests", minimum=2, maximum=1 << 20
    )
    gate_min_positions: int = setting(
        300, "Scored positions that a verdict needs.", unit="positions", minimum=1, maximum=1 << 40
    )
    gate_min_gain: float = setting(
        0.0,
        "Least gain in accept length, by the confidence bound, to promote a candidate.",
        unit="tokens",
        minimum=-1,
        maximum=5,
    )
    gate_confidence: float = setting(0.9, "One-sided confidence of that bound.", minimum=0.5, maximum=0.9999)
    watch_min_steps: int = setting(
        200,
        "Drafted chains under a new draft before it counts as good or bad.",
        unit="chains",
        minimum=1,
        maximum=1 << 40,
    )
    watch_max_drop: float = setting(
        0.1, "A live fall of the accept length by this share of the old draft's rolls back.", minimum=0, maximum=1
    )
    watch_s: float = setting(
        30.0, "A draft that was rolled out is watched for this long.", unit="s", minimum=0, maximum=86400
    )
    rollout_deadline_s: float = setting(
        120.0,
        "A node that does not report the new draft within this counts as failed.",
        unit="s",
        minimum=0,
        maximum=86400,
    )
    lost_after_s: float = setting(
        15.0, "A node or trainer that was silent for this is left out.", unit="s", minimum=0.1, maximum=86400
    )
