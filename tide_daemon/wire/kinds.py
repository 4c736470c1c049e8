"""Every message kind: its code on the wire, its size limit, and what each field may hold.

This table is the contract. schemas/messages/*.json is written from it, peers refuse what it refuses,
and encoding checks against it too, so that nothing is published that a peer would not take.
A code is never used again for something else.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import inf, prod

from tide_daemon.wire import records
from tide_daemon.wire.containers import Array, Json, Map, Optional, Tuple
from tide_daemon.wire.fields import Bin, Bool, Choice, Field, FieldError, Float, Int, Label, Str, Text
from tide_daemon.wire.structs import Struct

MIB = 1 << 20
MAX_BLOB_BYTES = 32 * MIB  # JetStream stores no message of 32 MiB or more
MAX_SMALL_BYTES = MIB
MAX_TINY_BYTES = 128 << 10

TOKEN_PATTERN = "[A-Za-z0-9_-]{1,64}"
"""One token of a subject: names of nodes, trainers and controllers."""
MODEL_PATTERN = "[a-z0-9-]{1,64}"
SHA256_PATTERN = "[0-9a-f]{64}"
OPTIONAL_SHA256_PATTERN = "([0-9a-f]{64})?"
REQUEST_ID_PATTERN = "[0-9a-f]{32}"
TENSOR_NAME_PATTERN = "[A-Za-z0-9_.-]{1,200}"

MAX_VERSION = 99_999_999  # eight digits in a subject
MAX_VOCAB = 16_000_000
MAX_PARTS = 4096
MAX_ROWS = 65_536
MAX_TOPK = 1024
MAX_STEPS = 64
MAX_LAYER = 65_535
MAX_BATCH = 1_000_000
MAX_POOL = 8
MAX_POOL_REQUESTS = 128

CODECS = ("bf16", "bf16-planes", "int8-block64")

_token = Str(64, TOKEN_PATTERN)
_sha256 = Str(64, SHA256_PATTERN)
_optional_sha256 = Str(64, OPTIONAL_SHA256_PATTERN)
_workload = Label(64)
_count = Int()
_seconds = Float()
_version = Int(1, MAX_VERSION)
_version_or_none = Int(records.NO_DRAFT, MAX_VERSION)
_reason = Text(4096)
_problems = Array(Text(2000), 100, cut=True)


def _check_spec(spec: records.TargetSpec) -> None:
    layers = spec.aux_layer_ids
    if not layers or any(a >= b for a, b in pairwise(layers)):
        raise FieldError(f"aux_layer_ids: must be ascending and not empty, not {list(layers)}")


TARGET_SPEC = Struct(
    records.TargetSpec,
    {
        "model": Str(64, MODEL_PATTERN),
        "target_fingerprint": _sha256,
        "vocab_hash": _sha256,
        "aux_layer_ids": Array(Int(0, MAX_LAYER), 64),
        "hidden_size": Int(1, 65_536),
        "vocab_size": Int(1, MAX_VOCAB),
        "norm_applied": Bool(),
    },
    _check_spec,
)

HIDDEN_CHUNK_FIELDS: dict[str, Field] = {
    "spec": TARGET_SPEC,
    "node": _token,
    "request_id": Str(32, REQUEST_ID_PATTERN),
    "workload": _workload,
    "chunk_index": Int(0, 2**31 - 1),
    "last": Bool(),
    "incomplete": Bool(),
    "first_position": Int(0, 2**31 - 1),
    "captured_at": _seconds,
    "draft_version": _version_or_none,
    "codec": Choice(CODECS),
    "token_ids": Bin(4 * MAX_ROWS, "NDArray[np.int32]"),
    "loss_mask": Bin(MAX_ROWS, "NDArray[np.uint8]"),
    "next_token_id": Int(-1, MAX_VOCAB - 1),
    "topk_ids": Bin(MAX_BLOB_BYTES, "NDArray[np.int32]"),
    "topk_logprobs": Bin(MAX_BLOB_BYTES, "NDArray[np.float16]"),
    "aux": Bin(MAX_BLOB_BYTES, "NDArray[np.uint16]"),
    "withheld": Bool(),
}
"""HiddenChunk's entries; its tensors are little-endian row-major bytes, made and checked in chunk.py."""

