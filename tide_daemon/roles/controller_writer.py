"""What a leader writes: journal entries and desired state, each behind the newest one that it knows of.

Both are compare-and-set on their subject. A leader that was frozen or cut off before a write finds that
its successor has written there, and its own write does not happen: the broker refuses it. So entries of
two reigns never mix, and desired state never goes back to a predecessor's. Whoever meets a higher token
than its own ends its reign at once.

What is decided is not known here; see roles/controller.py for the order of things.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import structlog

from tide_daemon.bus.port import Bus, Lease, StoredMessage
from tide_daemon.clock import Clock
from tide_daemon.errors import BusConflictError, BusUnavailableError, TideError
from tide_daemon.roles.controller_journal import read_record
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import Decision, DesiredServer, DesiredTrainer, Record

log = structlog.get_logger()

RETRY_S = 0.2
"""Pause between two tries to write while the broker is away, or while a replica of it answers that lags behind."""

Desired = DesiredServer | DesiredTrainer


class ReignOverError(TideError):
    """This controller no longer leads, or cannot write; whatever it knows is thrown away."""


@dataclass(slots=True)
class FencedWriter:
    """The writes of one reign.

    Attributes:
        token: fencing token of the reign.
        write_timeout_s: of one try.
        journal_end: stream sequence of the journal's newest entry, 0 for an empty one.
        has_begun: our first entry stands, so no predecessor can write any more.
    """

    bus: Bus
    lease: Lease
    clock: Clock
    model: str
    token: int
    write_timeout_s: float
    journal_end: int = 0
    has_begun: bool = False
    _desired_ends: dict[str, int] = field(default_factory=dict)

    async def entry(self, decision: Decision) -> None:
        """Journal a decision.

        Raises:
            ReignOverError: a successor journals, the lease ran out, or before our first entry stood a predecessor
                wrote one more: then what we read of the journal is not its end.
        """
        subject = subjects.journal(self.model)
        while True:
            try:
                self.journal_end = await self._publish(subject, decision, self.journal_end)
                self.has_begun = True
                return
            except BusConflictError:
                message, found = await self._newest(subject)
                if isinstance(found, Decision):
                    self.check_token(found.fencing_token)
                if not self.has_begun:
                    raise ReignOverError("the journal grew while this reign began; beginning again") from None
                known, self.journal_end = self.journal_end, 0 if message is None else message.sequence
                if self.journal_end == known:
                    await self.clock.sleep(RETRY_S)

    async def desired(self, record: Desired) -> None:
        """Publish desired state over what we last saw there; over a predecessor's late write too.

        Raises:
            ReignOverError: a successor wrote there, or the lease ran out.
        """
        subject = subjects.subject_of(self.model, record)
        while True:
            known = self._desired_ends.get(subject, 0)
            try:
                self._desired_ends[subject] = await self._publish(subject, record, known)
                return
            except BusConflictError:
                if await self.read_desired(subject) == record:
                    return  # our own write, whose acknowledgement was lost
                if self._desired_ends[subject] == known:
                    await self.clock.sleep(RETRY_S)

    async def carry_on(self, record: Desired) -> None:
        """Write what a predecessor journalled, unless it has arrived or something newer has."""
        subject = subjects.subject_of(self.model, record)
        found = await self.read_desired(subject)
        if found is None or found.generation < record.generation:
            log.info("predecessors_decision_carried_out", subject=subject, generation=record.generation)
            await self.desired(record)

    async def read_desired(self, subject: str) -> Desired | None:
        """What stands there now; our next write goes over it. Raises ReignOverError when it is a successor's."""
        message, found = await self._newest(subject)
        self._desired_ends[subject] = 0 if message is None else message.sequence
        if not isinstance(found, DesiredServer | DesiredTrainer):
            return None
        self.check_token(found.fencing_token)
        return found

    def keep(self, subjects_kept: Collection[str]) -> None:
        """Forget where all other desired states end: nodes that left would add up. A write meets what stands there."""
        self._desired_ends = {subject: end for subject, end in self._desired_ends.items() if subject in subjects_kept}

    def check_token(self, found: int) -> None:
        """Raise ReignOverError when a token that was found is higher than ours."""
        if found > self.token:
            raise ReignOverError(f"a controller with token {found} writes, ours is {self.token}")

    async def _newest(self, subject: str) -> tuple[StoredMessage | None, Record | None]:
        message = await self.bus.last(subject)
        return message, None if message is None else read_record(message)

    async def _publish(self, subject: str, record: Record, expected_last: int) -> int:
        """Store a record, trying again while the lease is ours."""
        data = envelope.encode(record)
        message_id = subjects.message_id(self.model, record)
        while True:
            if not self.lease.held:
                raise ReignOverError("the lease ran out before a write")
            try:
                return await self.bus.publish(
                    subject, data, message_id=message_id, expected_last=expected_last, timeout_s=self.write_timeout_s
                )
            except BusUnavailableError as error:
                log.warning("controller_write_delayed", subject=subject, error=str(error))
                await self.clock.sleep(RETRY_S)
