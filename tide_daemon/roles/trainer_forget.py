"""Obeys requests to forget samples: from the store, from the stream, and a word about it.

The requests stand in TIDE_FORGET for longer than any store keeps samples, and every start reads all of them, so that a
trainer that was away, or one that is given an old disk, deletes what it must before it trains on it. In this order:

1. the id is refused by the ingest from now on, so that nothing of it is stored any more;
2. its chunks are deleted from the store (the segments that hold them are written anew without them);
3. its messages are erased from TIDE_HIDDEN, found by their ids without reading states. Several trainers may do that at
   once: each message is erased, and counted, by one of them;
4. the answer is published, all of this trainer's erasures of that request together.

A kill in between: the request has no answer of ours behind it, so the next start does it again. A chunk that comes
later, from a server that had not heard yet, is refused by the ingest and has 3 and 4 done again.
"""

import asyncio
import time
from collections.abc import Container
from dataclasses import dataclass

import structlog

from tide_daemon.bus.permissions import forget_reader
from tide_daemon.bus.port import Bus
from tide_daemon.errors import BusError, StoreError, WireError
from tide_daemon.roles.trainer_ingest import Ingest
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import ForgetSamples, SamplesForgotten

log = structlog.get_logger()

STREAM = "TIDE_HIDDEN"
_TOGETHER_S = 0.2
"""Requests that come within this share one look at the stream."""
_RETRY_S = 2.0


@dataclass(slots=True)
class _Due:
    """One request that is to be forgotten.

    Attributes:
        sequence: stream sequence of the newest demand; an answer of ours behind it is enough.
        again: look at the stream in any case.
        num_stored, num_streamed: erased and not yet told.
    """

    sequence: int = 0
    again: bool = False
    num_stored: int = 0
    num_streamed: int = 0


class Forgetter:
    """One for a trainer. `follow` and `work` run beside each other.

    Attributes:
        problem: why something that is to be forgotten is still there, "" if nothing is.
        num_forgotten: requests of which this process erased something.
    """

    def __init__(self, bus: Bus, model: str, trainer: str, ingest: Ingest) -> None:
        self._bus = bus
        self._model = model
        self._trainer = trainer
        self._ingest = ingest
        self._due: dict[str, _Due] = {}
        self._changed = asyncio.Event()
        self.problem = ""
        self.num_forgotten = 0
        ingest.came_late = self._came_late

    async def follow(self) -> None:
        """Take in every request that stands, oldest first, and those that come."""
        async for message in self._bus.tail(subjects.all_forgets(self._model), since="all"):
            try:
                record = envelope.decode(message.data)
                subjects.verify(message.subject, record)
            except WireError as error:
                log.warning("forget_undecodable", subject=message.subject, error=str(error))
                continue
            if isinstance(record, ForgetSamples):
                self._ingest.forgotten.add(record.request_id)
                self._due.setdefault(record.request_id, _Due()).sequence = message.sequence
                self._changed.set()

    def _came_late(self, request_id: str) -> None:
        self._due.setdefault(request_id, _Due()).again = True
        self._changed.set()

    async def work(self) -> None:
        """Do what is due, again until it is done."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_TOGETHER_S)
            self._changed.clear()
            try:
                await self._forget_all()
                self.problem = ""
            except (BusError, StoreError) as error:
                if not self.problem:
                    log.warning("samples_not_forgotten", error=str(error), requests=len(self._due))
                self.problem = f"samples that are to be forgotten are still held: {error}"
                self._changed.set()
                await asyncio.sleep(_RETRY_S)

    async def _forget_all(self) -> None:
        # Those that come meanwhile, or are asked for again, wait for the next turn.
        turn = {request_id: due.sequence for request_id, due in self._due.items()}
        sought: dict[str, SamplesForgotten | None] = {}
        for request_id, sequence in turn.items():
            due = self._due[request_id]
            due.num_stored += await self._ingest.delete(request_id)
            before, answered_at = await self._answer(request_id)
            if answered_at > sequence and not due.num_stored and not due.num_streamed and not due.again:
                self._drop(request_id, sequence)
            else:
                sought[request_id] = before
        if not sought:
            return
        for request_id in sought:
            self._due[request_id].again = False
        try:
            await self._erase_streamed(sought)
            for request_id, before in sought.items():
                await self._tell(request_id, before)
                self._drop(request_id, turn[request_id])
        except Exception:
            # Not looked at to the end: an answer of before must not be taken for one to this.
            for request_id in sought.keys() & self._due.keys():
                self._due[request_id].again = True
            raise

    async def _erase_streamed(self, sought: Container[str]) -> None:
        for sequence, message_id in await self._bus.message_ids(
            subjects.all_hidden(self._model), forget_reader(self._trainer)
        ):
            request = subjects.request_of_chunk(message_id)
            if request is not None and request in sought and await self._bus.erase(STREAM, sequence):
                self._due[request].num_streamed += 1

    async def _answer(self, request_id: str) -> tuple[SamplesForgotten | None, int]:
        """What we told of it before, and where that stands; (None, 0) if nothing."""
        message = await self._bus.last(subjects.forgotten(self._model, request_id, self._trainer))
        if message is None:
            return None, 0
        try:
            record = envelope.decode(message.data)
        except WireError:
            return None, 0
        return (record, message.sequence) if isinstance(record, SamplesForgotten) else (None, 0)

    async def _tell(self, request_id: str, before: SamplesForgotten | None) -> None:
        due = self._due[request_id]
        answer = SamplesForgotten(
            request_id,
            self._trainer,
            time.time(),
            (before.num_stored if before else 0) + due.num_stored,
            (before.num_streamed if before else 0) + due.num_streamed,
        )
        subject = subjects.subject_of(self._model, answer)
        await self._bus.publish(subject, envelope.encode(answer), message_id=subjects.message_id(self._model, answer))
        log.info("samples_forgotten", request=request_id, chunks=due.num_stored, messages=due.num_streamed)
        self.num_forgotten += bool(due.num_stored or due.num_streamed)
        due.num_stored = due.num_streamed = 0

    def _drop(self, request_id: str, sequence: int) -> None:
        """Done, unless it was asked for again meanwhile."""
        due = self._due[request_id]
        if due.sequence == sequence and not due.again:
            del self._due[request_id]
