"""Held-out scores of the serving draft between rounds: the newest of each trainer, taken together.

Each captured request goes to one trainer, so trainers score different requests, a few each. Together they say more
than the one that reported last. A request counts once, wherever and however long it is:

    accept length = sum over trainers and workloads of requests * (tokens / chain starts) / sum of requests

A trainer has no say about another draft than the one it scored, nor once it has been silent for lost_after_s.
"""

import math
from dataclasses import dataclass

from tide_daemon.policy.events import NO_DRAFT, ShadowScored, TrainerReported
from tide_daemon.policy.settings import PolicySettings

_MAX_TRAINERS = 256
"""Beyond, the one that has said nothing for longest is forgotten."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """What one trainer last said, and when: `version` on its newest held-out requests."""

    at: float
    version: int
    scores: tuple[ShadowScored, ...]


class ShadowScores:
    """Changed by `take` only, called by the controller."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._by_trainer: dict[str, _Scored] = {}

    def take(self, event: TrainerReported, at: float) -> None:
        """Take in a report at the controller's time `at`; one without scores changes nothing."""
        scores = tuple(score for score in event.shadow if score.num_positions > 0 and score.num_requests > 0)
        if scores and event.serving_version != NO_DRAFT:
            # Taken out first, so that the dict is ordered by time.
            self._by_trainer.pop(event.trainer, None)
            self._by_trainer[event.trainer] = _Scored(at, event.serving_version, scores)
            if len(self._by_trainer) > _MAX_TRAINERS:
                del self._by_trainer[next(iter(self._by_trainer))]

    def accept_length(self, version: int, at: float) -> float | None:
        """The draft's held-out accept length, at least 1; None with fewer chain starts than the gate would ask for."""
        voting = [
            score
            for scored in self._by_trainer.values()
            if scored.version == version and at - scored.at <= self._settings.lost_after_s
            for score in scored.scores
        ]
        if sum(score.num_positions for score in voting) < self._settings.gate_min_positions:
            return None
        lengths = math.fsum(score.num_requests * score.num_tokens / score.num_positions for score in voting)
        return max(1.0, lengths / sum(score.num_requests for score in voting))
