"""Requests of clients over time: how many failed, and how much longer the others took. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        started, ended: monotonic seconds.
        error: "" for a complete answer.
        prompt: which prompt it was.
        text: the answer.
    """

    started: float
    ended: float
    streamed: bool
    prompt: int
    text: str
    error: str = ""


def within(requests: Sequence[Request], since: float, until: float) -> list[Request]:
    """Those that were running at any moment of a span."""
    return [request for request in requests if request.ended >= since and request.started <= until]


def errors(requests: Sequence[Request]) -> list[Request]:
    """Those that failed."""
    return [request for request in requests if request.error]


def extra(before: Sequence[Request], during: Sequence[Request]) -> dict[str, float] | None:
    """Median and 95th percentile of the answered ones' seconds, less those of `before`; None without both."""
    old, new = _seconds(before), _seconds(during)
    if not old or not new:
        return None
    return {
        "median": statistics.median(new) - statistics.median(old),
        "p95": _quantile(new, 0.95) - _quantile(old, 0.95),
    }


def other_answers(requests: Sequence[Request], known: dict[int, str]) -> list[Request]:
    """Answers that differ from the first one to the same prompt; `known` keeps the first ones."""
    return [
        request
        for request in requests
        if not request.error and known.setdefault(request.prompt, request.text) != request.text
    ]


def _seconds(requests: Sequence[Request]) -> list[float]:
    return sorted(request.ended - request.started for request in requests if not request.error)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
