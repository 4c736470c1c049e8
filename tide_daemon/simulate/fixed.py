"""Policies that never decide, to compare TIDE with on the same nodes and traffic, in hindsight.

    plain    no drafted tokens
    static   the first draft for ever, a fixed number of steps
    newest   rounds one after another whenever there is something to learn, every candidate goes to every
             server at once; a fixed number of steps

Which number of steps is best is found afterwards, by running each. They pay for the same swaps,
captures, delays and training times as TIDE does; they need no reports, no gate and no canary.
"""

from tide_daemon.policy.events import CandidatePublished, Event, TrainerReported
from tide_daemon.policy.instructions import Instruction, SetServer, SetTrainer
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.simulate.tally import Tally


class Fixed:
    """A fleet without control, behind the same methods as leader.Leader.

    Args:
        servers, trainers: names of all of them.
        version: first draft, 0 for none.
        num_steps: at every batch size; 0 for plain decoding.
        trains: whether rounds run and their drafts are used.
    """

    needs_reports = False

    def __init__(
        self,
        settings: PolicySettings,
        servers: list[str],
        trainers: list[str],
        tally: Tally,
        *,
        version: int,
        num_steps: int,
        trains: bool,
    ) -> None:
        self.servers: dict[str, SetServer] = {}
        self.trainers: dict[str, SetTrainer] = {}
        self._settings = settings
        self._server_names = servers
        self._trainer_names = trainers if trains else []
        self._tally = tally
        self._version = version
        self._num_steps = num_steps
        self._trains = trains
        self._running: str | None = None
        self._reports: dict[str, TrainerReported] = {}

    def take_over(self, at: float) -> list[Instruction]:
        """What is in force from the start."""
        del at
        return self._deploy("from the start")

    def lose(self) -> None:
        """There is no controller to lose: what is fixed stays in force."""

    def tell(self, event: Event) -> list[Instruction]:
        """Rounds and new drafts; nothing else matters."""
        if not self._trains:
            return []
        match event:
            case CandidatePublished():
                self._version, self._running = event.version, None
                self._tally.serving(event.at, event.version)
                return self._deploy("the newest draft")
            case TrainerReported():
                self._reports[event.trainer] = event
                return self._next_round()
        return []

    def tick(self, at: float) -> list[Instruction]:
        """Time changes nothing."""
        del at
        return []

    def _deploy(self, reason: str) -> list[Instruction]:
        table = ((self._settings.max_batch_size, self._num_steps),) if self._num_steps and self._version else ()
        digest = f"{self._version:064x}" if self._version else ""
        made: list[Instruction] = []
        for name in self._server_names:
            generation = self.servers[name].generation + 1 if name in self.servers else 1
            rate = self._settings.sample_rate if self._trains else 0.0
            self.servers[name] = SetServer(
                name, generation, self._version, digest, table, rate > 0.0, rate, "fixed", reason, {}
            )
            made.append(self.servers[name])
        return [*made, *(self._set_trainer(name, reason) for name in self._trainer_names)]

    def _next_round(self) -> list[Instruction]:
        least = min(self._settings.train_shift_tokens, self._settings.train_min_tokens)
        idle = [report for report in self._reports.values() if report.state == "waiting"]
        if self._running is not None or not idle:
            return []
        best = max(idle, key=lambda report: (report.new_tokens, report.trainer))
        if best.new_tokens < least:
            return []
        self._running = best.trainer
        return [self._set_trainer(best.trainer, "enough new data", begins=True)]

    def _set_trainer(self, name: str, reason: str, *, begins: bool = False) -> SetTrainer:
        before = self.trainers.get(name)
        generation, round_ = (1, 0) if before is None else (before.generation + 1, before.round)
        if begins:
            round_ += 1
        digest = f"{self._version:064x}" if self._version else ""
        self.trainers[name] = SetTrainer(name, generation, round_, self._version, digest, "fixed", reason, {})
        return self.trainers[name]
