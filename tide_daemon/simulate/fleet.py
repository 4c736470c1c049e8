"""The events of one run and their order: reports, messages on their way, swaps, rounds, failures.

A heap of (second, order of scheduling, what to do). Nothing else moves time. Messages between nodes and
the controller take a random delay and may be lost: a lost report is gone, a lost desired state is
read with the node's next report, because desired state is level-triggered. Time counts from 0.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from tide_daemon.policy.events import CandidatePublished, ServerReported, TrainerReported
from tide_daemon.policy.instructions import Instruction, SetServer, SetTrainer
from tide_daemon.simulate.fixed import Fixed
from tide_daemon.simulate.leader import Leader
from tide_daemon.simulate.scenario import Failure, Scenario
from tide_daemon.simulate.server import ModelledServer
from tide_daemon.simulate.tally import Tally
from tide_daemon.simulate.trainer import ModelledTrainer

Node = TypeVar("Node")
Message = ServerReported | TrainerReported | CandidatePublished
Progress = Callable[[float], None]
"""Told the share of a run that is over, 0 to 1."""


class Fleet:
    """Servers, trainers, one director, and the heap of what happens next."""

    def __init__(
        self,
        scenario: Scenario,
        servers: Sequence[ModelledServer],
        trainers: Sequence[ModelledTrainer],
        director: Leader | Fixed,
        tally: Tally,
    ) -> None:
        self._scenario = scenario
        self._servers = {server.name: server for server in servers}
        self._trainers = {trainer.name: trainer for trainer in trainers}
        self._director = director
        self._tally = tally
        self._network = random.Random(f"{scenario.seed}/network")
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._scheduled = 0

    def run(self, progress: Progress | None = None) -> None:
        """From the first second to the last."""
        seconds, told = self._scenario.seconds, 0.0
        self._begin()
        while self._heap and self._heap[0][0] < seconds:
            at, _, do = heapq.heappop(self._heap)
            do(at)
            if progress is not None and at >= told:
                progress(at / seconds)
                told += seconds / 100
        for server in self._servers.values():
            server.advance(seconds)
        if progress is not None:
            progress(1.0)

    def _begin(self) -> None:
        self._carry_out(self._director.take_over(0.0), 0.0)
        for failure in self._scenario.failures:
            self._schedule(failure.at_s, partial(self._fail, failure))
            self._schedule(failure.at_s + failure.seconds, partial(self._mend, failure))
        # Nodes do not report at the same moment: spread evenly over the first interval.
        interval_s = self._scenario.report_s
        for index, server in enumerate(self._servers.values()):
            server.begin_interval(0.0)
            self._schedule(interval_s * (index + 1) / len(self._servers), partial(self._server_turn, server))
        for index, trainer in enumerate(self._trainers.values()):
            first_s = trainer.group.report_s * (index + 1) / len(self._trainers)
            self._schedule(first_s, partial(self._trainer_turn, trainer))
        if self._director.needs_reports:
            self._schedule(interval_s, self._tick)

    def _schedule(self, at: float, do: Callable[[float], None]) -> None:
        self._scheduled += 1
        heapq.heappush(self._heap, (at, self._scheduled, do))

    # What happens again and again

    def _server_turn(self, server: ModelledServer, at: float) -> None:
        server.advance(at)
        server.begin_interval(at)
        if self._director.needs_reports:
            report = server.report(at)
            if server.reachable:
                self._tally.counts.reports += 1
                self._send(report, at)
        desired = self._director.servers.get(server.name)
        if desired is not None and desired is not server.desired:
            self._give_server(server, desired, at)
        self._schedule(at + self._scenario.report_s, partial(self._server_turn, server))

    def _trainer_turn(self, trainer: ModelledTrainer, at: float) -> None:
        if trainer.reachable:
            trainer.pull(1.0 / sum(other.reachable for other in self._trainers.values()))
            self._send(trainer.report(at), at)
            desired = self._director.trainers.get(trainer.name)
            if desired is not None:
                self._give_trainer(trainer, desired, at)
        self._schedule(at + trainer.group.report_s, partial(self._trainer_turn, trainer))

    def _tick(self, at: float) -> None:
        self._carry_out(self._director.tick(at), at)
        self._schedule(at + self._scenario.report_s, self._tick)

    # Desired state and what follows from it

    def _carry_out(self, instructions: list[Instruction], at: float) -> None:
        for instruction in instructions:
            match instruction:
                case SetServer() if not self._lost():
                    give = partial(self._give_server, self._servers[instruction.node], instruction)
                    self._schedule(at + self._delay_s(), give)
                case SetTrainer() if not self._lost():
                    ask = partial(self._give_trainer, self._trainers[instruction.trainer], instruction)
                    self._schedule(at + self._delay_s(), ask)

    def _give_server(self, server: ModelledServer, desired: SetServer, at: float) -> None:
        swapped_at = server.receive(desired, at) if server.reachable else None
        if swapped_at is not None:
            self._schedule(swapped_at, server.complete_swap)

    def _give_trainer(self, trainer: ModelledTrainer, desired: SetTrainer, at: float) -> None:
        over_at = trainer.receive(desired, at) if trainer.reachable else None
        if over_at is not None:
            self._schedule(over_at, partial(self._end_round, trainer))

    def _end_round(self, trainer: ModelledTrainer, at: float) -> None:
        candidate = trainer.complete_round(at)
        if candidate is not None:
            self._send(candidate, at)

    # Messages to the controller

    def _send(self, message: Message, at: float) -> None:
        # A manifest stays on the bus until it is read; a report that is lost is gone.
        if isinstance(message, CandidatePublished) or not self._lost():
            self._schedule(at + self._delay_s(), partial(self._arrive, message))

    def _arrive(self, message: Message, at: float) -> None:
        # Events carry the time at which the controller heard of them, as in roles/controller.py.
        self._carry_out(self._director.tell(replace(message, at=at)), at)

    def _delay_s(self) -> float:
        return self._scenario.network.delay_s * (0.5 + self._network.random())

    def _lost(self) -> bool:
        lost = self._scenario.network.loss > 0.0 and self._network.random() < self._scenario.network.loss
        self._tally.counts.messages_lost += lost
        return lost

    # Failures

    def _fail(self, failure: Failure, at: float) -> None:
        self._tally.decided(at, "failure", f"{failure.kind} begins")
        if failure.kind == "controller_lost":
            self._director.lose()
            self._tell_led(False)
        for server in self._concerned(failure, "cut_off"):
            server.advance(at)
            server.reachable = False
        for server in self._concerned(failure, "engine_down"):
            server.go_down(at)
        if failure.kind == "trainers_lost":
            for trainer in self._share(list(self._trainers.values()), failure):
                trainer.reachable = False

    def _mend(self, failure: Failure, at: float) -> None:
        self._tally.decided(at, "failure", f"{failure.kind} is over")
        if failure.kind == "controller_lost":
            self._tell_led(True)
            self._carry_out(self._director.take_over(at), at)
        for server in self._concerned(failure, "cut_off"):
            server.advance(at)
            server.reachable = True
        for server in self._concerned(failure, "engine_down"):
            swapped_at = server.come_up(at)
            if swapped_at is not None:
                self._schedule(swapped_at, server.complete_swap)
        if failure.kind == "trainers_lost":
            for trainer in self._share(list(self._trainers.values()), failure):
                trainer.reachable = True
                over_at = trainer.come_back(failure.seconds)
                if over_at is not None:
                    self._schedule(over_at, partial(self._end_round, trainer))

    def _tell_led(self, led: bool) -> None:
        for server in self._servers.values():
            server.led = led

    def _concerned(self, failure: Failure, kind: str) -> list[ModelledServer]:
        return self._share(list(self._servers.values()), failure) if failure.kind == kind else []

    @staticmethod
    def _share(nodes: list[Node], failure: Failure) -> list[Node]:
        return nodes[: round(failure.share * len(nodes))]
