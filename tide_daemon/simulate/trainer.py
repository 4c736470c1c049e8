"""A modelled trainer: it takes its share of what is captured, trains when asked, scores and publishes.

As a real one does (roles/trainer_rounds.py): the round takes what was stored since the last one began,
the candidate is scored against the draft that serves when training is complete, and the line of
training goes on from its own last candidate unless that was worse or was rolled back. Earlier drafts are scored
when asked for, on requests that came since.
"""

import math
import random
from collections.abc import Mapping

from tide_daemon.policy.events import NO_DRAFT, CandidatePublished, PoolScored, ShadowScored, TrainerReported
from tide_daemon.policy.instructions import SetTrainer
from tide_daemon.simulate.learning import Drafts, score_requests, shadow_scores
from tide_daemon.simulate.scenario import Scenario, Trainers
from tide_daemon.simulate.tally import Tally


class ModelledTrainer:
    """One trainer. Changed by `pull`, `receive`, `complete_round`, `come_back` and `report`.

    Attributes:
        reachable: it is there; while it is not, its round stands still.
    """

    def __init__(self, name: str, group: Trainers, scenario: Scenario, drafts: Drafts, tally: Tally) -> None:
        self.name = name
        self.group = group
        self.reachable = True
        self._scenario = scenario
        self._learning = scenario.learning
        self._drafts = drafts
        self._tally = tally
        self._draws = random.Random(f"{scenario.seed}/{name}/draws")
        # Of its own, so that rounds draw the same whether or not earlier drafts are scored.
        self._pool_draws = random.Random(f"{scenario.seed}/{name}/pool")
        self._seen = dict(tally.captured_tokens)
        self._new: dict[str, float] = {}
        self._heldout: dict[str, float] = {}
        self._num_tokens = 0.0
        self._round = 0
        self._generation = 0
        self._training: dict[str, float] | None = None
        self._done_at = math.inf
        self._serving = NO_DRAFT
        self._line: tuple[int, int] | None = None
        self._sequence = 0
        self._pool: SetTrainer | None = None
        self._pool_requests: dict[str, float] = {}
        self._pool_ready_at = math.inf
        self._pool_scores: tuple[PoolScored, ...] | None = None

    def pull(self, share: float) -> None:
        """Take a share of what was captured since the last time."""
        for name, total in self._tally.captured_tokens.items():
            came = (total - self._seen[name]) * share
            self._seen[name] = total
            if came > 0.0:
                self._new[name] = self._new.get(name, 0.0) + came * (1.0 - self._learning.heldout_share)
                requests = came * self._learning.heldout_share / self._learning.response_tokens
                self._heldout[name] = self._heldout.get(name, 0.0) + requests
                if self._pool is not None:
                    finished = came / self._learning.response_tokens
                    self._pool_requests[name] = self._pool_requests.get(name, 0.0) + finished
                self._num_tokens += came
        _bound(self._new, self._learning.max_round_tokens)
        _bound(self._heldout, float(self._learning.heldout_requests))

    def come_back(self, away_s: float) -> float | None:
        """It was away for so long; the second at which its round, gone on where it stood, will be over.

        What was captured meanwhile went to others or ran out of the stream.
        """
        self._seen = dict(self._tally.captured_tokens)
        if self._training is None:
            return None
        self._done_at += away_s
        return self._done_at

    def receive(self, desired: SetTrainer, at: float) -> float | None:
        """Take in desired state; the second at which a round that it begins will be over, None without one."""
        if desired.generation <= self._generation:
            return None
        self._generation, self._serving = desired.generation, desired.serving_version
        if desired.pool_scoring != (0 if self._pool is None else self._pool.pool_scoring):
            self._pool = desired if desired.pool_scoring else None
            self._pool_requests, self._pool_ready_at, self._pool_scores = {}, math.inf, None
        if desired.round <= self._round or self._training is not None:
            return None
        self._round, self._training, self._new = desired.round, self._new, {}
        total = sum(self._training.values())
        self._done_at = at + self.group.round_s + total / self.group.tokens_per_s
        self._tally.counts.rounds += 1
        return self._done_at

    def complete_round(self, at: float) -> CandidatePublished | None:
        """The candidate, if the round is over by now."""
        if self._training is None or at < self._done_at or not self.reachable:
            return None
        tokens, self._training, self._done_at = self._training, None, math.inf
        self._tally.counts.candidates += 1
        live_share = 1.0
        poison = self._scenario.poison[self._tally.counts.poisoned :]
        if poison and at >= poison[0].after_s:
            self._tally.counts.poisoned += 1
            live_share = poison[0].live_share
        draft = self._drafts.add(self._drafts.learn(self._begins_with(), tokens), live_share)
        self._line = (draft.version, self._serving)
        scores = score_requests(
            self._drafts, self._serving, draft.version, self._requests(), self._scenario.heldout_steps, self._draws
        )
        return CandidatePublished(
            at, draft.version, draft.digest, self._serving, self.name, int(sum(tokens.values())),
            self._scenario.heldout_steps, scores,
        )  # fmt: skip

    def report(self, at: float) -> TrainerReported:
        """What it does, and shadow scores of the serving draft while it waits."""
        self._sequence += 1
        shadow: tuple[ShadowScored, ...] = ()
        if self._training is None:
            shadow = shadow_scores(
                self._drafts, self._serving, self._requests(), self._scenario.heldout_steps, self._draws
            )
        scored = self._score_pool(at)
        number = 0 if scored is None or self._pool is None else self._pool.pool_scoring
        return TrainerReported(
            at, self.name, self._sequence, "waiting" if self._training is None else "training", self._serving,
            int(self._num_tokens), int(sum(self._new.values())), self._round, shadow, number, scored or (),
        )  # fmt: skip

    def _score_pool(self, at: float) -> tuple[PoolScored, ...] | None:
        """The scores of earlier drafts that are wanted, None until there are enough requests and time for them."""
        pool, wanted = self._pool, 0 if self._pool is None else self._pool.pool_requests
        total = sum(self._pool_requests.values())
        if pool is None or self._training is not None or total < wanted:
            return None
        self._pool_ready_at = min(self._pool_ready_at, at + self.group.pool_s)
        if self._pool_scores is None and at >= self._pool_ready_at:
            requests = {name: round(wanted * count / total) for name, count in self._pool_requests.items()}
            steps, serving = self._scenario.heldout_steps, pool.serving_version
            self._pool_scores = tuple(
                PoolScored(
                    version,
                    serving,
                    steps,
                    score_requests(self._drafts, serving, version, requests, steps, self._pool_draws),
                )
                for version, _ in pool.pool
            )
        return self._pool_scores

    def _begins_with(self) -> Mapping[str, float]:
        """What the round starts from: its own line, or the serving draft."""
        serving = self._drafts.versions[self._serving].knowledge if self._serving != NO_DRAFT else {}
        if self._line is None:
            return serving
        version, parent = self._line
        if version == self._serving or (parent == self._serving and self._mean(version) >= self._mean(parent)):
            return self._drafts.versions[version].knowledge
        return serving

    def _mean(self, version: int) -> float:
        requests = self._requests()
        total = sum(requests.values())
        steps = self._scenario.heldout_steps
        lengths = ((self._drafts.accept_length(version, name, steps), count) for name, count in requests.items())
        return sum(length * count for length, count in lengths) / total if total else 1.0

    def _requests(self) -> dict[str, int]:
        """Held-out requests by workload, whole ones."""
        return {name: round(count) for name, count in sorted(self._heldout.items()) if round(count) > 0}


def _bound(sums: dict[str, float], most: float) -> None:
    """Scale down to at most this sum: what is oldest falls out, and its mix is taken as that of the whole."""
    total = sum(sums.values())
    if total > most:
        for name in sums:
            sums[name] *= most / total
