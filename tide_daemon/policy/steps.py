"""How many drafted tokens at one batch size: the largest predicted tokens/s, with two thresholds and a dwell.

Pure functions. Which evidence there is, and what it costs to get more, is in node.py and probing.py.

Batch sizes are grouped: each of 1..8 by itself, above that in steps of a quarter or less, named by
their upper edge. So a plain and a speculative figure are compared at (nearly) the same batch size.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from tide_daemon.policy.events import StepsTable
from tide_daemon.policy.settings import PolicySettings

_EDGES = (
    *(1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128),
    *(160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The number of steps in force at one batch size, and since when (unix seconds)."""

    num_steps: int
    since: float


def batch_edges(max_batch_size: int) -> tuple[int, ...]:
    """Upper edges of the groups of batch sizes that are decided on, ascending; the last is max_batch_size."""
    return (*(edge for edge in _EDGES if edge < max_batch_size), max_batch_size)


def edge_of(batch_size: int, edges: tuple[int, ...]) -> int | None:
    """Edge of the group that a batch size belongs to; None above the last."""
    index = bisect_left(edges, batch_size)
    return edges[index] if index < len(edges) else None


def best_steps(ratios: Mapping[int, float]) -> int:
    """The positive num_steps with the largest predicted ratio to plain; the smaller one when equal.

    Args:
        ratios: by num_steps >= 1; not empty.
    """
    return max(sorted(ratios), key=ratios.__getitem__)


def choose_steps(
    current: Choice, at: float, ratios: Mapping[int, float], *, can_switch_on: bool, settings: PolicySettings
) -> int:
    """The number of steps for one batch size from now on.

    Args:
        current: what is in force.
        ratios: predicted tokens/s over plain by num_steps >= 1, from enough live evidence.
        can_switch_on: the evidence is recent, and no probe is under way.

    Switching off needs only the short dwell: a loss is certain while a gain is a prediction.
    """
    best = best_steps(ratios)
    age = at - current.since
    if current.num_steps == 0:
        wins = ratios[best] >= settings.speculate_on
        return best if can_switch_on and wins and age >= settings.dwell_s else 0
    here = ratios.get(current.num_steps, 0.0)
    if here < settings.speculate_off:
        if age < settings.off_dwell_s:
            return current.num_steps
        return best if ratios[best] >= settings.speculate_off else 0
    if ratios[best] >= here * (1.0 + settings.step_gain) and age >= settings.dwell_s:
        return best
    return current.num_steps


def build_table(steps_by_edge: Mapping[int, int]) -> StepsTable:
    """The steps table for these edges: neighbours with equal steps joined, plain entries at the end left out."""
    table: list[tuple[int, int]] = []
    for edge in sorted(steps_by_edge):
        if table and table[-1][1] == steps_by_edge[edge]:
            table[-1] = (edge, steps_by_edge[edge])
        else:
            table.append((edge, steps_by_edge[edge]))
    while table and table[-1][1] == 0:
        table.pop()
    return tuple(table)


def read_table(table: StepsTable, edges: tuple[int, ...]) -> dict[int, int]:
    """Inverse of build_table for the given edges."""
    steps = {}
    for edge in edges:
        steps[edge] = next((num_steps for largest, num_steps in table if edge <= largest), 0)
    return steps
