"""What a trainer is told, as one frozen record.

Names follow the [trainer] section of the configuration, whose fields hold the ranges; values here have been
checked. The record travels to the worker process as a map of plain values.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """Settings of the trainer role and of its worker.

    Attributes:
        name: of this trainer, in subjects: [a-z0-9-]{1,64}.
        model: short name of the target, in subjects.
        target_path: folder of the target's safetensors, for embedding, norm and head; "" to fetch them over the bus.
        device: "cpu", "cuda" or "auto", see compute.py.
        threads: torch threads of the worker.
        nice: added to the worker's nice value.
        only_idle: run on processors that nothing else wants.

        store_max_bytes, store_max_age_s, segment_bytes: bounds of the sample store, see store.StoreLimits.
        fetch_max_bytes, fetch_max_messages: at most this much per pull, and so in memory at once.

        heldout_share: share of requests never trained on, 0..1.
        heldout_max_requests: most requests that a score uses, the newest first.
        heldout_max_age_s: held-out requests captured longer ago are not scored.
        score_max_positions: bound on scored positions, so that scoring costs a known share of a round.
        shadow_interval_s: between rounds, score the serving draft this often when new requests came; 0 for never.
        shadow_max_requests: newest requests that a shadow score uses: few, so that it tells of today's traffic.

        pool_limit_s: scoring earlier drafts is given up after this.

        round_min_tokens: new response tokens that a round needs; it waits for them.
        round_max_tokens: response tokens that a round passes through at most, repeats counted.
        replay_share: share of a round's tokens taken from older samples.
        replay_max_age_s: samples captured longer ago are not replayed.
        batch_tokens: token positions in an optimizer step, about.
        sequence_tokens: longest piece of a request that is trained on at once.
        context_tokens: positions kept before the first generated token of a request.
        draft_vocab_size: rows of the draft's head, fixed for ever by the first draft.
        count_requests: new requests that a round counts words on, for the draft's vocabulary, at most.
        learning_rate, unroll_steps, unroll_decay: see trainer/session.py.
        num_steps: chain length of scores, as in RequestScore.
        seed: of the order of samples.
        checkpoint_interval_s: a killed round goes on from a checkpoint at most this old.

        anchor_interval: a version whose number is a multiple of this is published dense.
        keep_versions: newest versions kept on the draft stream, besides those in use.
        report_interval_s: seconds between reports.
    """

    name: str
    model: str
    target_path: str = ""
    device: str = "auto"
    threads: int = 1
    nice: int = 10
    only_idle: bool = False

    store_max_bytes: int = 2 << 30
    store_max_age_s: float = 7 * 86_400.0
    segment_bytes: int = 64 << 20
    fetch_max_bytes: int = 8 << 20
    fetch_max_messages: int = 256

    heldout_share: float = 0.1
    heldout_max_requests: int = 64
    heldout_max_age_s: float = 86_400.0
    score_max_positions: int = 4096
    shadow_interval_s: float = 30.0
    shadow_max_requests: int = 4
    pool_limit_s: float = 60.0

    round_min_tokens: int = 2_000
    round_max_tokens: int = 40_000
    replay_share: float = 0.8
    replay_max_age_s: float = 7 * 86_400.0
    batch_tokens: int = 512
    sequence_tokens: int = 512
    context_tokens: int = 256
    draft_vocab_size: int = 4096
    count_requests: int = 1024
    learning_rate: float = 5e-4
    unroll_steps: int = 3
    unroll_decay: float = 0.8
    num_steps: int = 3
    seed: int = 0
    checkpoint_interval_s: float = 30.0

    anchor_interval: int = 8
    keep_versions: int = 8
    report_interval_s: float = 2.0


def target_dir(settings: TrainerSettings, state_dir: Path) -> Path:
    """Folder of the target's frozen tensors: the configured one, else where they are fetched to."""
    return Path(settings.target_path) if settings.target_path else state_dir / "target"


def to_map(settings: TrainerSettings) -> dict[str, object]:
    """Plain values for the pipe to the worker."""
    return dataclasses.asdict(settings)


def from_map(values: dict[str, object]) -> TrainerSettings:
    """Inverse of `to_map`. Raises TypeError for unknown or missing names: daemon and worker are of two releases."""
    return TrainerSettings(**values)  # type: ignore[arg-type]
