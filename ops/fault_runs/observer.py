"""Watches the bus from beside: what the streams hold and what was acknowledged, for the ledger."""

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from benches.takeover_ledger import Ledger

from fault_runs.ledger import Chunk, Drafts, Samples
from fault_runs.stage import Stage
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.port import StoredMessage
from tide_daemon.bus.reopening import ReopeningBus
from tide_daemon.errors import BusError, StoreError, WireError
from tide_daemon.trainer.segments import list_segments, scan
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import (
    Decision,
    DesiredServer,
    DesiredTrainer,
    DraftManifest,
    HiddenChunk,
    NodeReport,
    Record,
)

Place = tuple[int, int]
"""Fencing token and sequence of a journal entry."""
_POLL_S = 0.5
ARRIVAL_S = 2.0
"""What was journalled so long ago must stand as desired state, if its leader lives."""


class Observer:
    """Follows the streams across every fault while entered."""

    def __init__(self, stage: Stage, model: str) -> None:
        self._stage = stage
        self._model = model
        self.samples = Samples()
        self.drafts = Drafts()
        self.reports: list[NodeReport] = []
        self.entries: dict[Place, Decision] = {}
        self.num_undecodable = 0
        self.hostile: set[Chunk] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        stage = self._stage
        connect = functools.partial(JetStreamBus.connect, stage.connect_settings("observer"), stage.topology)
        self._bus = await ReopeningBus(stage.topology, connect, JetStreamBus.verify, told=lambda _: None).__aenter__()
        model = self._model
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self._follow(subjects.all_hidden(model)),
                self._follow(subjects.all_manifests(model)),
                self._follow(subjects.journal(model)),
                self._follow(subjects.all_reports(model, "server")),
                self._acknowledgements(),
            )
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._bus.close()

    def check(self) -> None:
        """Raises what one of our own readers raised."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def _follow(self, subject: str) -> None:
        async for message in self._bus.tail(subject, since="all"):
            record = decoded(message)
            if record is None:
                self.num_undecodable += 1
            elif isinstance(record, HiddenChunk):
                chunk = (record.request_id, record.chunk_index)
                if chunk not in self.hostile and record.spec == self._stage.spec:
                    self.samples.seen(message.sequence, chunk)
            elif isinstance(record, DraftManifest):
                self.drafts.seen(record.version, record.content_digest)
            elif isinstance(record, Decision):
                self.entries[record.fencing_token, record.sequence] = record
            elif isinstance(record, NodeReport):
                self.reports.append(record)

    async def _acknowledgements(self) -> None:
        while True:
            state = await self._stage.consumer()
            if state:
                self.samples.acknowledged_up_to(int(state["ack_floor"]["stream_seq"]))
            await asyncio.sleep(_POLL_S)

    async def drained(self, within_s: float = 60.0) -> bool:
        """Wait until the trainers have taken all that was there when this was called."""
        until = time.monotonic() + within_s
        first = await self._stage.consumer()
        wanted = int(first["delivered"]["stream_seq"]) + int(first["num_pending"]) if first else 0
        while time.monotonic() < until:
            state = await self._stage.consumer()
            if state and int(state["ack_floor"]["stream_seq"]) >= wanted > 0:
                self.samples.acknowledged_up_to(int(state["ack_floor"]["stream_seq"]))
                return True
            await asyncio.sleep(_POLL_S)
        return False

    def stored(self) -> Counter[Chunk]:
        """What the trainer's files hold, read from outside. Call it once acknowledgements are known, not before."""
        found: Counter[Chunk] = Counter()
        for folder in self._stage.folder.glob("trainer*/trainer/store"):
            for path in list_segments(folder).values():
                with contextlib.suppress(FileNotFoundError, StoreError):
                    entries, _ = scan(path, check_bodies=True)
                    found.update((entry.meta.request_id, entry.meta.chunk_index) for entry in entries)
        return found

    async def manifests(self) -> dict[int, str]:
        """Digest by version, as the bus holds them now."""
        found = await self._stored_records(subjects.all_manifests(self._model))
        return {record.version: record.content_digest for record in found if isinstance(record, DraftManifest)}

    async def decisions(self) -> tuple[int, int, dict[str, int]]:
        """How many decisions were lost and how many were taken twice, over the whole run; kinds of both."""
        seen = set(self.entries)  # by now: later ones may come behind what is read below
        earlier = Ledger()
        for record in await self._journal():
            earlier.journalled(record)
        await asyncio.sleep(ARRIVAL_S)
        # Desired state before the journal that explains it: entries come first, so none can be missing there.
        desired = await self._stored_records(subjects.all_control(self._model))
        ledger, present = Ledger(), set[Place]()
        for record in await self._journal():
            present.add((record.fencing_token, record.sequence))
            ledger.journalled(record)
        for found in desired:
            if isinstance(found, DesiredServer | DesiredTrainer):
                ledger.desired(found)
        ledger.arrived(earlier.asked())
        ledger.close()
        ledger.lost["an entry is gone"] += len(seen - present)
        return ledger.lost.total(), ledger.doubled.total(), dict(+ledger.lost + +ledger.doubled)

    async def _journal(self) -> list[Decision]:
        found = await self._stored_records(subjects.journal(self._model))
        return [record for record in found if isinstance(record, Decision)]

    async def _stored_records(self, subject: str) -> list[Record]:
        found: list[Record] = []
        async with self._stage.bus() as bus, contextlib.aclosing(bus.tail(subject, since="all")) as stored:
            now = time.time()
            with contextlib.suppress(TimeoutError, BusError):
                while (message := await asyncio.wait_for(anext(stored), 2.0)).stored_at < now:
                    record = decoded(message)
                    if record is not None:
                        found.append(record)
        return found


def decoded(message: StoredMessage) -> Record | None:
    """The record, None for what no reader takes."""
    try:
        record = envelope.decode(message.data)
        subjects.verify(message.subject, record)
    except WireError:
        return None
    return record


async def records(messages: AsyncIterator[StoredMessage]) -> AsyncIterator[Record]:
    """What a tail delivers and a reader takes."""
    async for message in messages:
        record = decoded(message)
        if record is not None:
            yield record
