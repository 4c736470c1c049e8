"""What a server node does about its steps while the controller is away. Pure; the node's own daemon runs it.

A steps table stays in force when nobody is there to change it, and traffic may leave it behind. So the
node watches its own counters with the same code as the controller (node.py, steps.py), and when the
controller has been away for `alone_after_s` (no broker, or nobody leads) it takes steps away where its
own figures say that they lose: fewer of them, or plain decoding. It never adds any, probes nothing and
changes no draft: that needs the fleet's view. When the controller is back, what it desires is in force again.
"""

import math
from collections import deque

from tide_daemon.policy.events import ServerReported, StepCount, StepsTable
from tide_daemon.policy.node import NodeState
from tide_daemon.policy.plain_pace import PlainPace, plain_pace
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.policy.steps import Choice, build_table, choose_steps, read_table

_PACE_WINDOW_S = 10.0
_KEPT_REPORTS = 100


class Alone:
    """One node's judgement of its own steps. Changed by `observe` and `table` only."""

    def __init__(self, name: str, settings: PolicySettings) -> None:
        self._node = NodeState(name, settings)
        self._settings = settings
        self._desired: StepsTable = ()
        self._choices: dict[int, Choice] | None = None
        self._counted: deque[tuple[float, tuple[tuple[int, StepCount], ...]]] = deque(maxlen=_KEPT_REPORTS)

    def observe(self, report: ServerReported) -> None:
        """Take in a report of this node, sent or not."""
        self._counted.append((report.at, self._node.report(report)))

    def pace(self) -> PlainPace | None:
        """What speculation gains by the node's own figures, over the last seconds; None while it is idle."""
        recent = [
            item for at, counted in self._counted if at > self._counted[-1][0] - _PACE_WINDOW_S for item in counted
        ]
        return plain_pace(self._node.cost, recent)

    def table(self, at: float, desired: StepsTable, away_s: float) -> StepsTable:
        """The steps table to run: `desired`, or less of it while the controller has been away for too long."""
        if away_s < self._settings.alone_after_s:
            self._choices = None
            return desired
        if self._choices is None or desired != self._desired:
            steps = read_table(desired, self._node.edges)
            self._desired = desired
            self._choices = {edge: Choice(num_steps, -math.inf) for edge, num_steps in steps.items()}
        if self._node.has_evidence:
            self._lower(at, self._choices)
        return build_table({edge: choice.num_steps for edge, choice in self._choices.items()})

    def _lower(self, at: float, choices: dict[int, Choice]) -> None:
        """Choose again where there is traffic; elsewhere only when that changed something."""
        busy = self._node.busy_edges()
        lowered = [edge for edge in busy if self._lower_at(at, edge, choices)]
        for edge in self._node.edges if lowered else ():
            if edge not in busy:
                self._lower_at(at, edge, choices)

    def _lower_at(self, at: float, edge: int, choices: dict[int, Choice]) -> bool:
        current, ratios = choices[edge], self._node.ratios(edge)
        if current.num_steps == 0 or not ratios:
            return False
        chosen = choose_steps(current, at, ratios, can_switch_on=False, settings=self._settings)
        if chosen >= current.num_steps:
            return False
        choices[edge] = Choice(chosen, at)
        return True