HIDDEN_CHUNK_SIZES: dict[str, Field] = {"num_rows": Int(0, MAX_ROWS), "num_topk": Int(0, MAX_TOPK)}
"""Two entries of HiddenChunk's map that are shapes in the record: rows, and log-probabilities a row."""


def _check_tensor(tensor: records.TensorEntry) -> None:
    if prod(tensor.shape) > 2**40:
        raise FieldError(f"shape: {list(tensor.shape)} has more than 2**40 elements")


TENSOR_ENTRY = Struct(
    records.TensorEntry,
    {
        "name": Str(200, TENSOR_NAME_PATTERN),
        "dtype": Str(16, "[A-Z][A-Z0-9_]{0,15}"),
        "shape": Array(Int(0, 2**40), 8),
        "digest": _sha256,
    },
    _check_tensor,
)

PART_ENTRY = Struct(
    records.PartEntry,
    {"index": Int(0, MAX_PARTS - 1), "num_bytes": Int(1, MAX_BLOB_BYTES), "digest": _sha256},
)

POSITION_SCORE = Struct(
    records.PositionScore,
    {
        "first_index": Int(0, 2**31 - 1),
        "num_positions": _count,
        "serving_tokens": Float(),
        "candidate_tokens": Float(),
    },
)

REQUEST_SCORE = Struct(
    records.RequestScore,
    {
        "request": Str(16, "[0-9a-f]{16}"),
        "workload": _workload,
        "first_position": Int(0, 2**31 - 1),
        "num_positions": _count,
        "serving_tokens": Float(),
        "candidate_tokens": Float(),
        "by_position": Array(POSITION_SCORE, 8),
    },
)


def _check_manifest(manifest: records.DraftManifest) -> None:
    if (manifest.base_version is None) != (manifest.base_digest == ""):
        raise FieldError("base_version and base_digest: both or neither must be given")
    if [part.index for part in manifest.parts] != list(range(len(manifest.parts))):
        raise FieldError("parts: must be listed in order, 0 first, none missing")
    if len({tensor.name for tensor in manifest.tensors}) != len(manifest.tensors):
        raise FieldError("tensors: a name occurs twice")


DRAFT_MANIFEST = Struct(
    records.DraftManifest,
    {
        "spec": TARGET_SPEC,
        "version": _version,
        "parent_version": _version_or_none,
        "base_version": Optional(_version),
        "base_digest": _optional_sha256,
        "content_digest": _sha256,
        "draft_vocab_size": Int(1, MAX_VOCAB),
        "vocab_map_digest": _sha256,
        "config_json": Str(65_536),
        "tensors": Array(TENSOR_ENTRY, 1024),
        "parts": Array(PART_ENTRY, MAX_PARTS),
        "trainer": _token,
        "created_at": _seconds,
        "num_train_tokens": _count,
        "oldest_sample_at": _seconds,
        "newest_sample_at": _seconds,
        "num_steps": Int(1, MAX_STEPS),
        "scores": Array(REQUEST_SCORE, 4096),
    },
    _check_manifest,
)

DRAFT_PART = Struct(
    records.DraftPart,
    {"version": _version, "index": Int(0, MAX_PARTS - 1), "data": Bin(MAX_BLOB_BYTES)},
)

DRAFT_CLAIM = Struct(
    records.DraftClaim,
    {"version": _version, "trainer": _token, "content_digest": _sha256, "claimed_at": _seconds},
)


def _check_step_stats(stats: records.StepStats) -> None:
    if len(stats.accepted_at) != stats.num_steps:
        raise FieldError(f"accepted_at: must have num_steps = {stats.num_steps} items, not {len(stats.accepted_at)}")


STEP_STATS = Struct(
    records.StepStats,
    {
        "batch_size": Int(1, MAX_BATCH),
        "num_steps": Int(0, MAX_STEPS),
        "num_verifies": _count,
        "num_tokens": _count,
        "accepted_at": Array(_count, MAX_STEPS),
        "step_s": _seconds,
        "target_s": _seconds,
        "median_step_s": _seconds,
    },
    _check_step_stats,
)

WORKLOAD_STEPS = Struct(records.WorkloadSteps, {"workload": _workload, "num_chains": _count, "num_tokens": _count})

DRAFT_FAILURE = Struct(
    records.DraftFailure, {"version": _version, "digest": _sha256, "num_tries": _count, "reason": Text(1000)}
)

