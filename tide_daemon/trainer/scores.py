"""Scores of held-out requests as the worker sends them, and what is made of them. Plain numbers, no torch."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tide_daemon.wire.records import PositionScore, RequestScore, ShadowScore

MAX_BY_POSITION = 1024
"""Requests, the newest, that carry their buckets of positions: enough for any verdict, and bounded on the wire."""


@dataclass(frozen=True, slots=True)
class HeldOutBucket:
    """The part of a HeldOutScore that lies in one bucket of positions.BUCKETS, which begins at `first_index`."""

    first_index: int
    num_positions: int
    tokens: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """One request under one or more drafts, scored by the same code on the same rows.

    Attributes:
        request: first 16 hex digits of the request id.
        first_position: where the scored span starts.
        num_positions: number of chain starts.
        tokens: for each draft the sum of accept lengths; num_positions for plain decoding.
        by_position: the same by place in the response, buckets without a start left out.
    """

    request: str
    workload: str
    first_position: int
    num_positions: int
    tokens: tuple[float, ...]
    by_position: tuple[HeldOutBucket, ...] = ()


def to_maps(scores: Iterable[HeldOutScore]) -> list[dict[str, Any]]:
    """Plain values for the pipe."""
    return [dataclasses.asdict(score) for score in scores]


def from_maps(values: Iterable[dict[str, Any]]) -> list[HeldOutScore]:
    """Inverse of `to_maps`."""
    return [
        HeldOutScore(
            **{
                **value,
                "tokens": tuple(value["tokens"]),
                "by_position": tuple(
                    HeldOutBucket(**{**bucket, "tokens": tuple(bucket["tokens"])})
                    for bucket in value.get("by_position", ())
                ),
            }
        )
        for value in values
    ]


def by_request(scores: Iterable[HeldOutScore]) -> list[HeldOutScore]:
    """One score a request: a request with gaps is several samples, and they are no independent evidence."""
    merged: dict[str, HeldOutScore] = {}
    for score in scores:
        held = merged.get(score.request)
        merged[score.request] = score if held is None else _added(held, score)
    return list(merged.values())


def _added(one: HeldOutScore, other: HeldOutScore) -> HeldOutScore:
    buckets = {bucket.first_index: bucket for bucket in one.by_position}
    for bucket in other.by_position:
        held = buckets.get(bucket.first_index)
        buckets[bucket.first_index] = (
            bucket
            if held is None
            else HeldOutBucket(
                bucket.first_index,
                held.num_positions + bucket.num_positions,
                tuple(a + b for a, b in zip(held.tokens, bucket.tokens, strict=True)),
            )
        )
    return HeldOutScore(
        one.request,
        one.workload,
        min(one.first_position, other.first_position),
        one.num_positions + other.num_positions,
        tuple(a + b for a, b in zip(one.tokens, other.tokens, strict=True)),
        tuple(buckets[first_index] for first_index in sorted(buckets)),
    )


def paired(scores: Iterable[HeldOutScore], candidate: int = 1) -> tuple[RequestScore, ...]:
    """Scores of the serving draft, which is the first, and of the draft at index `candidate`, newest request first."""
    return tuple(
        RequestScore(
            score.request,
            score.workload,
            score.first_position,
            score.num_positions,
            score.tokens[0],
            score.tokens[candidate],
            tuple(
                PositionScore(bucket.first_index, bucket.num_positions, bucket.tokens[0], bucket.tokens[candidate])
                for bucket in (score.by_position if index < MAX_BY_POSITION else ())
            ),
        )
        for index, score in enumerate(scores)
    )


def kept(scores: Iterable[RequestScore]) -> list[dict[str, Any]]:
    """Plain values for a round's scores.json."""
    return [dataclasses.asdict(score) for score in scores]


def from_kept(values: Iterable[dict[str, Any]]) -> tuple[RequestScore, ...]:
    """Inverse of `kept`; files without buckets of positions are read too."""
    return tuple(
        RequestScore(
            **{**value, "by_position": tuple(PositionScore(**bucket) for bucket in value.get("by_position", ()))}
        )
        for value in values
    )


def by_workload(scores: Iterable[HeldOutScore]) -> tuple[ShadowScore, ...]:
    """Scores of one draft, summed by workload, in order of its name."""
    groups: dict[str, list[HeldOutScore]] = {}
    for score in scores:
        groups.setdefault(score.workload, []).append(score)
    return tuple(
        ShadowScore(workload, len(group), sum(s.num_positions for s in group), sum(s.tokens[0] for s in group))
        for workload, group in sorted(groups.items())
    )


def accept_lengths(scores: Sequence[RequestScore]) -> tuple[float, float]:
    """Mean accept length of the serving draft and of the candidate over all scored positions, 0.0 without any."""
    positions = sum(score.num_positions for score in scores)
    serving = sum(score.serving_tokens for score in scores)
    candidate = sum(score.candidate_tokens for score in scores)
    return (serving / positions, candidate / positions) if positions else (0.0, 0.0)
