"""Takes hidden-state chunks from the bus into the sample store: fetch, check, store, sync, then acknowledge.

One batch is fetched, the one before it checked and the one before that written, all at the same time. A chunk is
acknowledged only when it is on the disk. Refused ones (damaged, another target) are counted by reason and ended for
good: no retry can mend them. While the disk refuses, what came is held and the broker is told that it is still being
worked on, so that redelivery limits do not eat samples during a long outage; nothing more is fetched.
"""

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog

from tide_daemon.bus.port import Bus, Delivery, Puller, StoredMessage
from tide_daemon.errors import BusError, BusUnavailableError, StoreError, WireError
from tide_daemon.roles.target_spec import SpecKeeper
from tide_daemon.trainer.join import refusal
from tide_daemon.trainer.segments import ChunkMeta
from tide_daemon.trainer.selection import by_workload, heldout, new_tokens, num_finished_after
from tide_daemon.trainer.settings import TrainerSettings
from tide_daemon.trainer.store import SampleStore, StoreLimits
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import HiddenChunk, StoredWorkload

log = structlog.get_logger()

DURABLE = "trainers"
FORGOTTEN = "forgotten"
"""Why a chunk of a request that is to be forgotten is refused."""
_FETCH_WAIT_S = 1.0
_RETRY_S = 2.0
_ENFORCE_EVERY_S = 30.0
_REFRESH_EVERY_S = 0.5
"""Counting what is stored goes through all requests, so a stream of batches does not do it at each one."""

Checked = tuple[ChunkMeta, bytes] | str
"""What is to be stored of a chunk, or why it was refused."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What the store holds, for the report; made in the store's thread.

    Attributes:
        mark, num_since_mark: Ingest.mark at that time, and how many requests were finished behind it.
    """

    num_requests: int = 0
    num_tokens: int = 0
    num_heldout: int = 0
    new_tokens: int = 0
    num_bytes: int = 0
    last_sequence: int = 0
    newest_finished_sequence: int = 0
    mark: int | None = None
    num_since_mark: int = 0
    workloads: tuple[StoredWorkload, ...] = ()


