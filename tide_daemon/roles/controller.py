"""The controller role: a thin shell around policy/. Facts go in as events, instructions come out as records.

One controller of a model leads, by a lease with a fencing token; the others wait. On taking over it
begins with the newest FleetState of the journal and what stands with it, learns each node's desired
state when it hears from one that it does not know, and re-reads all manifests (the policy knows which it has
judged).

For each event, in this order:

1. the event and the instructions it led to go to the journal, as one message;
2. SetServer and SetTrainer become desired state.

Both by compare-and-set, see controller_writer.py. Journal first, so that no desired state is ever in
force without its explanation. A crash in between leaves instructions that were never published: the
next leader carries out those of the newest entry that have not arrived, before it decides anything;
dies it meanwhile, the one after it does.
Desired state is level-triggered, so a second asking changes nothing that was done.

A leader that cannot do the work, because it may not read a stream or an entry is too large for the broker, gives the
lease back and leaves it alone for a while, so that another one can lead. A broker that is away is no such reason.

A reign that goes on for longer than the journal reaches back could not be replayed: its beginning, which holds settings
and state, would be gone. So a leader begins a new one under the same token once a quarter of a full journal was written
in the old one, with the state as it is and a fresh policy, from events alone: ops/decisions/0037.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import structlog

from tide_daemon.bus.port import Bus, Lease
from tide_daemon.clock import Clock, SystemClock
from tide_daemon.errors import BusError, BusUnavailableError
from tide_daemon.policy.controller import Controller
from tide_daemon.policy.events import (
    ControllerStarted,
    Event,
    ServerFound,
    ServerReported,
    Tick,
    TrainerReported,
    event_to_map,
)
from tide_daemon.policy.instructions import Instruction, instruction_to_map
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.roles.controller_journal import STREAM, read_end, read_instructions, read_record, share_written
from tide_daemon.roles.controller_records import desired_record, event_of_desired, event_of_record, summary
from tide_daemon.roles.controller_writer import RETRY_S, FencedWriter, ReignOverError
from tide_daemon.roles.fleet_watch import FleetWatch
from tide_daemon.roles.heartbeat import Heartbeat
from tide_daemon.roles.leadership import lease_name
from tide_daemon.wire import subjects
from tide_daemon.wire.records import Decision, Record

log = structlog.get_logger()

_QUEUE_EVENTS = 1000
_MIN_TURN_LIMIT_S = 60.0
_KEPT_DECISIONS = 50
_WATCH_AGAIN_S = 10.0
_STAND_BACK_TTLS = 2.0
"""Times to live for which a controller that could not work leaves the lease alone; others ask three times in one."""
_WELL_AFTER_S = 10.0
"""A reign that has gone on for so long says that this controller can work."""
_LOOK_S = 10.0
"""Between two looks at how much of the journal a reign has filled."""
_RENEW_AT, _RENEW_BY = 0.25, 0.5
"""Share of a full journal after which a reign is renewed when nothing is under way, and in any case."""


@dataclass(slots=True)
class _Reign:
    """All that belongs to one term as leader.

    Attributes:
        sequence: of our newest entry in the journal under this token.
        began: sequence in the journal's stream of its first entry.
        looked_at: when it was last asked how much of the journal it has filled.
    """

    writer: FencedWriter
    policy: Controller
    sequence: int = 0
    began: int = 0
    looked_at: float = 0.0
    queue: "asyncio.Queue[Record | None]" = field(default_factory=lambda: asyncio.Queue(_QUEUE_EVENTS))


class ControllerRole:
    """Leads one model's fleet, or waits until it can.

    Args:
        model: short name of the target model, as in subjects.
        name: of this controller, for people and for the journal.
        lease_ttl_s: whole seconds after which a silent leader is replaced.
        tick_s: seconds between two Tick events.
        watch: what the status page shows of the fleet; None shows this controller only.
    """

    def __init__(
        self,
        bus: Bus,
        settings: PolicySettings,
        model: str,
        name: str,
        *,
        lease_ttl_s: int = 5,
        tick_s: float = 1.0,
        clock: Clock | None = None,
        watch: FleetWatch | None = None,
    ) -> None:
        self._bus = bus
        self._watch = watch
        self._settings = settings
        self._model = model
        self._name = name
        self._ttl_s = lease_ttl_s
        self._tick_s = tick_s
        self._clock = clock or SystemClock()
        self._lease: Lease = bus.lease(lease_name(model), name, lease_ttl_s)
        self._reign: _Reign | None = None
        self._token = 0
        self._num_decisions = 0
        self._decisions: deque[dict[str, object]] = deque(maxlen=_KEPT_DECISIONS)
        self._problem = ""  # why the lease cannot be asked for
        self._fault = ""  # why we could not work when we had it
        # A write is given up with the lease, so no turn takes much longer than its time to live.
        self._heartbeat = Heartbeat({"decide": max(_MIN_TURN_LIMIT_S, 6.0 * lease_ttl_s)})

    async def run(self, stop: asyncio.Event) -> None:
        """Lead whenever the lease can be had, until `stop` is set; then give it back."""
        stopping = asyncio.create_task(stop.wait())
        watching = asyncio.create_task(self._watch_fleet(), name="watch the fleet")
        self._heartbeat.start()
        try:
            while not stop.is_set():
                self._heartbeat.beat("decide")
                token = await self._acquire()
                if token is None:
                    await self._pause(self._ttl_s / 3, stopping)
                elif not await self._lead(token, stopping):
                    with contextlib.suppress(BusError):
                        await self._lease.release()
                    await self._pause(_STAND_BACK_TTLS * self._ttl_s, stopping)
        finally:
            stopping.cancel()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            with contextlib.suppress(BusError):
                await self._lease.release()

    async def _pause(self, seconds: float, stopping: "asyncio.Task[bool]") -> None:
        pause = asyncio.create_task(self._clock.sleep(seconds))
        await asyncio.wait([pause, stopping], return_when=asyncio.FIRST_COMPLETED)
        pause.cancel()

    async def _watch_fleet(self) -> None:
        """For the page alone: whatever goes wrong with it, the controller goes on."""
        while self._watch is not None:
            try:
                await self._watch.run()
            except Exception:
                log.exception("fleet_watch_raised")
                await asyncio.sleep(_WATCH_AGAIN_S)

    def ready(self) -> bool:
        """True while the broker answers: leading or standing by are both its work. Not if it could not lead lately."""
        return self._bus.connected and not self._fault

    def late(self) -> Mapping[str, float]:
        """See port.Role.late. A leader decides at least every tick; one that stands by asks for the lease."""
        return self._heartbeat.late()

    def health(self) -> Mapping[str, str]:
        """Each dependency: "ok" or what is wrong."""
        return {
            "bus": "ok" if self._bus.connected else "not connected to the broker",
            "lease": self._problem or self._fault or "ok",
        }

    def snapshot(self) -> Mapping[str, object]:
        """What the status page shows: the fleet as the policy sees it, and the last decisions with their reasons."""
        shown: dict[str, object] = {
            "name": self._name,
            "model": self._model,
            "leading": self._reign is not None,
            "fencing_token": self._token,
            "decisions_total": self._num_decisions,
            "decisions": list(self._decisions),
        }
        if self._watch is not None:
            shown["overview"] = asdict(self._watch.status())
        if self._reign is not None:
            state = self._reign.policy.state_map()
            shown |= state
            shown["serving_version"] = state["fleet"]["serving_version"]
            shown["pinned"] = state["fleet"]["pinned"]
            shown["num_nodes"] = sum(node["alive"] for node in state["nodes"].values())
            shown["num_trainers"] = sum(trainer["alive"] for trainer in state["trainers"].values())
        return shown

    async def _acquire(self) -> int | None:
        try:
            token = await self._lease.acquire()
        except BusError as error:
            self._problem = f"the lease cannot be asked for: {error}"
            return None
        self._problem = ""
        return token

    # One reign

    async def _lead(self, token: int, stopping: "asyncio.Task[bool]") -> bool:
        """Decide until the lease is lost, the broker is away for too long, or we are told to stop.

        Returns:
            False if something else keeps us from it, which another controller may be able to do.
        """
        self._token = token
        writer = FencedWriter(self._bus, self._lease, self._clock, self._model, token, self._ttl_s / 2)
        reign = _Reign(writer, Controller(self._settings))
        log.info("controller_leading", model=self._model, fencing_token=token)
        model = self._model
        tasks = [
            asyncio.create_task(work)
            for work in (
                self._renew(token),
                self._work(reign),
                self._tick(reign),
                self._listen(reign, subjects.all_reports(model, "server"), "new"),
                self._listen(reign, subjects.all_reports(model, "trainer"), "new"),
                self._listen(reign, subjects.all_manifests(model), "all"),
                self._listen(reign, subjects.all_operator_requests(model), "all"),
            )
        ]
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        except (ReignOverError, BusError) as error:
            log.warning("controller_stopped_leading", model=self._model, fencing_token=token, reason=str(error))
            if isinstance(error, BusError) and not isinstance(error, BusUnavailableError):
                self._fault = f"this controller had the lease and could not lead: {error}"
                return False
            await self._clock.sleep(RETRY_S)
        finally:
            self._reign = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return True

    async def _renew(self, token: int) -> None:
        while True:
            await self._clock.sleep(self._ttl_s / 3)
            renewed = await self._acquire()
            if renewed is None and self._lease.held:
                continue  # the broker did not answer in time; ours until the time to live is over
            if renewed != token:
                raise ReignOverError("the lease was lost")

    async def _tick(self, reign: _Reign) -> None:
        while True:
            await self._clock.sleep(self._tick_s)
            await reign.queue.put(None)

    async def _listen(self, reign: _Reign, subject: str, since: str) -> None:
        async for message in self._bus.tail(subject, since=since):
            record = read_record(message)
            if record is not None:
                await reign.queue.put(record)

    async def _work(self, reign: _Reign) -> None:
        """Begin where the journal ends, then one event after another."""
        await self._begin(reign)
        self._reign, led_since = reign, self._clock.monotonic()
        while True:
            record = await reign.queue.get()
            self._heartbeat.beat("decide")
            if record is None:
                if self._clock.monotonic() - led_since > _WELL_AFTER_S:
                    self._fault = ""
                await self._decide(reign, Tick(self._clock.time()))
                await self._renew_reign(reign)
                continue
            event = event_of_record(record, self._clock.time())
            if event is None:
                continue
            await self._find_desired(reign, event)
            await self._decide(reign, event)

    async def _begin(self, reign: _Reign) -> None:
        """Our first entry behind the journal's newest one, then what that one still asks for."""
        end = await read_end(self._bus, self._model)
        last, writer = end.last, reign.writer
        if last is not None:
            writer.check_token(last.fencing_token)
            # One token may see several reigns, when the broker was away for long: its numbers go on.
            reign.sequence = last.sequence if last.fencing_token == writer.token else 0
        writer.journal_end = end.sequence
        settings = self._settings.to_map()
        started = ControllerStarted(self._clock.time(), self._model, settings, end.fleet, end.collection)
        await self._decide(reign, started)
        reign.began = writer.journal_end
        for instruction in [] if end.unfinished is None else read_instructions(end.unfinished):
            record = desired_record(instruction, writer.token, self._clock.time())
            if record is not None:
                await writer.carry_on(record)

    async def _renew_reign(self, reign: _Reign) -> None:
        """Begin a new reign under the same token if this one is long. All that was decided has been carried out."""
        now = self._clock.time()
        if now - reign.looked_at < _LOOK_S:
            return
        reign.looked_at = now
        try:
            depth = await self._bus.depth(STREAM)
        except BusError as error:
            log.warning("journal_not_measured", model=self._model, error=str(error))
            return
        share = share_written(depth, reign.began, reign.writer.journal_end)
        if share < (_RENEW_AT if reign.policy.is_quiet() else _RENEW_BY):
            return
        log.info("controller_reign_renewed", model=self._model, fencing_token=reign.writer.token)
        events = reign.policy.renewal(self._model)
        reign.policy = Controller(self._settings)
        reign.writer.keep(
            {subjects.control_server(self._model, each.node) for each in events if isinstance(each, ServerFound)}
        )
        reign.began = reign.writer.journal_end + 1
        for event in events:
            await self._decide(reign, event)

    async def _find_desired(self, reign: _Reign, event: Event) -> None:
        """Before the report of a node that the policy does not know (yet, or any more): what was desired of it."""
        subject = _control_subject(self._model, event)
        if subject is None or reign.policy.knows(event):
            return
        found = await reign.writer.read_desired(subject)
        if found is not None:
            await self._decide(reign, event_of_desired(found, self._clock.time()))

    async def _decide(self, reign: _Reign, event: Event) -> None:
        """Let the policy handle one event, journal it, carry the instructions out."""
        instructions = reign.policy.handle(event)
        reign.sequence += 1
        reason, numbers = summary(event, instructions)
        maps = tuple(instruction_to_map(item) for item in instructions)
        entry = Decision(
            reign.sequence, reign.writer.token, self._name, event.at, event_to_map(event), maps, reason, numbers
        )
        await reign.writer.entry(entry)
        for instruction in instructions:
            record = desired_record(instruction, reign.writer.token, event.at)
            if record is not None:
                await reign.writer.desired(record)
        if instructions:
            self._note(event, instructions)

    def _note(self, event: Event, instructions: list[Instruction]) -> None:
        self._num_decisions += 1
        reason, numbers = summary(event, instructions)
        kinds = sorted({type(item).__name__ for item in instructions})
        if kinds == ["FleetMoved"] and reason.startswith("the copy"):
            return
        self._decisions.append({"at": event.at, "reason": reason, "instructions": kinds, "numbers": dict(numbers)})
        log.info("decision_taken", reason=reason, instructions=kinds)


def _control_subject(model: str, event: Event) -> str | None:
    """Where desired state of the node that an event came from stands; None if it came from none."""
    match event:
        case ServerReported():
            return subjects.control_server(model, event.node)
        case TrainerReported():
            return subjects.control_trainer(model, event.trainer)
    return None
