"""Keeps a FleetView up to date from the bus: reads what is held, then follows what comes. Consumes nothing.

The controller's daemon runs one beside the controller, for its page: by its own readers, so that nothing that is
shown can hold up a decision, and whether this controller leads or not. `tide-daemon status` reads once and ends.

What is held is read back as far as the figures need it: the newest report of every node, however old, then the last
reports (a cost model needs to have seen plain steps), the newest manifest of every version, and the journal from its
newest copy of the fleet's state on.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from tide_daemon.bus.port import Bus
from tide_daemon.errors import BusError
from tide_daemon.roles.continuity import Continuity
from tide_daemon.roles.controller_journal import read_record
from tide_daemon.roles.fleet_status import FleetStatus
from tide_daemon.roles.fleet_view import FleetView
from tide_daemon.roles.newest import newest_of
from tide_daemon.wire import subjects
from tide_daemon.wire.records import Decision, DesiredServer, DraftManifest, NodeReport, TrainerReport

log = structlog.get_logger()

_STREAMS = ("TIDE_HIDDEN", "TIDE_DRAFT", "TIDE_REPORT", "TIDE_JOURNAL", "TIDE_DEAD")
_REPORTS = 1500
"""Stream sequences of reports to read back: about ten minutes of two nodes and a trainer."""
_ENTRIES = 1000
_MAX_ENTRIES = 32_000
"""The same of the journal, at first and at most: more is read while no copy of the fleet's state was found."""
_DEPTH_INTERVAL_S = 2.0
_RETRY_S = 2.0
_SHOWN_FOR_S = 0.5


@dataclass(slots=True)
class _Places:
    """Stream sequences up to which was read, by subject filter."""

    read: dict[str, int] = field(default_factory=dict)


class FleetWatch:
    """A view and what feeds it.

    Args:
        wall: unix seconds.
    """

    def __init__(self, bus: Bus, model: str, wall: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._model = model
        self._wall = wall
        self._view = FleetView(model)
        self._places = _Places()
        self._journal = Continuity()
        self._sought: set[str] = set()
        self._shown: tuple[float, FleetStatus] | None = None
        self.problem = ""

    def status(self) -> FleetStatus:
        """The fleet now; made anew at most twice a second, however many look."""
        now = self._wall()
        if self._shown is None or not 0.0 <= now - self._shown[0] < _SHOWN_FOR_S:
            self._shown = now, self._view.status(now)
        return self._shown[1]

    async def read(self) -> None:
        """What the bus holds now.

        Raises:
            BusError: the broker cannot be reached, or may not be read.
        """
        await self._read_journal()
        await asyncio.gather(self._read_reports("server"), self._read_reports("trainer"), self._read_manifests())
        await self._read_depths()

    async def run(self) -> None:
        """Read, then follow, for ever. The broker may come and go; ends only by cancellation."""
        while True:
            try:
                await self.read()
                break
            except BusError as error:
                self._failed("read", error)
                # What was read in part would come twice.
                self._view, self._places = FleetView(self._model), _Places()
                self._sought.clear()
                await asyncio.sleep(_RETRY_S)
        model = self._model
        works: dict[str, Callable[[], Awaitable[None]]] = {
            "journal": lambda: self._follow(subjects.journal(model)),
            "servers": lambda: self._follow(subjects.all_reports(model, "server")),
            "trainers": lambda: self._follow(subjects.all_reports(model, "trainer")),
            "drafts": lambda: self._follow(subjects.all_manifests(model)),
            "streams": self._keep_depths,
        }
        tasks = [asyncio.create_task(self._keep(name, work), name=f"watch {name}") for name, work in works.items()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except BusError as error:
                self._failed(name, error)
            await asyncio.sleep(_RETRY_S)

    def _failed(self, name: str, error: BusError) -> None:
        if str(error) != self.problem:
            log.warning("fleet_not_watched", part=name, error=str(error))
        self.problem = str(error)

    async def _read_journal(self) -> None:
        subject = subjects.journal(self._model)
        newest = await self._bus.last(subject)
        entries = _ENTRIES
        while newest is not None:
            view = FleetView(self._model)
            first = max(1, newest.sequence - entries)
            messages = self._bus.tail(subject, since="sequence", sequence=first)
            async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
                async for message in messages:
                    await asyncio.sleep(0)  # hundreds are there at once, and decisions go on meanwhile
                    record = read_record(message)
                    if isinstance(record, Decision):
                        view.decided(record)
                    if message.sequence >= newest.sequence:
                        self._journal.broken_by(message)
                        break
            entries *= 8
            if view.history.fleet is not None or first == 1 or entries > _MAX_ENTRIES:
                self._view, self._places.read[subject] = view, newest.sequence
                return

    async def _read_reports(self, role: str) -> None:
        subject = subjects.all_reports(self._model, role)
        newest = sorted((await newest_of(self._bus, subject)).values(), key=lambda item: item[0].sequence)
        if not newest:
            return
        last = newest[-1][0].sequence
        first = max(1, last - _REPORTS)
        for message, record in newest:
            if message.sequence < first:
                await self._take(record, message.stored_at)
        messages = self._bus.tail(subject, since="sequence", sequence=first)
        async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
            async for message in messages:
                await asyncio.sleep(0)
                record_or_none = read_record(message)
                if record_or_none is not None:
                    await self._take(record_or_none, message.stored_at)
                if message.sequence >= last:
                    break
        self._places.read[subject] = last

    async def _read_manifests(self) -> None:
        subject = subjects.all_manifests(self._model)
        for message, record in (await newest_of(self._bus, subject)).values():
            await self._take(record, message.stored_at)
            self._places.read[subject] = max(self._places.read.get(subject, 0), message.sequence)

    async def _read_depths(self) -> None:
        for stream in _STREAMS:
            self._view.measured(await self._bus.depth(stream))

    async def _keep_depths(self) -> None:
        while True:
            await self._read_depths()
            self.problem = ""
            await asyncio.sleep(_DEPTH_INTERVAL_S)

    async def _follow(self, subject: str) -> None:
        first = self._places.read.get(subject, 0) + 1
        messages = self._bus.tail(subject, since="sequence", sequence=first)
        async with contextlib.aclosing(messages):  # type: ignore[type-var]  # every tail is a generator
            async for message in messages:
                record = read_record(message)
                if isinstance(record, Decision) and self._journal.broken_by(message):
                    self._view.journal_made_anew()
                if record is not None:
                    await self._take(record, message.stored_at)
                self._places.read[subject] = message.sequence

    async def _take(self, record: object, stored_at: float) -> None:
        match record:
            case Decision():
                self._view.decided(record)
            case NodeReport():
                self._view.reported(record, stored_at)
                if record.node not in self._sought and not self._view.knows_desired(record.node):
                    self._sought.add(record.node)
                    await self._find_desired(record.node)
            case TrainerReport():
                self._view.reported(record, stored_at)
            case DraftManifest():
                self._view.published(record, stored_at)

    async def _find_desired(self, node: str) -> None:
        message = await self._bus.last(subjects.control_server(self._model, node))
        record = None if message is None else read_record(message)
        if isinstance(record, DesiredServer):
            self._view.desired(record)
