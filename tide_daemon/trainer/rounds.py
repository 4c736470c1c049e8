"""Rounds on disk: what is planned, trained, scored and published, so that each step survives a kill.

    rounds/00000007/
        plan.json             which samples in which order, and what training starts from; written first
        progress.safetensors  newest training state, its step in the metadata; the next round may go on from it
        counts.npy            how often each token was seen, for the draft's vocabulary
        candidate/            the draft that came out
        trained.json          training is complete; written after candidate/
        scores.json           candidate against serving draft on held-out requests
        claim.json            the version number that is being taken for it; written before the claim is published
        published.json        the manifest is on the bus
        served.json           it was seen serving
        failed.json           why it was given up

Each file is written under a temporary name, synced and renamed, so it is whole or absent; the next step is whatever
file is missing first. No torch here: daemon and worker both use it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tide_daemon.errors import StoreError
from tide_daemon.trainer.segments import sync_folder

KEPT_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """Result of a round's training.

    Attributes:
        content_digest: of candidate/.
        started_from: "nothing", "serving" (its weights) or "line" (the last round's training state).
        num_steps: optimizer steps of the round.
        num_new_tokens, num_passed_tokens: response tokens, new ones and all that were passed through.
        num_train_tokens: new tokens of this round and of every one it builds on.
        cursor: store sequence up to which samples are no longer new.
        oldest_sample_at, newest_sample_at: unix seconds, 0.0 if none.
        loss_first, loss_last: mean over the first and last tenth of the steps.
        wall_s, cpu_s: of the training steps.
    """

    content_digest: str
    serving_digest: str
    started_from: str
    num_steps: int
    num_new_tokens: int
    num_passed_tokens: int
    num_train_tokens: int
    cursor: int
    oldest_sample_at: float
    newest_sample_at: float
    loss_first: float
    loss_last: float
    wall_s: float
    cpu_s: float


class Round:
    """One round's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = int(folder.name)

    @property
    def candidate_dir(self) -> Path:
        """Where the draft that came out is."""
        return self.folder / "candidate"

    @property
    def progress_path(self) -> Path:
        """Where the newest training state is."""
        return self.folder / "progress.safetensors"

    @property
    def counts_path(self) -> Path:
        """Where the token counts are."""
        return self.folder / "counts.npy"

    def read(self, name: str) -> dict[str, Any] | None:
        """A file's map, None while it is absent. `name` without ".json".

        Raises:
            StoreError: it cannot be read, or is not what this module writes.
        """
        path = self.folder / f"{name}.json"
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}; delete {self.folder} to begin that round anew") from error
        if not isinstance(value, dict):
            raise StoreError(f"{path} does not hold a map; delete {self.folder} to begin that round anew")
        return value

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Put a file in place, whole. Raises StoreError when the disk refuses."""
        write_json(self.folder / f"{name}.json", value)

    def trained(self) -> Trained | None:
        """Result of training, None while it is not complete."""
        value = self.read("trained")
        return Trained(**value) if value is not None else None

    def set_trained(self, result: Trained) -> None:
        """Mark training as complete; candidate/ must be in place."""
        self.write("trained", asdict(result))

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Rounds:
    """All rounds of a trainer, newest last."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "rounds"

    def all(self) -> list[Round]:
        """In order of their numbers."""
        if not self._folder.is_dir():
            return []
        return [Round(path) for path in sorted(self._folder.iterdir()) if path.name.isdigit()]

    def last_begun(self) -> Round | None:
        """The newest round that has a plan or was given up; a folder alone is a round that was not begun."""
        for round_ in reversed(self.all()):
            if any((round_.folder / f"{name}.json").exists() for name in ("plan", "failed")):
                return round_
        return None

    def last_trained(self, before: int | None = None) -> Round | None:
        """The newest round (below `before`) whose training is complete: the end of the line of training."""
        found = [r for r in self.all() if (before is None or r.number < before) and r.read("trained") is not None]
        return found[-1] if found else None

    def open(self, number: int) -> Round:
        """The folder of a round, made if it is not there. Raises StoreError when the disk refuses."""
        folder = self._folder / f"{number:08d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error}") from error
        return Round(folder)

    def prune(self) -> None:
        """Drop all but the newest rounds and the newest trained ones; what is older was published or given up."""
        rounds = self.all()
        trained = [r for r in rounds if (r.folder / "trained.json").exists()]
        kept = {r.number for r in rounds[-KEPT_ROUNDS:] + trained[-KEPT_ROUNDS:]}
        for old in rounds:
            if old.number not in kept:
                old.discard()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file under a temporary name, sync, rename. Raises StoreError when the disk refuses."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