NODE_REPORT = Struct(
    records.NodeReport,
    {
        "node": _token,
        "at": _seconds,
        "sequence": _count,
        "engine": Choice(("starting", "ready", "capture_off", "down")),
        "running_version": _version_or_none,
        "running_digest": _optional_sha256,
        "applied_generation": _count,
        "num_running": _count,
        "interval_s": _seconds,
        "steps": Array(STEP_STATS, 4096),
        "collecting": Bool(),
        "rows_written": _count,
        "rows_dropped": _count,
        "rows_published": _count,
        "bytes_published": _count,
        "requests_opted_out": _count,
        "num_swaps": _count,
        "engine_starts": _count,
        "problems": _problems,
        "workloads": Array(WORKLOAD_STEPS, 64),
        "draft_failure": Optional(DRAFT_FAILURE),
    },
)

SHADOW_SCORE = Struct(
    records.ShadowScore,
    {"workload": _workload, "num_requests": _count, "num_positions": _count, "num_tokens": Float()},
)

STORED_WORKLOAD = Struct(records.StoredWorkload, {"workload": _workload, "num_requests": _count, "new_tokens": _count})

POOL_SCORE = Struct(
    records.PoolScore,
    {
        "version": _version,
        "serving_version": _version_or_none,
        "num_steps": Int(1, MAX_STEPS),
        "scores": Array(REQUEST_SCORE, MAX_POOL_REQUESTS),
    },
)

TRAINER_REPORT = Struct(
    records.TrainerReport,
    {
        "trainer": _token,
        "at": _seconds,
        "sequence": _count,
        "state": Choice(("waiting", "training", "scoring", "publishing", "failed")),
        "serving_version": _version_or_none,
        "applied_generation": _count,
        "num_requests": _count,
        "num_tokens": _count,
        "num_heldout": _count,
        "new_tokens": _count,
        "store_bytes": _count,
        "round": _count,
        "step": _count,
        "num_steps_total": _count,
        "loss": Float(-inf),
        "shadow": Array(SHADOW_SCORE, 1024),
        "refused": Map(_count, 256),
        "problems": _problems,
        "pool_scoring": _count,
        "pool": Array(POOL_SCORE, MAX_POOL),
        "workloads": Array(STORED_WORKLOAD, 64),
    },
)


def _check_desired_server(desired: records.DesiredServer) -> None:
    if (desired.draft_version == records.NO_DRAFT) != (desired.draft_digest == ""):
        raise FieldError("draft_digest: must be empty for no draft, and only then")
    sizes = [size for size, _ in desired.steps_table]
    if any(a >= b for a, b in pairwise(sizes)):
        raise FieldError(f"steps_table: batch sizes must be ascending, not {sizes}")


DESIRED_SERVER = Struct(
    records.DesiredServer,
    {
        "node": _token,
        "generation": _count,
        "fencing_token": _count,
        "at": _seconds,
        "draft_version": _version_or_none,
        "draft_digest": _optional_sha256,
        "steps_table": Array(Tuple((Int(1, MAX_BATCH), Int(0, MAX_STEPS))), 1024),
        "collect": Bool(),
        "sample_rate": Float(0.0, 1.0),
        "reason": _reason,
        "preferred": Array(_workload, 8),
        "preferred_rate": Float(0.0, 1.0),
    },
    _check_desired_server,
)


def _check_desired_trainer(desired: records.DesiredTrainer) -> None:
    if (desired.serving_version == records.NO_DRAFT) != (desired.serving_digest == ""):
        raise FieldError("serving_digest: must be empty for no draft, and only then")


DESIRED_TRAINER = Struct(
    records.DesiredTrainer,
    {
        "trainer": _token,
        "generation": _count,
        "fencing_token": _count,
        "at": _seconds,
        "round": _count,
        "serving_version": _version_or_none,
        "serving_digest": _optional_sha256,
        "reason": _reason,
        "pool": Array(Tuple((_version, _sha256)), MAX_POOL),
        "pool_scoring": _count,
        "pool_requests": Int(0, MAX_POOL_REQUESTS),
    },
    _check_desired_trainer,
)


DECISION = Struct(
    records.Decision,
    {
        "sequence": _count,
        "fencing_token": _count,
        "controller": _token,
        "at": _seconds,
        "event": Map(Json(), 256),
        "instructions": Array(Map(Json(), 256), 1024),
        "reason": _reason,
        "numbers": Map(Float(-inf), 1024),
    },
)


