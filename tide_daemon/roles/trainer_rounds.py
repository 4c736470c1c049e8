"""Runs training rounds to their end: train, score, publish; whatever is missing on the disk is the next step.

Which round, and against which serving draft, is the controller's choice (DesiredTrainer); this part only carries it
out. Everything it does can be cut off and called again: the worker resumes from its checkpoint, scores are made anew,
publishing goes on where it was. Training does not need the bus. What a round is on the disk: trainer/rounds.py.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from tide_daemon.bus.port import Bus
from tide_daemon.draft import checkpoint
from tide_daemon.errors import BusError, StoreError
from tide_daemon.roles.draft_catalog import Listed, chain
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.roles.draft_publish import Base, Publisher
from tide_daemon.roles.target_spec import plain_spec
from tide_daemon.trainer.pipe import Message
from tide_daemon.trainer.rounds import Round, Rounds
from tide_daemon.trainer.scores import accept_lengths, by_workload, from_kept, from_maps, kept, paired
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.trainer.worker_link import JobFailedError, JobStoppedError, WorkerDiedError, WorkerLink
from tide_daemon.wire.records import NO_DRAFT, DesiredTrainer, DraftManifest, RequestScore, ShadowScore, TargetSpec

log = structlog.get_logger()

_RETRY_S = 2.0
_MAX_DEATHS = 5
"""Deaths of the worker in a row, without a step of progress between, after which a round is given up."""


@dataclass(slots=True)
class Progress:
    """What the report says of the running round.

    Attributes:
        state: as in TrainerReport.
        left_s: expected seconds until training is complete, 0.0 if unknown.
        reason: why it waits or failed, "" otherwise.
    """

    state: str = "waiting"
    round: int = 0
    step: int = 0
    num_steps_total: int = 0
    loss: float = 0.0
    num_passed_tokens: int = 0
    left_s: float = 0.0
    reason: str = ""
    shadow: tuple[ShadowScore, ...] = ()
    last_scores: tuple[RequestScore, ...] = field(default=())


class RoundRunner:
    """Carries out rounds, one at a time."""

    def __init__(
        self,
        bus: Bus,
        settings: TrainerSettings,
        state_dir: Path,
        link: WorkerLink,
        fetcher: DraftFetcher,
        versions: Callable[[], dict[int, Listed]],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`versions` tells what is published, see draft_catalog.py."""
        self._bus = bus
        self._settings = settings
        self._link = link
        self._fetcher = fetcher
        self._versions = versions
        self._now = now
        self._seen_serving: tuple[int, str] = (NO_DRAFT, "")
        self._to_score = ""
        self.rounds = Rounds(state_dir)
        self.num_published = 0
        self.progress = Progress(round=self.last_begun())

    def pending(self) -> Round | None:
        """A round that was begun and is neither published nor given up."""
        newest = self.rounds.last_begun()
        if newest is None or newest.read("published") is not None or newest.read("failed") is not None:
            return None
        return newest

    def last_begun(self) -> int:
        """Number of the newest round that was begun, 0 if none."""
        newest = self.rounds.last_begun()
        return newest.number if newest is not None else 0

    def cursor(self) -> int:
        """Store sequence up to which samples belong to a round that was begun."""
        pending = self.pending()
        if pending is not None and (plan := pending.read("plan")) is not None:
            return int(plan["cursor"])
        last = self.rounds.last_trained()
        trained = last.trained() if last is not None else None
        return trained.cursor if trained is not None else 0

    async def run(self, number: int, wanted: Callable[[], DesiredTrainer], spec: TargetSpec) -> DraftManifest | None:
        """Bring a round to its end; None when it failed (the reason is in `progress`).

        Args:
            number: a pending round's, or a new one's.
            wanted: the desired state by now. Which draft serves may change while a round is trained; the candidate is
                scored against the one that serves when training is complete.

        Raises:
            asyncio.CancelledError: cancelled between any two steps; call again to go on.
            DraftError: the serving draft cannot be had.
        """
        round_ = self.rounds.open(number)
        before = self.progress
        self.progress = Progress("training", number, shadow=before.shadow, last_scores=before.last_scores)
        try:
            if round_.read("trained") is None:
                desired = wanted()
                await self._train(round_, desired, spec, await self._serving_dir(desired, spec))
            self.progress.state = "scoring"
            desired = wanted()
            serving_dir = await self._serving_dir(desired, spec)
            scores = await self._score(round_, desired, spec, serving_dir)
            self.progress.state = "publishing"
            manifest = await self._publish(round_, desired, spec, serving_dir, scores)
        except JobStoppedError:
            self.progress.state = "waiting"
            raise
        except (JobFailedError, WorkerDiedError, StoreError) as error:
            self._give_up(round_, str(error))
            return None
        self.progress.state = "waiting"
        self.num_published += 1
        self.rounds.prune()
        return manifest

    def _give_up(self, round_: Round, reason: str) -> None:
        log.error("round_failed", round=round_.number, reason=reason)
        self.progress.state, self.progress.reason = "failed", reason
        try:
            round_.write("failed", {"reason": reason})
        except StoreError as error:
            # The disk is full: it is tried again after a restart, which is right.
            log.error("round_not_marked", round=round_.number, error=str(error))

    async def _serving_dir(self, desired: DesiredTrainer, spec: TargetSpec) -> str:
        """Folder of the serving draft, "" for none; waits for the bus as long as it takes."""
        if desired.serving_version == NO_DRAFT:
            return ""
        while True:
            try:
                folder = await self._fetcher.fetch(spec, desired.serving_version, desired.serving_digest)
                self.progress.reason = ""
                return str(folder)
            except BusError as error:
                self.progress.reason = f"cannot fetch the serving draft: {error}"
            await asyncio.sleep(_RETRY_S)

    async def _train(self, round_: Round, desired: DesiredTrainer, spec: TargetSpec, serving_dir: str) -> None:
        started = time.monotonic()
        last = self.rounds.last_trained(before=round_.number)
        command: Message = {
            "do": "train",
            "round": round_.number,
            "spec": plain_spec(spec),
            "serving_dir": serving_dir,
            "serving_digest": desired.serving_digest,
            "rolled_back": last is not None and self._was_rolled_back(last, desired),
        }
        await self._job(command)
        trained = round_.trained()
        assert trained is not None
        log.info(
            "round_trained",
            round=round_.number,
            started_from=trained.started_from,
            steps=trained.num_steps,
            new_tokens=trained.num_new_tokens,
            passed_tokens=trained.num_passed_tokens,
            loss_first=round(trained.loss_first, 4),
            loss_last=round(trained.loss_last, 4),
            cpu_ms_per_new_token=round(1000 * trained.cpu_s / max(1, trained.num_new_tokens), 2),
            wall_s=round(time.monotonic() - started, 1),
        )

    def _was_rolled_back(self, last: Round, desired: DesiredTrainer) -> bool:
        """The last round's draft was serving once and is not now: its line of training is not to be continued."""
        trained, served = last.trained(), last.read("served")
        return trained is not None and served is not None and trained.content_digest != desired.serving_digest

    def note_serving(self, desired: DesiredTrainer) -> None:
        """Remember when a draft of ours is seen serving; shadow scores of another one are over. Raises StoreError."""
        serving = (desired.serving_version, desired.serving_digest)
        if serving == self._seen_serving:
            return
        self._to_score = desired.serving_digest
        self.progress.shadow = ()
        for round_ in self.rounds.all():
            trained = round_.trained()
            if trained is not None and trained.content_digest == serving[1]:
                round_.write("served", {"version": serving[0]})
        self._seen_serving = serving

    async def _score(
        self, round_: Round, desired: DesiredTrainer, spec: TargetSpec, serving_dir: str
    ) -> tuple[RequestScore, ...]:
        """Candidate against the draft that is serving now, on the newest held-out requests."""
        held = round_.read("scores")
        if held is not None and held["serving_digest"] == desired.serving_digest:
            scores = from_kept(held["scores"])
        else:
            command: Message = {
                "do": "score",
                "spec": plain_spec(spec),
                "drafts": [serving_dir, str(round_.candidate_dir)],
                "max_requests": self._settings.heldout_max_requests,
                "max_positions": self._settings.score_max_positions,
            }
            event = await self._job(command)
            scores = paired(from_maps(event["scores"]))
            round_.write("scores", {"serving_digest": desired.serving_digest, "scores": kept(scores)})
        self.progress.last_scores = scores
        serving, candidate = accept_lengths(scores)
        log.info(
            "round_scored",
            round=round_.number,
            requests=len(scores),
            positions=sum(score.num_positions for score in scores),
            serving_accept_length=round(serving, 4),
            candidate_accept_length=round(candidate, 4),
        )
        return scores

    async def shadow(self, desired: DesiredTrainer, spec: TargetSpec) -> None:
        """Score the serving draft alone on the newest requests that it has not learnt; plain decoding is not scored.

        It is how a draft's acceptance is known while nothing is speculated, so it looks at what is served right now.

        Raises:
            DraftError: the serving draft cannot be had.
        """
        if desired.serving_version == NO_DRAFT:
            self.progress.shadow = ()
            return
        serving_dir = await self._serving_dir(desired, spec)
        command: Message = {
            "do": "score",
            "spec": plain_spec(spec),
            "drafts": [serving_dir],
            "max_requests": self._settings.shadow_max_requests,
            "max_positions": self._settings.score_max_positions,
            "unseen_after": self._learnt_until(desired.serving_digest),
        }
        try:
            event = await self._job(command)
        except (JobFailedError, WorkerDiedError) as error:
            log.warning("shadow_score_failed", error=str(error))
            return
        # Reports name the draft that serves by now; what was scored meanwhile may be another one.
        if desired.serving_digest == self._to_score:
            self.progress.shadow = by_workload(from_maps(event["scores"]))

    def _learnt_until(self, digest: str) -> int:
        """Store sequence up to which a draft has learnt; that of the newest round when it is not known of this one."""
        for round_ in self.rounds.all():
            trained = round_.trained()
            if trained is not None and trained.content_digest == digest:
                return trained.cursor
        return self.cursor()

    async def _publish(
        self,
        round_: Round,
        desired: DesiredTrainer,
        spec: TargetSpec,
        serving_dir: str,
        scores: tuple[RequestScore, ...],
    ) -> DraftManifest:
        settings = self._settings
        publisher = Publisher(self._bus, spec, settings.name, settings.anchor_interval, self._now)
        base = None
        if serving_dir:
            held = await asyncio.to_thread(checkpoint.load, serving_dir, desired.serving_digest)
            links = chain(self._versions(), desired.serving_version)
            # An unlisted chain cannot be followed by a reader that has no base: publish dense.
            length = len(links) - 1 if links is not None else settings.anchor_interval
            base = Base(desired.serving_version, held, length)
        while True:
            hint = max([desired.serving_version, *self._versions(), *self._own_versions()])
            try:
                manifest = await publisher.publish(round_, scores, settings.num_steps, base, hint)
                break
            except BusError as error:
                if not self.progress.reason:
                    log.warning("draft_not_published", round=round_.number, error=str(error))
                self.progress.reason = f"cannot publish round {round_.number}: {error}"
            await asyncio.sleep(_RETRY_S)
        self.progress.reason = ""
        await self._fetcher.adopt(manifest.version, round_.candidate_dir, manifest.content_digest)
        round_.write("published", {"version": manifest.version, "digest": manifest.content_digest})
        return manifest

    def _own_versions(self) -> list[int]:
        """Numbers that this trainer has used: not to be used again even if the broker lost its streams."""
        published = [round_.read("published") for round_ in self.rounds.all()]
        return [int(held["version"]) for held in published if held is not None]

    async def _job(self, command: Message) -> Message:
        """Run a job to its end over deaths of the worker, which resumes from its checkpoint."""
        deaths, seen_step = 0, -1
        while True:
            try:
                return await self._link.run(command, self._on_progress)
            except WorkerDiedError as error:
                deaths = deaths + 1 if self.progress.step <= seen_step else 1
                seen_step = self.progress.step
                self.progress.reason = str(error)
                if deaths >= _MAX_DEATHS:
                    raise
            await asyncio.sleep(_RETRY_S)

    def _on_progress(self, event: Message) -> None:
        progress = self.progress
        progress.step, progress.num_steps_total = event["step"], event["num_steps"]
        progress.loss, progress.left_s = event["loss"], event["left_s"]
        progress.num_passed_tokens = event["num_tokens"]
        progress.reason = ""
