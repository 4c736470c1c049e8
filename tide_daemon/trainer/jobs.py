"""What the worker does: train a round, score drafts. Everything it keeps is on the disk, in the round's folder.

A round resumes: its plan says which samples come in which order, and its progress file holds the newest training
state, so a worker that was killed goes on at most `checkpoint_interval_s` behind. Where training starts from is
decided in line.py, the maths is in session.py, the process around this in worker.py.
"""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tide_daemon.draft import checkpoint
from tide_daemon.draft.checkpoint import Checkpoint
from tide_daemon.errors import StoreError, TideError
from tide_daemon.trainer import evaluate
from tide_daemon.trainer.compute import Compute, choose, told_of_memory
from tide_daemon.trainer.frozen import FrozenTarget, load_frozen
from tide_daemon.trainer.line import Line, Start
from tide_daemon.trainer.pipe import Message
from tide_daemon.trainer.positions import BUCKETS
from tide_daemon.trainer.rounds import Round, Rounds, Trained
from tide_daemon.trainer.sample import Sample
from tide_daemon.trainer.sample_source import SampleSource
from tide_daemon.trainer.scores import HeldOutBucket, HeldOutScore, by_request, to_maps
from tide_daemon.trainer.selection import heldout, select, unseen
from tide_daemon.trainer.session import TrainSession, draft_of
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.wire.records import TargetSpec

Report = Callable[[Message], None]
_REPORT_EVERY_S = 0.5


class StoppedError(Exception):
    """A job was told to stop; its state is on the disk."""


