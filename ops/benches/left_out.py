"""What the policy predicts where it has never looked: each cell's gain, from reports without that cell.

A cell is (batch size, draft steps). Every cell has a view of the node of its own, the controller's NodeState
with its cost model and its acceptance, that is told all reports less this one cell's counters.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import median

from tide_daemon.policy.events import ServerReported
from tide_daemon.policy.node import NodeState
from tide_daemon.policy.settings import PolicySettings

Cell = tuple[int, int]


class LeftOut:
    """The views of one node. Batch sizes of `cells` must be edges of the policy's groups (1 to 8 are)."""

    def __init__(self, cells: Iterable[Cell], settings: PolicySettings) -> None:
        self._views = {cell: NodeState("bench", settings) for cell in cells}

    def report(self, event: ServerReported) -> None:
        """Tell every view, each without its own cell."""
        for cell, view in self._views.items():
            steps = tuple(step for step in event.steps if (step.batch_size, step.num_steps) != cell)
            view.report(replace(event, steps=steps))

    def predicted(self, cell: Cell) -> float:
        """Tokens/s over plain at this cell by what the others showed; KeyError while no step was timed."""
        batch_size, num_steps = cell
        return self._views[cell].ratios(batch_size)[num_steps]


@dataclass(slots=True)
class Compared:
    """Predictions and measurements of one cell, turn by turn: tokens and seconds of plain and of drafted turns."""

    predicted: list[float] = field(default_factory=list)
    plain: list[tuple[float, float]] = field(default_factory=list)
    drafted: list[tuple[float, float]] = field(default_factory=list)

    @property
    def measured_ratio(self) -> float:
        """Token rate of all drafted turns over that of all plain turns on the same prompts."""
        return _rate(self.drafted) / _rate(self.plain)

    @property
    def predicted_ratio(self) -> float:
        """Mean of the predictions, one a turn."""
        return sum(self.predicted) / len(self.predicted)

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return abs(self.predicted_ratio / self.measured_ratio - 1.0)


def figures(cells: dict[Cell, Compared]) -> dict[str, float]:
    """Median and worst error, then each cell."""
    errors = [compared.error for compared in cells.values()]
    found = {"median_error": median(errors), "worst_error": max(errors)}
    for (batch_size, num_steps), compared in cells.items():
        name = f"b{batch_size}_s{num_steps}"
        found[f"predicted_{name}"] = compared.predicted_ratio
        found[f"measured_{name}"] = compared.measured_ratio
        found[f"error_{name}"] = compared.error
    return found


def _rate(turns: list[tuple[float, float]]) -> float:
    return sum(tokens for tokens, _ in turns) / sum(seconds for _, seconds in turns)
