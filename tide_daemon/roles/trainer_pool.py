"""Scores earlier drafts against the serving one when the controller asks: which of them knows today's traffic?

All drafts are scored by the worker's one evaluator on the same requests, the newest that were finished after the
question came: what was stored before is yesterday's traffic, and no draft has learnt from what came since. The answer
stands in every report for as long as it is wanted. A draft that is not whole on the bus any more, where a node would
have to fetch it, gets no scores; a scoring that fails or takes longer than `pool_limit_s` gives an empty answer, so
that the controller goes on without one. Whether any of them is served again is the controller's choice.
"""

import asyncio

import structlog

from tide_daemon.errors import DraftError, StoreError
from tide_daemon.roles.draft_fetch import DraftFetcher
from tide_daemon.roles.target_spec import plain_spec
from tide_daemon.roles.trainer_ingest import StoreStats
from tide_daemon.trainer.pipe import Message
from tide_daemon.trainer.scores import from_maps, paired
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.trainer.worker_link import JobFailedError, JobStoppedError, WorkerDiedError, WorkerLink
from tide_daemon.wire.records import NO_DRAFT, DesiredTrainer, PoolScore, TargetSpec

log = structlog.get_logger()


class PoolScorer:
    """Answers one pool scoring at a time.

    Attributes:
        number: the scoring that is wanted, 0 for none.
        mark: store sequence behind which requests count for it, None while none is wanted.
        scores: its answer, None while there is none.
    """

    def __init__(self, settings: TrainerSettings, link: WorkerLink, fetcher: DraftFetcher) -> None:
        self._settings = settings
        self._link = link
        self._fetcher = fetcher
        self.number = 0
        self.mark: int | None = None
        self.scores: tuple[PoolScore, ...] | None = None

    def follow(self, desired: DesiredTrainer, newest_sequence: int) -> None:
        """Take in what is wanted now; another number begins anew behind the newest request that is stored."""
        if desired.pool_scoring == self.number:
            return
        self.number, self.scores = desired.pool_scoring, None
        self.mark = newest_sequence if self.number else None

    def is_due(self, desired: DesiredTrainer, stats: StoreStats) -> bool:
        """Whether there are enough requests, and no answer yet."""
        counted = self.mark is not None and stats.mark == self.mark
        return counted and self.scores is None and stats.num_since_mark >= desired.pool_requests

    async def score(self, desired: DesiredTrainer, spec: TargetSpec) -> None:
        """Make the answer.

        Raises:
            BusError: the broker is away; call again.
            DraftError: the serving draft cannot be had.
        """
        if desired.serving_version == NO_DRAFT:
            self.scores = ()
            return
        try:
            async with asyncio.timeout(self._settings.pool_limit_s):
                self.scores = await self._score(desired, spec)
        except (TimeoutError, JobFailedError, JobStoppedError, WorkerDiedError) as error:
            log.warning("pool_not_scored", scoring=self.number, error=str(error) or type(error).__name__)
            self.scores = ()

    async def _score(self, desired: DesiredTrainer, spec: TargetSpec) -> tuple[PoolScore, ...]:
        serving_dir = str(await self._fetcher.fetch(spec, desired.serving_version, desired.serving_digest))
        paths: dict[int, str] = {}
        for version, digest in desired.pool:
            try:
                if await self._fetcher.is_published(spec, version, digest):
                    paths[version] = str(await self._fetcher.fetch(spec, version, digest))
            except (DraftError, StoreError) as error:
                log.warning("earlier_draft_not_held", version=version, error=str(error))
        command: Message = {
            "do": "score",
            "spec": plain_spec(spec),
            "drafts": [serving_dir, *paths.values()],
            "max_requests": desired.pool_requests,
            "max_positions": self._settings.score_max_positions,
            "unseen_after": self.mark,
        }
        event = await self._link.run(command, lambda progress: None)
        scores = from_maps(event["scores"])
        order = {version: index for index, version in enumerate(paths, start=1)}
        serving, num_steps = desired.serving_version, self._settings.num_steps
        log.info("pool_scored", scoring=self.number, drafts=sorted(paths), requests=len(scores))
        return tuple(
            PoolScore(version, serving, num_steps, paired(scores, order[version]) if version in order else ())
            for version, _ in desired.pool
        )