class Jobs:
    """Runs one job at a time."""

    def __init__(self, settings: TrainerSettings, state_dir: Path, target_dir: Path) -> None:
        """Read the target's frozen tensors. Raises StoreError when they cannot be read, or the device is not there."""
        torch.set_num_threads(settings.threads)
        self._settings = settings
        with told_of_memory():
            self._frozen = _read_frozen(target_dir, choose(settings.device))
        self._samples = SampleSource(state_dir / "store", settings)
        self._rounds = Rounds(state_dir)
        self._line = Line(settings, self._rounds, self._frozen, self._samples)

    def run(self, message: Message, stop: threading.Event, report: Report) -> Message:
        """Run one command and return the fields of its "finished" event.

        Raises:
            TideError: refused or failed; what is on the disk is as it was, or goes on from.
            StoppedError: `stop` was set.
        """
        try:
            with told_of_memory():
                return self._run(message, stop, report)
        except OSError as error:
            raise StoreError(f"the disk refused: {error}") from error

    def _run(self, message: Message, stop: threading.Event, report: Report) -> Message:
        spec = TargetSpec(**{**message["spec"], "aux_layer_ids": tuple(message["spec"]["aux_layer_ids"])})
        match message["do"]:
            case "train":
                start = Start(message["serving_dir"], message["serving_digest"], message["rolled_back"])
                self._train(self._rounds.open(message["round"]), start, spec, stop, report)
                return {}
            case "score":
                return self._score(message, spec, stop)
        raise TideError(f"the worker does not know the command {message['do']!r}")

    def _train(self, round_: Round, start: Start, spec: TargetSpec, stop: threading.Event, report: Report) -> None:
        self._samples.refresh()
        plan = self._plan(round_, start)
        session, step = self._line.open(round_, start, spec)
        steps = plan["steps"]
        losses: list[float] = []
        began, cpu_began = time.monotonic(), time.process_time()
        saved_at, reported_at, first_step = began, 0.0, step
        while step < len(steps):
            if stop.is_set():
                self._line.save(round_, step)
                raise StoppedError
            samples = self._samples.batch([(request, index) for request, index in steps[step]], spec)
            loss = self._step(session, samples, step) if samples else None
            if loss is not None:
                losses.append(loss)
            step += 1
            now = time.monotonic()
            if now - saved_at >= self._settings.checkpoint_interval_s:
                self._line.save(round_, step)
                saved_at = time.monotonic()
            if now - reported_at >= _REPORT_EVERY_S or step == len(steps):
                reported_at = now
                pace = (now - began) / (step - first_step)
                report(
                    {
                        "step": step,
                        "num_steps": len(steps),
                        "loss": losses[-1] if losses else 0.0,
                        "num_tokens": plan["num_passed_tokens"] * step // len(steps),
                        "left_s": pace * (len(steps) - step),
                    }
                )
        if not losses:
            raise StoreError(f"round {round_.number} found none of its samples in the store any more")
        self._line.save(round_, step)
        result = session.save(round_.candidate_dir)
        tenth = max(1, len(losses) // 10)
        round_.set_trained(
            Trained(
                content_digest=result.digest,
                serving_digest=start.serving_digest,
                started_from=plan["started_from"],
                num_steps=len(steps),
                num_new_tokens=plan["num_new_tokens"],
                num_passed_tokens=plan["num_passed_tokens"],
                num_train_tokens=plan["num_train_tokens"],
                cursor=plan["cursor"],
                oldest_sample_at=plan["oldest_at"],
                newest_sample_at=plan["newest_at"],
                loss_first=sum(losses[:tenth]) / tenth,
                loss_last=sum(losses[-tenth:]) / tenth,
                wall_s=time.monotonic() - began,
                cpu_s=time.process_time() - cpu_began,
            )
        )

    def _step(self, session: TrainSession, samples: list[Sample], step: int) -> float | None:
        """One optimizer step, None if nothing could be learnt. A loss that is not finite fails the round."""
        try:
            loss = session.step(samples)
        except torch.OutOfMemoryError:
            self._line.forget()  # the step was cut off in its middle
            raise
        if loss is not None and not math.isfinite(loss):
            self._line.forget()
            requests = sorted({sample.request_id[:16] for sample in samples})
            raise StoreError(f"the loss of step {step} is {loss}; samples of requests {requests[:8]}")
        return loss

    def _plan(self, round_: Round, start: Start) -> Message:
        """What this round trains on; made once and kept, so that a resumed round goes on in the same order."""
        plan = round_.read("plan")
        if plan is not None and plan["serving_digest"] == start.serving_digest:
            return plan
        # A plan for another serving draft, or none: whatever was trained for it does not count.
        round_.progress_path.unlink(missing_ok=True)
        if plan is not None:
            self._line.forget()
        requests = self._samples.refresh()
        base = self._line.base(round_, start)
        selection = select(requests, self._settings, base.cursor, round_.number, time.time())
        if not selection.steps:
            raise StoreError("there is nothing to train on: no finished request outside the held-out share")
        plan = {
            "serving_digest": start.serving_digest,
            "started_from": base.kind,
            "steps": selection.steps,
            "num_new_tokens": selection.num_new_tokens,
            "num_passed_tokens": selection.num_passed_tokens,
            "num_train_tokens": base.num_train_tokens + selection.num_new_tokens,
            "new_after": base.cursor,
            "cursor": selection.cursor,
            "oldest_at": selection.oldest_at,
            "newest_at": selection.newest_at,
        }
        round_.write("plan", plan)
        return plan

    def _score(self, message: Message, spec: TargetSpec, stop: threading.Event) -> Message:
        """Drafts on the newest held-out requests; an empty path stands for plain decoding.

        With "unseen_after", a store sequence, on the newest requests of which a draft trained up to it knows nothing.
        """
        stored, cursor = self._samples.refresh(), message.get("unseen_after")
        requests = (
            heldout(stored, self._settings, time.time()) if cursor is None else unseen(stored, self._settings, cursor)
        )
        samples = self._samples.scored(spec, requests, message["max_requests"], message["max_positions"])
        num_steps = self._settings.num_steps
        scored: list[list[evaluate.SampleScore] | None] = []
        for path in message["drafts"]:
            if stop.is_set():
                raise StoppedError
            held = checkpoint.load(path) if path else None
            scored.append(None if held is None else score_draft(held, self._frozen, samples, num_steps))
        return {"scores": to_maps(by_request(_rows(samples, scored)))}


def _rows(samples: list[Sample], scored: list[list[evaluate.SampleScore] | None]) -> list[HeldOutScore]:
    """One row a sample with anything to score; None among `scored` is plain decoding. All drafts have the same starts.

    Empty without a draft.
    """
    known = next((scores for scores in scored if scores is not None), None)
    rows = []
    for i, sample in enumerate(samples if known is not None else ()):
        assert known is not None
        starts = known[i]
        if not starts.num_positions:
            continue
        own = [None if scores is None else scores[i] for scores in scored]
        buckets = [
            HeldOutBucket(
                first_index,
                starts.by_position[place][0],
                tuple(float(starts.by_position[place][0] if s is None else s.by_position[place][1]) for s in own),
            )
            for place, first_index in enumerate(BUCKETS)
            if starts.by_position[place][0]
        ]
        tokens = tuple(float(starts.num_positions if s is None else s.num_tokens) for s in own)
        request = sample.request_id[:16]
        rows.append(
            HeldOutScore(request, sample.workload, starts.first_position, starts.num_positions, tokens, tuple(buckets))
        )
    return rows


def score_draft(
    held: Checkpoint, frozen: FrozenTarget, samples: list[Sample], num_steps: int
) -> list[evaluate.SampleScore]:
    """Score a checkpoint as it is served, from its own files."""
    draft = draft_of(held).to(frozen.compute.device, frozen.compute.dtype)
    return evaluate.score(draft, frozen.embedding, held.vocab_map.target_ids, samples, num_steps)


def _read_frozen(folder: Path, compute: Compute) -> FrozenTarget:
    """The last layer too when it is a plain Llama-like one: a first draft starts from it."""
    try:
        return load_frozen(folder, compute)
    except StoreError:
        return load_frozen(folder, compute, last_layer=False)
