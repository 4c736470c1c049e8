"""The line of training: what a round starts from, and the training state that is carried from round to round.

A round goes on from

- the line, the state that the last round ended with, optimizer included: when that round's draft is serving now; when
  nothing serves; or when the serving draft is still the one that the candidate was scored against and the candidate
  was not worse (the gate may have wanted more evidence, and training forgotten is training lost);
- else the serving draft's weights, with a fresh optimizer;
- else nothing: a first draft, its vocabulary counted on the traffic seen so far.

At its beginning a round lets the draft's vocabulary follow the traffic (TrainSession.revise_vocabulary).

A draft that was serving and was rolled back ends its line: whatever was wrong with it would be in its heirs.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tide_daemon.draft import checkpoint
from tide_daemon.errors import StoreError
from tide_daemon.trainer.frozen import FrozenTarget
from tide_daemon.trainer.index import StoredRequest
from tide_daemon.trainer.rounds import Round, Rounds
from tide_daemon.trainer.sample_source import SampleSource
from tide_daemon.trainer.scores import accept_lengths, from_kept
from tide_daemon.trainer.segments import sync_folder
from tide_daemon.trainer.selection import trainable
from tide_daemon.trainer.session import INIT_ROWS, TrainSession
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire.records import TargetSpec

_COUNT_MEMORY = 0.97


@dataclass(frozen=True, slots=True)
class Start:
    """What a round is told. `serving_dir` and `serving_digest` are "" when nothing serves."""

    serving_dir: str
    serving_digest: str
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class Base:
    """What a round starts from.

    Attributes:
        kind: "line", "serving" or "nothing".
        cursor: store sequence from which samples are new.
        num_train_tokens: new response tokens that the base was trained on.
    """

    kind: str
    cursor: int
    num_train_tokens: int


class Line:
    """Owner of the training session that is in memory, and of the progress files."""

    def __init__(self, settings: TrainerSettings, rounds: Rounds, frozen: FrozenTarget, samples: SampleSource) -> None:
        self._settings = settings
        self._rounds = rounds
        self._frozen = frozen
        self._samples = samples
        self._session: TrainSession | None = None
        self._at: tuple[int, int] = (0, 0)
        """(round, step) of the session in memory."""

    def base(self, round_: Round, start: Start) -> Base:
        """What a round that has no plan yet shall start from."""
        last = self._rounds.last_trained(before=round_.number)
        trained = last.trained() if last is not None else None
        if last is None or trained is None:
            return Base("serving" if start.serving_dir else "nothing", 0, 0)
        goes_on = last.progress_path.exists() and (
            not start.serving_dir
            or trained.content_digest == start.serving_digest
            or (not start.rolled_back and _is_promising(last, start))
        )
        kind = "line" if goes_on else "serving" if start.serving_dir else "nothing"
        return Base(kind, trained.cursor, trained.num_train_tokens)

    def open(self, round_: Round, start: Start, spec: TargetSpec) -> tuple[TrainSession, int]:
        """The session of a round that has a plan, and the step to go on with.

        Raises:
            StoreError, DraftError: the state or the serving draft cannot be read.
        """
        plan = round_.read("plan")
        assert plan is not None
        if self._session is not None and self._at[0] == round_.number:
            return self._session, self._at[1]
        if round_.progress_path.exists():
            session, step = TrainSession.load_state(round_.progress_path, self._frozen, self._settings)
        else:
            session, step = self._begin(round_, start, spec, plan), 0
        self._session, self._at = session, (round_.number, step)
        return session, step

    def _begin(self, round_: Round, start: Start, spec: TargetSpec, plan: dict[str, Any]) -> TrainSession:
        counts = self._count(round_, spec, plan["new_after"], plan["cursor"])
        if plan["started_from"] == "nothing":
            new = self._new_requests(plan["new_after"], plan["cursor"])
            samples = self._samples.rows(spec, new, INIT_ROWS)
            return TrainSession.fresh(spec, counts, samples, self._frozen, self._settings)
        if plan["started_from"] == "line":
            session = self._last_session(round_)
        else:
            held = checkpoint.load(start.serving_dir, start.serving_digest)
            session = TrainSession.from_checkpoint(held, self._frozen, self._settings)
        session.revise_vocabulary(counts, self._frozen)
        return session

    def _count(self, round_: Round, spec: TargetSpec, new_after: int, cursor: int) -> NDArray[np.float64]:
        """How often each token is expected: what earlier rounds counted, fading, and this round's new requests."""
        new = self._new_requests(new_after, cursor)
        counts = self._samples.token_counts(spec, new[-self._settings.count_requests :])
        last = self._rounds.last_trained(before=round_.number)
        if last is not None and last.counts_path.exists():
            counts += _COUNT_MEMORY * _read_counts(last.counts_path, spec.vocab_size)
        try:
            np.save(round_.counts_path, counts, allow_pickle=False)
        except OSError as error:
            raise StoreError(f"cannot write {round_.counts_path}: {error}") from error
        return counts

    def _new_requests(self, new_after: int, cursor: int) -> list[StoredRequest]:
        found = trainable(self._samples.refresh(), self._settings)
        return [request for request in found if new_after < request.finished_sequence <= cursor]

    def _last_session(self, round_: Round) -> TrainSession:
        """The state that the last trained round ended with."""
        last = self._rounds.last_trained(before=round_.number)
        if last is None:
            raise StoreError(f"round {round_.number} was to go on from a round that is gone")
        if self._session is not None and self._at[0] == last.number:
            return self._session
        session, _ = TrainSession.load_state(last.progress_path, self._frozen, self._settings)
        return session

    def save(self, round_: Round, step: int) -> None:
        """Write the progress file. Raises StoreError when the disk refuses; the older file stays."""
        assert self._session is not None
        self._at = (round_.number, step)
        temporary = round_.progress_path.with_suffix(".tmp")
        try:
            self._session.save_state(temporary, step)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(round_.progress_path)
            sync_folder(round_.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(f"cannot write {round_.progress_path}: {error}") from error

    def forget(self) -> None:
        """Drop the session in memory: it is not to be trusted any more."""
        self._session = None


def _read_counts(path: Path, vocab_size: int) -> NDArray[np.float64]:
    """Counts of an earlier round; zeros if the file is torn: they are a hint, and the traffic fills them again."""
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return np.zeros(vocab_size)
    return counts if counts.shape == (vocab_size,) and counts.dtype == np.float64 else np.zeros(vocab_size)


def _is_promising(last: Round, start: Start) -> bool:
    """The last candidate was scored against the draft that is still serving, and was not worse."""
    held = last.read("scores")
    if held is None or held["serving_digest"] != start.serving_digest:
        return False
    serving, candidate = accept_lengths(from_kept(held["scores"]))
    return candidate >= serving
