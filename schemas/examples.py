"""One small record of every kind, and of every codec: what the golden files hold.

Values are made up but possible, and never change: a peer built from an older commit must go on
reading golden/*.bin. A new optional field gets a new example beside the old one.
"""

import dataclasses
import hashlib

import numpy as np

from tide_daemon.wire import records
from tide_daemon.wire.records import Record
from tide_daemon.wire.tensors import float32_to_bf16
from tide_daemon.wire.weights import split_parts

AT = 1_767_225_600.25  # unix seconds
REQUEST_ID = "00112233445566778899aabbccddeeff"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


SPEC = records.TargetSpec(
    model="smollm2-135m",
    target_fingerprint=_sha256("target"),
    vocab_hash=_sha256("vocabulary"),
    aux_layer_ids=(2, 15, 27),
    hidden_size=4,
    vocab_size=100,
)


def hidden_chunk(codec: str) -> records.HiddenChunk:
    """Three rows of width 12, the first one of the prompt and without log-probabilities."""
    values = np.linspace(-3.0, 3.0, 36, dtype=np.float32).reshape(3, 12)
    return records.HiddenChunk(
        spec=SPEC,
        node="gpu-1",
        request_id=REQUEST_ID,
        workload="code",
        chunk_index=1,
        last=True,
        incomplete=False,
        first_position=16,
        captured_at=AT,
        draft_version=7,
        codec=codec,
        token_ids=np.array([5, 17, 99], np.int32),
        loss_mask=np.array([0, 1, 1], np.uint8),
        next_token_id=42,
        topk_ids=np.array([[-1, -1], [99, 3], [42, 0]], np.int32),
        topk_logprobs=np.array([[0.0, 0.0], [-0.25, -1.5], [-0.125, -2.5]], np.float16),
        aux=float32_to_bf16(values),
    )


PAYLOAD = bytes(range(256)) * 2
PARTS = split_parts(PAYLOAD, 300)


def manifest(base_version: int | None) -> records.DraftManifest:
    """A delta of version 7, or a dense anchor."""
    return records.DraftManifest(
        spec=SPEC,
        version=8,
        parent_version=7,
        base_version=base_version,
        base_digest="" if base_version is None else _sha256("version 7"),
        content_digest=_sha256("version 8"),
        draft_vocab_size=32,
        vocab_map_digest=_sha256("d2t"),
        config_json='{"architectures": ["LlamaForCausalLMEagle3"]}',
        tensors=(
            records.TensorEntry("d2t", "I64", (32,), _sha256("d2t")),
            records.TensorEntry("fc.weight", "BF16", (4, 12), _sha256("fc.weight")),
        ),
        parts=tuple(entry for entry, _ in PARTS),
        trainer="trainer-1",
        created_at=AT,
        num_train_tokens=20_000,
        oldest_sample_at=AT - 600.0,
        newest_sample_at=AT - 1.0,
        num_steps=3,
        scores=(records.RequestScore(REQUEST_ID[:16], "code", 16, 40, 62.0, 75.5),),
    )


BY_POSITION = (records.PositionScore(0, 30, 48.0, 58.5), records.PositionScore(64, 10, 14.0, 17.0))