def _check_target_rows(rows: records.TargetRows) -> None:
    if rows.first_row + rows.num_rows > rows.total_rows:
        raise FieldError(f"num_rows: rows {rows.first_row} + {rows.num_rows} are over total_rows {rows.total_rows}")
    expected = rows.num_rows * rows.width * 2
    if len(rows.data) != expected:
        raise FieldError(f"data: must have num_rows * width * 2 = {expected} bytes, not {len(rows.data)}")


TARGET_ROWS = Struct(
    records.TargetRows,
    {
        "spec": TARGET_SPEC,
        "name": Choice(("config", "embed_tokens", "last_layer", "lm_head", "norm")),
        "first_row": Int(0, MAX_VOCAB - 1),
        "num_rows": Int(1, MAX_VOCAB),
        "total_rows": Int(1, MAX_VOCAB),
        "width": Int(1, 65_536),
        "data": Bin(MAX_BLOB_BYTES),
    },
    _check_target_rows,
)


OPERATOR_ACTIONS = ("forget", "pin", "roll_back", "unpin")


def _check_operator_request(request: records.OperatorRequest) -> None:
    if (request.version == records.NO_DRAFT) != (request.digest == ""):
        raise FieldError("version and digest: both or neither must be given")
    if request.action == "forget" and request.version == records.NO_DRAFT:
        raise FieldError("version: must be given to forget it")


OPERATOR_REQUEST = Struct(
    records.OperatorRequest,
    {
        "request_id": Str(32, REQUEST_ID_PATTERN),
        "at": _seconds,
        "operator": _token,
        "action": Choice(OPERATOR_ACTIONS),
        "version": _version_or_none,
        "digest": _optional_sha256,
        "reason": _reason,
    },
    _check_operator_request,
)


FORGET_SAMPLES = Struct(
    records.ForgetSamples,
    {"request_id": Str(32, REQUEST_ID_PATTERN), "at": _seconds, "operator": _token, "reason": _reason},
)

SAMPLES_FORGOTTEN = Struct(
    records.SamplesForgotten,
    {
        "request_id": Str(32, REQUEST_ID_PATTERN),
        "trainer": _token,
        "at": _seconds,
        "num_stored": _count,
        "num_streamed": _count,
    },
)


@dataclass(frozen=True)
class Kind:
    """One message kind.

    Attributes:
        code: the envelope's kind byte.
        record: its dataclass.
        max_bytes: largest decompressed body that is decoded unless the caller allows less.
        struct: its fields; None for HiddenChunk, whose conversion needs numpy and lives in chunk.py.
    """

    code: int
    record: type
    max_bytes: int
    struct: Struct | None

    @property
    def name(self) -> str:
        """The record's name."""
        return self.record.__name__


KINDS = (
    Kind(1, records.HiddenChunk, MAX_BLOB_BYTES, None),
    Kind(2, records.DraftManifest, 2 * MAX_SMALL_BYTES, DRAFT_MANIFEST),
    Kind(3, records.DraftPart, MAX_BLOB_BYTES, DRAFT_PART),
    Kind(4, records.DraftClaim, MAX_TINY_BYTES, DRAFT_CLAIM),
    Kind(5, records.NodeReport, MAX_SMALL_BYTES, NODE_REPORT),
    Kind(6, records.TrainerReport, MAX_SMALL_BYTES, TRAINER_REPORT),
    Kind(7, records.DesiredServer, MAX_TINY_BYTES, DESIRED_SERVER),
    Kind(8, records.DesiredTrainer, MAX_TINY_BYTES, DESIRED_TRAINER),
    Kind(9, records.Decision, 4 * MAX_SMALL_BYTES, DECISION),
    Kind(10, records.TargetRows, MAX_BLOB_BYTES, TARGET_ROWS),
    Kind(11, records.OperatorRequest, MAX_TINY_BYTES, OPERATOR_REQUEST),
    Kind(12, records.ForgetSamples, MAX_TINY_BYTES, FORGET_SAMPLES),
    Kind(13, records.SamplesForgotten, MAX_TINY_BYTES, SAMPLES_FORGOTTEN),
)
KIND_BY_CODE = {kind.code: kind for kind in KINDS}
KIND_BY_NAME = {kind.name: kind for kind in KINDS}
KIND_BY_RECORD = {kind.record: kind for kind in KINDS}
