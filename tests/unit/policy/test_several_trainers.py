"""Several trainers: one round at a time, but nobody waits for one that is late or lost."""

from dataclasses import dataclass

from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import ControllerStarted, FleetState, ServerReported, TrainerFound, TrainerReported
from tide_daemon.policy.instructions import SetTrainer
from tide_daemon.policy.settings import PolicySettings

SETTINGS = PolicySettings(train_min_tokens=8000, train_begin_s=120.0, train_late_s=1800.0, lost_after_s=15.0)
SERVED = FleetState(serving_version=1, serving_digest="1" * 64, judged=(1,))


@dataclass
class Trainer:
    """One that obeys unless told otherwise. `at_work` while it trains."""

    name: str
    new_tokens: int = 9000
    round: int = 0
    state: str = "waiting"
    obeys: bool = True
    alive: bool = True


class Training:
    """A controller and its trainers, a report of each every ten seconds."""

    def __init__(self, *trainers: Trainer) -> None:
        self.trainers = trainers
        self.at = 1000.0
        self.asked: list[tuple[float, str, int]] = []
        self.controller = Controller(SETTINGS)
        self.controller.handle(ControllerStarted(self.at, "model", SETTINGS.to_map(), SERVED))
        self._generations: dict[str, int] = {}

    def run(self, seconds: float) -> None:
        end = self.at + seconds
        while self.at < end:
            self.at += 10.0
            for trainer in self.trainers:
                if trainer.alive:
                    self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        event = TrainerReported(
            self.at, trainer.name, int(self.at), trainer.state, 1, 0, trainer.new_tokens, trainer.round
        )
        for item in self.controller.handle(event):
            if not isinstance(item, SetTrainer):
                continue
            asked = next(each for each in self.trainers if each.name == item.trainer)
            if item.round > asked.round:
                self.asked.append((self.at, item.trainer, item.round))
                if asked.obeys:
                    asked.round, asked.state, asked.new_tokens = item.round, "training", 0

    def sample_rate(self) -> float:
        """The share that a server is asked to capture now."""
        self.controller.handle(ServerReported(self.at, "s", int(self.at), "ready", 0, "", 0, 2.0, ()))
        return self.controller.asked["s"].sample_rate

    def names(self) -> list[str]:
        return [name for _, name, _ in self.asked]


def test_the_others_wait_while_one_trains() -> None:
    """Both have enough data; one is asked, and the next when that one is done."""
    a, b = Trainer("a"), Trainer("b")
    training = Training(a, b)
    training.run(600)
    assert training.names() == ["a"]
    a.state = "waiting"
    training.run(30)
    assert training.names() == ["a", "b"]


def test_nobody_waits_for_a_round_that_does_not_end() -> None:
    """A worker that hangs keeps reporting; after train_late_s another trainer is asked, and only one more."""
    training = Training(Trainer("a"), Trainer("b"), Trainer("c"))
    training.run(SETTINGS.train_late_s)
    assert training.names() == ["a"]
    training.run(30)
    assert training.names() == ["a", "b"]
    training.run(SETTINGS.train_late_s / 2)
    assert training.names() == ["a", "b"]


def test_a_late_one_that_is_done_counts_again() -> None:
    """It was only slow: when it waits again it is as good as any other."""
    a, b = Trainer("a"), Trainer("b")
    training = Training(a, b)
    training.run(SETTINGS.train_late_s + 30)
    a.state, a.new_tokens = "waiting", 20_000
    training.run(30)
    assert training.names() == ["a", "b"], "b trains"
    b.state = "waiting"
    training.run(30)
    assert training.names() == ["a", "b", "a"]


def test_nobody_waits_for_a_round_that_is_not_begun() -> None:
    """It waits for something, the target's files perhaps: the next one is asked, and this one not again."""
    training = Training(Trainer("a", obeys=False), Trainer("b"))
    training.run(SETTINGS.train_begin_s)
    assert training.names() == ["a"]
    training.run(30)
    assert training.names() == ["a", "b"]
    training.run(600)
    assert training.names() == ["a", "b"]


def test_nobody_waits_for_a_trainer_that_is_gone() -> None:
    """Lost in its round: the other one begins as soon as it counts as lost."""
    a = Trainer("a")
    training = Training(a, Trainer("b"))
    training.run(20)
    a.alive = False
    training.run(40)
    assert training.names() == ["a", "b"]


def test_a_new_leader_gives_a_trainer_its_time_again() -> None:
    """It does not know since when the round runs."""
    training = Training(Trainer("a", round=7, state="training"), Trainer("b"))
    training.controller.handle(TrainerFound(1000.0, "a", 3, 7, 1, "1" * 64))
    training.run(SETTINGS.train_late_s)
    assert training.names() == []
    training.run(30)
    assert training.names() == ["b"]


def test_the_small_share_is_captured_while_all_trainers_are_away() -> None:
    """Each server is told once that nobody learns from it, and again when one of them is back."""
    a, b = Trainer("a"), Trainer("b", alive=False)
    training = Training(a, b)
    training.run(10)
    assert training.sample_rate() == SETTINGS.sample_rate
    a.alive = False
    training.run(40)
    assert training.sample_rate() == SETTINGS.idle_sample_rate
    b.alive = True
    training.run(20)
    assert training.sample_rate() == SETTINGS.sample_rate


def test_a_new_leader_waits_for_the_trainers_that_were_found() -> None:
    """Until each could have reported they count as there."""
    training = Training()
    training.controller.handle(TrainerFound(training.at, "a", 1, 0, 1, SERVED.serving_digest))
    assert training.sample_rate() == SETTINGS.sample_rate
    training.at += SETTINGS.lost_after_s + 1.0
    assert training.sample_rate() == SETTINGS.idle_sample_rate
