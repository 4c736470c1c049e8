"""Kills, crashes and outages of a trainer: what it acknowledged is kept, rounds go on, nothing is published twice."""

import asyncio
import errno
import os
import signal
from pathlib import Path

import pytest

from tests.integration.trainer.harness import SLOW, Surroundings, Trainer, eventually
from tests.trainer_samples import chunks
from tide_daemon.bus.memory import MemoryBroker, MemoryBus
from tide_daemon.errors import BusUnavailableError
from tide_daemon.trainer import store as store_module
from tide_daemon.trainer.rounds import Rounds
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DraftManifest


def num_stored(shown: dict[str, object], count: int) -> bool:
    return shown["num_requests"] == count


async def test_killed_worker_resumes_its_round(bus: MemoryBus, target: Path, tmp_path: Path) -> None:
    """kill -9 in a step: another worker goes on from the checkpoint, and the round ends as planned."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target, **SLOW)
    await around.serve(40)
    await around.desire(1)
    shown = await trainer.until(lambda shown: shown["step"] > 8)  # type: ignore[operator]
    os.kill(shown["worker_pid"], signal.SIGKILL)  # type: ignore[arg-type]
    killed_at = shown["step"]
    await trainer.until(lambda shown: shown["worker_starts"] == 2)
    shown = await trainer.until(lambda shown: "worker" not in str(shown["reason"]))
    assert killed_at - 5 <= shown["step"]  # type: ignore[operator]
    await around.manifest(1)
    assert trainer.shown["worker_starts"] == 2
    await trainer.stop()
    assert await around.versions(range(1, 5)) == [1]


async def test_killed_daemon_resumes_its_round(bus: MemoryBus, target: Path, tmp_path: Path) -> None:
    """The samples are there, the same round goes on from its checkpoint under another worker, one version comes out."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target, **SLOW)
    await around.serve(40)
    await around.desire(1)
    shown = await trainer.until(lambda shown: shown["step"] > 8)  # type: ignore[operator]
    total = shown["num_steps_total"]
    await trainer.crash()
    plan = Rounds(tmp_path / "state").open(1).read("plan")
    again = Trainer(bus, tmp_path / "state", target, **SLOW)
    shown = await again.until(lambda shown: shown["step"] > 0)  # type: ignore[operator]
    assert (shown["num_requests"], shown["round"], shown["num_steps_total"]) == (40, 1, total)
    assert shown["step"] > 6  # type: ignore[operator]
    manifest = await around.manifest(1)
    await again.stop()
    assert Rounds(tmp_path / "state").open(1).read("plan") == plan
    assert await around.versions(range(1, 5)) == [1]
    assert manifest.trainer == "t1"


async def test_a_stopped_trainer_leaves_no_worker_and_goes_on_later(
    bus: MemoryBus, target: Path, tmp_path: Path
) -> None:
    """SIGTERM in a round: the worker checkpoints and ends within a step."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target, **SLOW)
    await around.serve(40)
    await around.desire(1)
    shown = await trainer.until(lambda shown: shown["step"] > 5)  # type: ignore[operator]
    await trainer.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(shown["worker_pid"], 0)  # type: ignore[arg-type]
    assert Rounds(tmp_path / "state").open(1).progress_path.exists()
    again = Trainer(bus, tmp_path / "state", target, **SLOW)
    await around.manifest(1)
    await again.stop()


class CutBus(MemoryBus):
    """Loses the broker for the given number of publishes on draft subjects, one more with each trainer."""

    cut_at = -1
    seen = 0

    async def publish(self, subject: str, data: bytes, **options: object) -> int:  # type: ignore[override]
        if subject.startswith("tide.v1.draft."):
            self.seen += 1
            if self.seen == self.cut_at:
                raise BusUnavailableError("cut off")
        return await super().publish(subject, data, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut_at", [1, 2, 3], ids=["claim", "part", "manifest"])
async def test_killed_daemon_publishes_once(broker: MemoryBroker, target: Path, tmp_path: Path, cut_at: int) -> None:
    """Killed before the claim, a part or the manifest is stored: the next daemon publishes the same draft, once."""
    cut = CutBus(broker)
    cut.cut_at = cut_at
    around = Surroundings(MemoryBus(broker))
    trainer = Trainer(cut, tmp_path / "state", target)
    await around.serve(40)
    await around.desire(1)
    await trainer.until(lambda shown: "cut off" in str(shown["reason"]))
    assert "cut off" in trainer.role.health()["training"]
    await trainer.crash()
    trained = Rounds(tmp_path / "state").open(1).trained()
    assert trained is not None
    again = Trainer(MemoryBus(broker), tmp_path / "state", target)
    manifest = await around.manifest(1)
    assert manifest.content_digest == trained.content_digest
    await around.serve(40)
    await around.desire(2, manifest)
    following = await around.manifest(2)
    assert following.base_version == 1
    await again.stop()
    assert await around.versions(range(1, 6)) == [1, 2]


async def test_training_goes_on_while_the_bus_is_away(
    broker: MemoryBroker, bus: MemoryBus, target: Path, tmp_path: Path
) -> None:
    """The round is trained and scored without a broker, and published when it is back."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.serve(40)
    await trainer.until(lambda shown: num_stored(shown, 40))
    await around.desire(1)
    await trainer.until(lambda shown: shown["state"] == "training")
    broker.down = True
    await trainer.until(lambda shown: shown["state"] == "publishing")
    assert not trainer.role.ready()
    broker.down = False
    await around.manifest(1)
    await trainer.stop()


