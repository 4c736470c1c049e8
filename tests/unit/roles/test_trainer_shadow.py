"""Shadow scores in a trainer's report: always of the draft that the report names as serving."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tide_daemon.roles.trainer_rounds import RoundRunner
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire.records import DesiredTrainer, TargetSpec

SPEC = TargetSpec("target", "a" * 64, "b" * 64, (1, 5, 9), 16, 100)


class Worker:
    """Stands for the training process: scores when it is let."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def run(self, command: dict[str, Any], on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        await self.may_end.wait()
        score = {"request": "1" * 16, "workload": "chat", "first_position": 0, "num_positions": 50, "tokens": [90.0]}
        return {"scores": [score]}


class Drafts:
    """Stands for the fetcher: every draft is there."""

    async def fetch(self, spec: TargetSpec, version: int, digest: str) -> Path:
        return Path(digest)


def runner(worker: Worker, folder: Path) -> RoundRunner:
    settings = TrainerSettings(name="t", model="target", draft_vocab_size=64)
    return RoundRunner(None, settings, folder, worker, Drafts(), dict)  # type: ignore[arg-type]


def serving(version: int) -> DesiredTrainer:
    return DesiredTrainer("t", version, 1, 0.0, 0, version, f"{version:064x}", "a test")


async def test_scores_are_not_told_of_the_draft_that_came_after(tmp_path: Path) -> None:
    """Another draft serves: what was known of the one before is not reported any more."""
    rounds = runner(Worker(), tmp_path)
    rounds.note_serving(serving(1))
    await rounds.shadow(serving(1), SPEC)
    assert [score.num_positions for score in rounds.progress.shadow] == [50]
    rounds.note_serving(serving(1))
    assert rounds.progress.shadow
    rounds.note_serving(serving(2))
    assert rounds.progress.shadow == ()


async def test_scores_that_come_too_late_are_left_out(tmp_path: Path) -> None:
    """The draft changed while the one before was scored."""
    worker = Worker()
    rounds = runner(worker, tmp_path)
    rounds.note_serving(serving(1))
    worker.may_end.clear()
    scoring = asyncio.create_task(rounds.shadow(serving(1), SPEC))
    await asyncio.sleep(0)
    rounds.note_serving(serving(2))
    worker.may_end.set()
    await scoring
    assert rounds.progress.shadow == ()