EXAMPLES: dict[str, Record] = {
    "hidden_chunk_bf16": hidden_chunk("bf16"),
    "hidden_chunk_bf16_planes": hidden_chunk("bf16-planes"),
    "hidden_chunk_int8_block64": hidden_chunk("int8-block64"),
    "hidden_chunk_withheld": dataclasses.replace(
        hidden_chunk("bf16-planes"),
        token_ids=np.array([records.OTHER_CHOICE, records.OTHER_CHOICE, records.FIRST_CHOICE], np.int32),
        next_token_id=-1,
        withheld=True,
    ),
    "draft_manifest_anchor": manifest(None),
    "draft_manifest_delta": manifest(7),
    "draft_manifest_positions": dataclasses.replace(
        manifest(7), scores=(records.RequestScore(REQUEST_ID[:16], "code", 16, 40, 62.0, 75.5, BY_POSITION),)
    ),
    "draft_part": records.DraftPart(8, 1, PARTS[1][1]),
    "draft_claim": records.DraftClaim(8, "trainer-1", _sha256("version 8"), AT),
    "node_report": records.NodeReport(
        node="gpu-1",
        at=AT,
        sequence=12,
        engine="ready",
        running_version=7,
        running_digest=_sha256("version 7"),
        applied_generation=3,
        num_running=4,
        interval_s=1.0,
        steps=(
            records.StepStats(1, 0, 10, 10, (), 0.25, 0.25, 0.025),
            records.StepStats(4, 3, 20, 150, (50, 15, 5), 0.75, 0.5, 0.0375),
        ),
        collecting=True,
        rows_written=1000,
        rows_dropped=0,
        rows_published=990,
        bytes_published=2_000_000,
        requests_opted_out=1,
        num_swaps=2,
        engine_starts=1,
        problems=("capture was off for 3 s: the ring was full",),
    ),
    "node_report_workloads": records.NodeReport(
        node="gpu-1",
        at=AT,
        sequence=13,
        engine="ready",
        running_version=7,
        running_digest=_sha256("version 7"),
        applied_generation=3,
        num_running=4,
        interval_s=1.0,
        steps=(records.StepStats(4, 3, 20, 150, (50, 15, 5), 0.75, 0.5, 0.0375),),
        collecting=True,
        rows_written=1100,
        rows_dropped=0,
        rows_published=1090,
        bytes_published=2_200_000,
        requests_opted_out=1,
        num_swaps=2,
        engine_starts=1,
        workloads=(records.WorkloadSteps("", 20, 30), records.WorkloadSteps("prompt-0123abcd", 60, 120)),
    ),
    "node_report_draft_failure": records.NodeReport(
        node="gpu-1",
        at=AT,
        sequence=14,
        engine="ready",
        running_version=7,
        running_digest=_sha256("version 7"),
        applied_generation=3,
        num_running=0,
        interval_s=1.0,
        steps=(),
        collecting=True,
        rows_written=1100,
        rows_dropped=0,
        rows_published=1100,
        bytes_published=2_210_000,
        requests_opted_out=1,
        num_swaps=2,
        engine_starts=1,
        problems=("part 1 of draft 8 is not on the bus",),
        draft_failure=records.DraftFailure(8, _sha256("version 8"), 3, "part 1 of draft 8 is not on the bus"),
    ),
    "trainer_report": records.TrainerReport(
        trainer="trainer-1",
        at=AT,
        sequence=4,
        state="training",
        serving_version=7,
        applied_generation=2,
        num_requests=120,
        num_tokens=24_000,
        num_heldout=12,
        new_tokens=4000,
        store_bytes=80_000_000,
        round=3,
        step=40,
        num_steps_total=100,
        loss=2.5,
        shadow=(records.ShadowScore("code", 12, 400, 700.0),),
        refused={"other target": 2},
    ),
    "trainer_report_pool": records.TrainerReport(
        trainer="trainer-1",
        at=AT,
        sequence=5,
        state="waiting",
        serving_version=8,
        applied_generation=6,
        num_requests=140,
        num_tokens=28_000,
        num_heldout=14,
        new_tokens=2000,
        store_bytes=90_000_000,
        round=4,
        step=100,
        num_steps_total=100,
        loss=2.25,
        pool_scoring=6,
        pool=(
            records.PoolScore(3, 8, 3, ()),
            records.PoolScore(7, 8, 3, (records.RequestScore(REQUEST_ID[:16], "code", 16, 40, 50.0, 75.5, ()),)),
        ),
        workloads=(records.StoredWorkload("code", 110, 1500), records.StoredWorkload("", 30, 500)),
    ),
    "desired_server": records.DesiredServer(
        node="gpu-1",
        generation=4,
        fencing_token=9,
        at=AT,
        draft_version=8,
        draft_digest=_sha256("version 8"),
        steps_table=((2, 3), (8, 1)),
        collect=True,
        sample_rate=0.5,
        reason="version 8 gains 0.21 tokens a step on 12 held-out requests",
    ),
    "desired_server_preferred": records.DesiredServer(
        node="gpu-1",
        generation=5,
        fencing_token=9,
        at=AT,
        draft_version=8,
        draft_digest=_sha256("version 8"),
        steps_table=((2, 3), (8, 1)),
        collect=True,
        sample_rate=0.0625,
        reason="collect 6% of requests, 100% of code, which did better before: the last candidate was refused",
        preferred=("code",),
        preferred_rate=1.0,
    ),
    "desired_trainer": records.DesiredTrainer(
        trainer="trainer-1",
        generation=5,
        fencing_token=9,
        at=AT,
        round=4,
        serving_version=8,
        serving_digest=_sha256("version 8"),
        reason="4,000 new tokens since round 3",
    ),
    "desired_trainer_pool": records.DesiredTrainer(
        trainer="trainer-1",
        generation=6,
        fencing_token=9,
        at=AT,
        round=4,
        serving_version=8,
        serving_digest=_sha256("version 8"),
        reason="score earlier drafts: traffic has shifted",
        pool=((3, _sha256("version 3")), (7, _sha256("version 7"))),
        pool_scoring=6,
        pool_requests=16,
    ),
    "decision": records.Decision(
        sequence=31,
        fencing_token=9,
        controller="controller-1",
        at=AT,
        event={"type": "candidate_published", "version": 8, "scores": [[62.0, 75.5]], "base": None},
        instructions=({"type": "set_draft", "node": "gpu-1", "version": 8},),
        reason="version 8 gains 0.21 tokens a step on 12 held-out requests",
        numbers={"gain": 0.21, "lower_bound": 0.1},
    ),
    "operator_request": records.OperatorRequest(
        request_id="0123456789abcdef0123456789abcdef",
        at=AT,
        operator="alice",
        action="pin",
        version=7,
        digest=_sha256("version 7"),
        reason="version 8 is slow on German",
    ),
    "forget_samples": records.ForgetSamples(REQUEST_ID, AT, "alice", "the customer asked for it"),
    "samples_forgotten": records.SamplesForgotten(REQUEST_ID, "trainer-1", AT + 1.0, 2, 3),
    "target_rows": records.TargetRows(SPEC, "embed_tokens", 2, 1, 100, 4, bytes(range(8))),
}
