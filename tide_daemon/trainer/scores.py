"""Scores of held-out requests as the worker sends them, and what is made of them. Plain numbers, no torch."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tide_daemon.wire.records import RequestScore, ShadowScore


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """One request under one or more drafts, scored by the same code on the same rows.

    Attributes:
        request: first 16 hex digits of the request id.
        first_position: where the scored span starts.
        num_positions: number of chain starts.
        tokens: for each draft the sum of accept lengths; num_positions for plain decoding.
    """

    request: str
    workload: str
    first_position: int
    num_positions: int
    tokens: tuple[float, ...]


def to_maps(scores: Iterable[HeldOutScore]) -> list[dict[str, Any]]:
    """Plain values for the pipe."""
    return [dataclasses.asdict(score) for score in scores]


def from_maps(values: Iterable[dict[str, Any]]) -> list[HeldOutScore]:
    """Inverse of `to_maps`."""
    return [HeldOutScore(**{**value, "tokens": tuple(value["tokens"])}) for value in values]


def by_request(scores: Iterable[HeldOutScore]) -> list[HeldOutScore]:
    """One score a request: a request with gaps is several samples, and they are no independent evidence."""
    merged: dict[str, HeldOutScore] = {}
    for score in scores:
        held = merged.get(score.request)
        merged[score.request] = (
            score
            if held is None
            else HeldOutScore(
                score.request,
                held.workload,
                min(held.first_position, score.first_position),
                held.num_positions + score.num_positions,
                tuple(a + b for a, b in zip(held.tokens, score.tokens, strict=True)),
            )
        )
    return list(merged.values())


def paired(scores: Iterable[HeldOutScore]) -> tuple[RequestScore, ...]:
    """Scores of (serving, candidate) as a manifest carries them."""
    return tuple(
        RequestScore(score.request, score.workload, score.first_position, score.num_positions, *score.tokens)
        for score in scores
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
