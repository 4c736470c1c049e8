"""Wire records to the policy's events and instructions to wire records. Plain translation, nothing decided.

The policy does not know the wire; this is where their fields meet.
"""

from tide_daemon.policy.events import (
    CandidatePublished,
    DraftFailed,
    Event,
    OperatorRequested,
    PoolScored,
    PositionScored,
    RequestScored,
    ServerFound,
    ServerReported,
    ShadowScored,
    StepCount,
    TrainerFound,
    TrainerReported,
    WorkloadServed,
    WorkloadStored,
    event_name,
)
from tide_daemon.policy.instructions import Answered, FleetMoved, Instruction, Judged, SetServer, SetTrainer
from tide_daemon.wire.records import (
    DesiredServer,
    DesiredTrainer,
    DraftManifest,
    NodeReport,
    OperatorRequest,
    PoolScore,
    Record,
    RequestScore,
    TrainerReport,
)

_MAX_REASON = 4096


def event_of_record(record: Record, at: float) -> Event | None:
    """The event that a record from the bus means at the controller's time `at`; None if it means none."""
    match record:
        case NodeReport():
            steps = tuple(
                StepCount(
                    item.batch_size,
                    item.num_steps,
                    item.num_verifies,
                    item.num_tokens,
                    item.accepted_at,
                    item.step_s,
                    item.target_s,
                    item.median_step_s,
                )
                for item in record.steps
            )
            failure = record.draft_failure
            return ServerReported(
                at,
                record.node,
                record.sequence,
                record.engine,
                record.running_version,
                record.running_digest,
                record.applied_generation,
                record.interval_s,
                steps,
                tuple(WorkloadServed(item.workload, item.num_chains, item.num_tokens) for item in record.workloads),
                None
                if failure is None
                else DraftFailed(failure.version, failure.digest, failure.num_tries, failure.reason),
            )
        case TrainerReport():
            shadow = tuple(
                ShadowScored(item.workload, item.num_requests, item.num_positions, item.num_tokens)
                for item in record.shadow
            )
            return TrainerReported(
                at,
                record.trainer,
                record.sequence,
                record.state,
                record.serving_version,
                record.num_tokens,
                record.new_tokens,
                record.round,
                shadow,
                record.pool_scoring,
                tuple(_pool_scored(item) for item in record.pool),
                tuple(WorkloadStored(item.workload, item.num_requests, item.new_tokens) for item in record.workloads),
            )
        case DraftManifest():
            scores = tuple(_scored(item) for item in record.scores)
            return CandidatePublished(
                at,
                record.version,
                record.content_digest,
                record.parent_version,
                record.trainer,
                record.num_train_tokens,
                record.num_steps,
                scores,
            )
        case OperatorRequest():
            return OperatorRequested(
                at,
                record.request_id,
                record.at,
                record.operator,
                record.action,
                record.version,
                record.digest,
                record.reason,
            )
    return None


def _scored(score: RequestScore) -> RequestScored:
    by_position = tuple(
        PositionScored(item.first_index, item.num_positions, item.serving_tokens, item.candidate_tokens)
        for item in score.by_position
    )
    return RequestScored(
        score.request,
        score.workload,
        score.num_positions,
        score.serving_tokens,
        score.candidate_tokens,
        by_position,
    )


def _pool_scored(item: PoolScore) -> PoolScored:
    scores = tuple(_scored(score) for score in item.scores)
    return PoolScored(item.version, item.serving_version, item.num_steps, scores)


def event_of_desired(record: DesiredServer | DesiredTrainer, at: float) -> ServerFound | TrainerFound:
    """The event that tells a new leader what an earlier one desired."""
    match record:
        case DesiredServer():
            return ServerFound(
                at,
                record.node,
                record.generation,
                record.draft_version,
                record.draft_digest,
                record.steps_table,
                record.collect,
                record.sample_rate,
                record.preferred,
                record.preferred_rate,
            )
        case DesiredTrainer():
            return TrainerFound(
                at,
                record.trainer,
                record.generation,
                record.round,
                record.serving_version,
                record.serving_digest,
                record.pool,
                record.pool_scoring,
            )


def desired_record(instruction: Instruction, fencing_token: int, at: float) -> DesiredServer | DesiredTrainer | None:
    """The desired state that an instruction asks for; None for those that go to the journal only."""
    match instruction:
        case SetServer():
            return DesiredServer(
                instruction.node,
                instruction.generation,
                fencing_token,
                at,
                instruction.draft_version,
                instruction.draft_digest,
                instruction.steps_table,
                instruction.collect,
                instruction.sample_rate,
                instruction.reason[:_MAX_REASON],
                instruction.preferred,
                instruction.preferred_rate,
            )
        case SetTrainer():
            return DesiredTrainer(
                instruction.trainer,
                instruction.generation,
                fencing_token,
                at,
                instruction.round,
                instruction.serving_version,
                instruction.serving_digest,
                instruction.reason[:_MAX_REASON],
                instruction.pool,
                instruction.pool_scoring,
                instruction.pool_requests,
            )
        case Judged() | Answered() | FleetMoved():
            return None


def summary(event: Event, instructions: list[Instruction]) -> tuple[str, dict[str, float]]:
    """(one sentence, numbers) for an event and its instructions; the numbers are the first instruction's."""
    if not instructions:
        return event_name(event), {}
    sentences = []
    for instruction in instructions:
        match instruction:
            case SetServer():
                sentences.append(f"{instruction.node}: {instruction.reason}")
            case SetTrainer():
                sentences.append(f"{instruction.trainer}: {instruction.reason}")
            case Judged():
                sentences.append(f"version {instruction.version}, {instruction.verdict}: {instruction.reason}")
            case Answered():
                sentences.append(instruction.reason)
            case FleetMoved():
                # A verdict's or an answer's own sentence says the same as the move that follows from it.
                if not any(isinstance(other, Judged | Answered) for other in instructions):
                    sentences.append(instruction.reason)
    return "; ".join(sentences)[:_MAX_REASON], instructions[0].numbers
