"""Captured rows on their way from the engine to the bus: taken, let out or kept, encoded, handed to the outbox.

What was taken from the engine is nowhere else, so it is held until the outbox has it, whatever is cancelled in
between. Chunks are encoded in threads, `_ENCODERS` at a time, while the next ones are taken; they leave in the order in
which they came, so that a request's last chunk is its last.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from tide_daemon.bus.outbox import Outbox
from tide_daemon.bus.port import Bus
from tide_daemon.engine.port import Engine
from tide_daemon.roles.leaving import Leaving
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import HiddenChunk

log = structlog.get_logger()

_ENCODERS = 3
"""Rows a second through the whole spine over a bare pipeline, with 1, 2 and 3: 0.65, 0.76 to 0.79, 0.83 (hidden 576,
two cores, medians of five pairs)."""


class Shipping:
    """Not thread-safe.

    Args:
        chunk_bytes: largest encoded chunk, the broker's limit permitting.
        drain_interval_s: pause before an engine that had nothing is asked again.
        note: told, as a sentence, of each chunk that could not be encoded.

    Attributes:
        num_rows: that were handed to the outbox.
        num_refused: chunks that could not be encoded.
    """

    def __init__(
        self,
        engine: Engine,
        bus: Bus,
        outbox: Outbox,
        leaving: Leaving,
        *,
        chunk_bytes: int,
        drain_interval_s: float,
        note: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._bus = bus
        self._outbox = outbox
        self._leaving = leaving
        self._chunk_bytes = chunk_bytes
        self._drain_interval_s = drain_interval_s
        self._note = note
        self._taken: deque[HiddenChunk] = deque()
        self._encoded: deque[tuple[HiddenChunk, asyncio.Future[bytes]]] = deque()
        self.num_rows = 0
        self.num_refused = 0

    async def run(self) -> None:
        """Ship until cancelled. Raises what the engine raises; run again, it goes on where it was.

        Nothing is taken before a broker has said how large a message may be; until then rows stay in the engine.
        """
        while True:
            if not self._taken:
                self._take()
            self._encode()
            if self._encoded:
                await self._ship_first()
            else:
                await asyncio.sleep(self._drain_interval_s)

    async def rest(self) -> None:
        """Ship what was taken from the engine, and what it left when it was stopped: the ring is emptied only then.

        A chunk that fails is logged: the others may still leave.
        """
        try:
            self._take()
        except Exception as error:
            log.exception("chunks_not_taken", error=str(error))
        while self._taken or self._encoded:
            self._encode()
            if self._encoded:
                try:
                    await self._ship_first()
                except Exception as error:
                    log.exception("chunk_not_published", error=str(error))

    def _take(self) -> None:
        limit = min(self._chunk_bytes, self._bus.max_payload)
        if limit > 0 and self._engine.spec is not None:
            self._taken.extend(self._engine.take_chunks(limit))

    def _encode(self) -> None:
        """Have the next chunks encoded."""
        while self._taken and len(self._encoded) < _ENCODERS:
            chunk = self._leaving.prepare(self._taken.popleft())
            if chunk is not None:
                encoding = asyncio.ensure_future(asyncio.to_thread(envelope.encode, chunk))
                self._encoded.append((chunk, encoding))

    async def _ship_first(self) -> None:
        """Wait for the chunk that came first, and for room in the outbox. It stays first where this is cancelled."""
        chunk, encoding = self._encoded[0]
        try:
            data = await asyncio.shield(encoding)
            model = chunk.spec.model
            await self._outbox.put(subjects.subject_of(model, chunk), data, subjects.message_id(model, chunk))
        except ValueError as error:  # states that the codec cannot carry, like infinities under int8
            self._encoded.popleft()
            self.num_refused += 1
            self._note(f"a chunk could not be encoded and was dropped: {error}")
            return
        except Exception:
            self._encoded.popleft()  # or it would stand in the way of all others
            raise
        self._encoded.popleft()
        self.num_rows += len(chunk.token_ids)
        self._leaving.left(chunk, len(data))
