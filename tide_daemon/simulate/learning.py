"""What a draft accepts, what a round changes of it, and what held-out scores say of it.

A draft is described by K_w, the response tokens of each workload w that it is worth having been trained on:

    first position     a_w = start + (ceiling - start) * K_w / (K_w + half_tokens)
    position i         p_i = a_w * depth^(i - 1)          given that the ones before were accepted
    survival           S_i = p_1 * ... * p_i              accept length = 1 + S_1 + S_2 + ...

A round on n tokens, n_w of them of workload w, forgets and then adds, with t = transfer:

    K_w' = K_w * 2^(-(n - n_w) / forget_tokens) + n_w + t * (n - n_w)

With start 0.26, ceiling 0.5, half_tokens 40,000 and depth 0.95 it is within 0.05 of the curve measured in
ops/decisions/0010: on chat accept length 1.39, 1.47, 1.53, 1.60, 1.66, 1.69 after 10, 20, 40, 60, 80, 100
thousand tokens.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tide_daemon.policy.events import RequestScored, ShadowScored
from tide_daemon.simulate.scenario import Learning, Workload


@dataclass(frozen=True, slots=True)
class Draft:
    """A version and what it has learnt.

    Attributes:
        knowledge: K_w by workload.
        live_share: live accept probability over what it should be; below 1 for a poisoned one.
    """

    version: int
    knowledge: Mapping[str, float]
    live_share: float = 1.0

    @property
    def digest(self) -> str:
        """64 hex digits, "" for no draft."""
        return f"{self.version:064x}" if self.version else ""


class Drafts:
    """All versions so far; how each does on each workload."""

    def __init__(self, workloads: Mapping[str, Workload], learning: Learning, max_steps: int) -> None:
        self.workloads = workloads
        self.learning = learning
        self.versions: dict[int, Draft] = {}
        self._max_steps = max_steps
        self._survival: dict[tuple[int, str], tuple[float, ...]] = {}

    def add(self, knowledge: Mapping[str, float], live_share: float = 1.0) -> Draft:
        """A new version; its number is the next one."""
        version = max(self.versions, default=0) + 1
        draft = self.versions[version] = Draft(version, dict(knowledge), live_share)
        return draft

    def survival(self, version: int, workload: str) -> tuple[float, ...]:
        """S_1..S_max_steps, live, before jitter."""
        known = self._survival.get((version, workload))
        if known is None:
            known = self._survival[version, workload] = self._survive(version, workload, live=True)
        return known

    def accept_length(self, version: int, workload: str, num_steps: int, *, live: bool = False) -> float:
        """Expected accept length, offline unless `live`; 1.0 for version 0."""
        if version == 0:
            return 1.0
        return 1.0 + sum(self._survive(version, workload, live=live)[:num_steps])

    def learn(self, knowledge: Mapping[str, float], tokens: Mapping[str, float]) -> dict[str, float]:
        """What is known after a round on `tokens` by workload."""
        total, result = sum(tokens.values()), {}
        for name in self.workloads:
            own = tokens.get(name, 0.0)
            kept = knowledge.get(name, 0.0)
            if self.learning.forget_tokens > 0.0:
                kept *= 0.5 ** ((total - own) / self.learning.forget_tokens)
            result[name] = kept + own + self.learning.transfer * (total - own)
        return result

    def _survive(self, version: int, workload: str, *, live: bool) -> tuple[float, ...]:
        kind, draft = self.workloads[workload], self.versions[version]
        learnt = draft.knowledge.get(workload, 0.0)
        prob = kind.start + (kind.ceiling - kind.start) * learnt / (learnt + kind.half_tokens)
        prob *= draft.live_share if live else 1.0
        alive, result = 1.0, []
        for _ in range(self._max_steps):
            alive *= prob
            result.append(alive)
            prob *= kind.depth
        return tuple(result)


def score_requests(
    drafts: Drafts, serving: int, candidate: int, requests: Mapping[str, int], num_steps: int, rng: random.Random
) -> tuple[RequestScored, ...]:
    """Both drafts on the same held-out requests: what is common to both varies widely, the difference less."""
    scores: list[RequestScored] = []
    positions = drafts.learning.response_tokens
    for workload, count in sorted(requests.items()):
        before = drafts.accept_length(serving, workload, num_steps)
        after = drafts.accept_length(candidate, workload, num_steps)
        spread = drafts.workloads[workload].request_spread
        for _ in range(count):
            common = rng.gauss(0.0, spread)
            own = rng.gauss(0.0, drafts.learning.paired_spread)
            scores.append(
                RequestScored(
                    f"{candidate:08x}{len(scores):08x}",
                    workload,
                    positions,
                    positions * (1.0 if serving == 0 else _possible(before + common, num_steps)),
                    positions * _possible(after + common + own, num_steps),
                )
            )
    return tuple(scores)


def shadow_scores(
    drafts: Drafts, version: int, requests: Mapping[str, int], num_steps: int, rng: random.Random
) -> tuple[ShadowScored, ...]:
    """The serving draft alone on the same requests, summed by workload."""
    scores = []
    for workload, count in sorted(requests.items()):
        if count > 0 and version > 0:
            mean = drafts.accept_length(version, workload, num_steps)
            mean += rng.gauss(0.0, drafts.workloads[workload].request_spread / count**0.5)
            positions = count * drafts.learning.response_tokens
            scores.append(ShadowScored(workload, count, positions, positions * _possible(mean, num_steps)))
    return tuple(scores)


def _possible(accept_length: float, num_steps: int) -> float:
    return min(num_steps + 1.0, max(1.0, accept_length))