async def test_full_disk_acknowledges_nothing_and_recovers(
    bus: MemoryBus, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk refuses, chunks stay with the broker; nothing is lost when it has room again."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.serve(3)
    await trainer.until(lambda shown: num_stored(shown, 3))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store_module.os, "fdatasync", full)
        await around.serve(10)
        shown = await trainer.until(lambda shown: any("No space left" in text for text in shown["problems"]))  # type: ignore[attr-defined]
        assert shown["num_requests"] == 3
        assert not trainer.role.ready()
        assert "No space left" in trainer.role.health()["store"]
        await asyncio.sleep(2.5)  # longer than the broker waits for an acknowledgement
    await trainer.until(lambda shown: num_stored(shown, 13))
    await trainer.until(lambda shown: shown["problems"] == [])
    await trainer.stop()


async def test_redelivered_chunks_are_stored_once(broker: MemoryBroker, target: Path, tmp_path: Path) -> None:
    """Acknowledgements lost: the chunks come again and change nothing."""
    bus = MemoryBus(broker)
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.serve(5)
    shown = await trainer.until(lambda shown: num_stored(shown, 5))
    for number in range(5):
        for chunk in chunks(number):
            await bus.publish(subjects.hidden("tiny", "node-a"), envelope.encode(chunk))
    await trainer.until(lambda now: now["store"]["duplicates"] == 10)  # type: ignore[index]
    assert trainer.shown["num_tokens"] == shown["num_tokens"]
    await trainer.stop()


async def test_a_loss_that_is_not_finite_fails_the_round_and_changes_nothing(
    bus: MemoryBus, target: Path, tmp_path: Path
) -> None:
    """The round ends with a reason, no draft comes of it, and the next round, on good samples, succeeds."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target, learning_rate=1e30)
    await around.serve(40)
    await around.desire(1)
    shown = await trainer.until(lambda shown: shown["state"] == "failed")
    assert "loss" in str(shown["reason"]) or "not finite" in str(shown["reason"])
    assert (await around.report()).round == 1
    await trainer.stop()
    again = Trainer(bus, tmp_path / "state", target)
    await again.until(lambda shown: num_stored(shown, 40))
    await around.desire(2)
    manifest = await around.manifest(1)
    assert manifest.parent_version == 0
    await again.stop()


async def test_a_deposed_controller_is_ignored(bus: MemoryBus, target: Path, tmp_path: Path) -> None:
    """Desired state with a lower fencing token than one already seen begins nothing."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.desire(0, fencing_token=7)
    await around.serve(40)
    await trainer.until(lambda shown: num_stored(shown, 40))
    await around.desire(5, fencing_token=6)
    await asyncio.sleep(1.0)
    assert (trainer.shown["desired_round"], trainer.shown["round"]) == (0, 0)
    await around.desire(6, fencing_token=7)
    await around.manifest(1)
    await trainer.stop()


async def test_a_round_waits_for_data_and_says_so(bus: MemoryBus, target: Path, tmp_path: Path) -> None:
    """Level-triggered: the wish stays until there is enough to train on."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.desire(1)
    await around.serve(2)
    await trainer.until(lambda shown: "waits for data" in str(shown["reason"]))
    assert trainer.shown["round"] == 0
    await around.serve(40)
    await around.manifest(1)
    await trainer.stop()


async def test_a_rolled_back_draft_ends_its_line(bus: MemoryBus, target: Path, tmp_path: Path) -> None:
    """After a rollback training starts from what serves, not from what failed."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)

    async def round_(number: int, serving: DraftManifest | None) -> DraftManifest:
        await around.serve(20)
        await trainer.until(lambda shown: num_stored(shown, 20 * number))
        await around.desire(number, serving)
        return await around.manifest(number)

    first = await round_(1, None)
    second = await round_(2, first)
    await around.desire(2, second)
    await eventually(lambda: _served(tmp_path), 10)
    await round_(3, first)
    trained = Rounds(tmp_path / "state").open(3).trained()
    assert trained is not None and trained.started_from == "serving"
    await trainer.stop()


async def _served(tmp_path: Path) -> bool | None:
    return Rounds(tmp_path / "state").open(2).read("served") is not None or None


async def test_a_candidate_that_waits_for_evidence_is_trained_further(
    bus: MemoryBus, target: Path, tmp_path: Path
) -> None:
    """It was not worse than the draft that still serves, so its line goes on; the delta is against what serves."""
    around = Surroundings(bus)
    trainer = Trainer(bus, tmp_path / "state", target)
    await around.serve(40)
    await around.desire(1)
    first = await around.manifest(1)
    for number in (2, 3):
        await around.serve(20)
        await trainer.until(lambda shown, number=number: num_stored(shown, 20 * number + 20))
        await around.desire(number, first)
        manifest = await around.manifest(number)
        assert (manifest.parent_version, manifest.base_version) == (1, 1)
        trained = Rounds(tmp_path / "state").open(number).trained()
        assert trained is not None and trained.started_from == "line"
    await trainer.stop()