class Ingest:
    """Owner of the sample store and of the pull consumer."""

    def __init__(
        self,
        bus: Bus,
        settings: TrainerSettings,
        folder: Path,
        specs: SpecKeeper,
        now: Callable[[], float],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the store; `beat` is called at each turn of `run`. Raises StoreError when it cannot be used."""
        self._bus = bus
        self._settings = settings
        self._specs = specs
        self._now = now
        self._beat = beat
        limits = StoreLimits(settings.store_max_bytes, settings.store_max_age_s, settings.segment_bytes)
        self._store = SampleStore(folder, limits, now)
        # One thread owns the store: its calls never overlap, and one that began ends even if its waiter is cancelled.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self.refused: Counter[str] = Counter()
        # Requests of which nothing is stored, and who is told when something of one comes; see trainer_forget.py.
        self.forgotten: set[str] = set()
        self.came_late: Callable[[str], None] = lambda request_id: None
        self.problem = ""
        self.stats = StoreStats()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: list[Delivery] = []  # fetched and not yet stored, oldest first
        self._changed = False  # something was stored that the statistics do not count yet
        self._cursor = 0
        # Requests finished after this are counted by themselves; the role sets it when it waits for some.
        self.mark: int | None = None

    async def run(self) -> None:
        """Fetch and store until cancelled. Cancelled, it gives back what it has not stored."""
        self._loop = asyncio.get_running_loop()
        await self._refresh()
        puller = await self._bind()
        now = self._loop.time
        refreshed_at = now()
        fetching = asyncio.create_task(self._fetch(puller))
        storing = asyncio.create_task(self._store_and_answer([], []))
        try:
            while True:
                batch = await fetching
                self._beat()
                if storing.done():
                    storing.result()
                fetching = asyncio.create_task(self._fetch(puller))
                if batch:
                    self._held += batch
                    checked = await self._in_spite_of_the_disk(functools.partial(asyncio.to_thread, self._check, batch))
                    await storing
                    storing = asyncio.create_task(self._store_and_answer(batch, checked))
                if now() - refreshed_at > (_REFRESH_EVERY_S if self._changed else _ENFORCE_EVERY_S):
                    refreshed_at, self._changed = now(), False
                    await self._refresh()
        finally:
            fetching.cancel()
            # What is being written ends soon and is acknowledged, unless the disk refuses.
            await asyncio.wait([storing], timeout=_RETRY_S)
            storing.cancel()
            await asyncio.gather(fetching, storing, return_exceptions=True)
            await self._give_back()
            await puller.close()

    async def _bind(self) -> Puller:
        """The pull consumer, as soon as the broker can be reached."""
        while True:
            try:
                return await self._bus.puller(DURABLE)
            except BusUnavailableError as error:
                log.warning("consumer_not_bound", error=str(error))
            await asyncio.sleep(_RETRY_S)
            self._beat()

    async def _fetch(self, puller: Puller) -> Sequence[Delivery]:
        settings = self._settings
        return await puller.fetch(settings.fetch_max_messages, settings.fetch_max_bytes, _FETCH_WAIT_S)

    async def _store_and_answer(self, batch: Sequence[Delivery], checked: Sequence[Checked]) -> None:
        """Store what can be used, acknowledge it, end what was refused."""
        stored = await self._in_spite_of_the_disk(functools.partial(self._call, self._append, checked))
        self.problem, self._changed = "", True
        del self._held[: len(batch)]
        for delivery, item in zip(batch, stored, strict=True):
            if isinstance(item, str):
                self.refused[item] += 1
                await _tell(delivery.term())
            else:
                await _tell(delivery.ack())

    async def _in_spite_of_the_disk(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it again until the disk lets it be done; what is held is kept from being delivered again meanwhile."""
        while True:
            try:
                return await work()
            except StoreError as error:
                if not self.problem:
                    log.error("samples_not_stored", error=str(error), chunks=len(self._held))
                self.problem = str(error)
            await asyncio.sleep(_RETRY_S)
            self._beat()
            for delivery in tuple(self._held):
                await _tell(delivery.in_progress())

    async def _give_back(self) -> None:
        """What is not stored may be had by another trainer at once."""
        for delivery in self._held:
            await _tell(delivery.nak())

    def _check(self, batch: Sequence[Delivery]) -> list[Checked]:
        return [self._check_one(delivery.message) for delivery in batch]

    def _check_one(self, message: StoredMessage) -> Checked:
        try:
            chunk = envelope.decode(message.data)
            subjects.verify(message.subject, chunk)
        except WireError as error:
            log.warning("chunk_undecodable", subject=message.subject, sequence=message.sequence, error=str(error))
            return "damaged"
        if not isinstance(chunk, HiddenChunk):
            return "other_kind"
        spec = self._specs.offer(chunk.spec)
        if spec is None:
            return "other_target"
        if (reason := refusal(chunk, spec)) is not None:
            return reason
        return (
            ChunkMeta(
                sequence=0,
                request_id=chunk.request_id,
                chunk_index=chunk.chunk_index,
                last=chunk.last,
                incomplete=chunk.incomplete,
                first_position=chunk.first_position,
                num_rows=len(chunk.token_ids),
                num_response=int(chunk.loss_mask.sum()),
                captured_at=chunk.captured_at,
                stored_at=0.0,
                workload=chunk.workload,
            ),
            message.data,
        )

    def _append(self, checked: Sequence[Checked]) -> list[Checked]:
        # In the store's thread, where deletions are made: what is forgotten is deleted before or refused here.
        stored = [FORGOTTEN if self._is_forgotten(item) else item for item in checked]
        self._store.append([item for item in stored if not isinstance(item, str)])
        return stored

    def _is_forgotten(self, item: Checked) -> bool:
        if isinstance(item, str) or item[0].request_id not in self.forgotten:
            return False
        assert self._loop is not None, "set before the first chunk is fetched"
        self._loop.call_soon_threadsafe(self.came_late, item[0].request_id)
        return True

    async def count_from(self, cursor: int) -> None:
        """Tokens of requests finished after this store sequence are new; the role moves it when a round begins.

        They are counted anew at once: tokens that a round has used already must not ask for another one.
        """
        if cursor != self._cursor:
            self._cursor = cursor
            await self._refresh()

    async def _refresh(self) -> None:
        """Apply the limits and bring the statistics up to date."""
        try:
            self.stats = await self._call(self._measure)
        except (OSError, StoreError) as error:
            self.problem = f"cannot apply the sample store's limits: {error}"

    def _measure(self) -> StoreStats:
        self._store.enforce()
        requests = self._store.index.requests
        held = heldout(requests, self._settings, self._now())
        mark = self.mark
        return StoreStats(
            num_requests=len(requests),
            num_tokens=self._store.index.num_response,
            num_heldout=len(held),
            new_tokens=new_tokens(requests, self._settings, self._cursor),
            num_bytes=self._store.num_bytes,
            last_sequence=self._store.last_sequence,
            newest_finished_sequence=max((request.finished_sequence for request in requests.values()), default=0),
            mark=mark,
            num_since_mark=0 if mark is None else num_finished_after(requests, mark),
            workloads=tuple(by_workload(requests, self._settings, self._cursor)),
        )

    async def delete(self, request_id: str) -> int:
        """Remove a request's chunks from the disk; returns how many. Raises StoreError."""
        num_deleted = await self._call(self._store.delete, request_id)
        if num_deleted:
            await self._refresh()
        return num_deleted

    def close(self) -> None:
        """Finish what the store's thread is doing and release the folder. Blocks for at most one append."""
        self._thread.shutdown(wait=True)
        self._store.close()

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the store's thread."""
        work = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def counters(self) -> dict[str, int]:
        """The store's own counters, for the status page."""
        counters = self._store.counters
        return {name: getattr(counters, name) for name in type(counters).__slots__}


async def _tell(word: Coroutine[Any, Any, None]) -> None:
    """Tell the broker something of a chunk. Unheard, the chunk comes again, and the store knows whether it has it."""
    try:
        await word
    except BusError as error:
        log.debug("broker_not_told", error=str(error))
