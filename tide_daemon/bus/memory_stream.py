"""One stream and its consumers in memory, with JetStream's rules. No waiting and no asyncio here.

The clock is an argument (unix seconds), so that ages, times to live, windows and redelivery can be
tested without sleeping.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from tide_daemon.bus.port import StoredMessage
from tide_daemon.bus.topology import ConsumerSpec, StreamSpec, covers
from tide_daemon.errors import BusConflictError, BusError, BusFullError

_OVERHEAD_BYTES = 30
"""Per message on disk, about what the server's file store adds."""


_lives = itertools.count(1)


class MemoryStream:
    """Messages of one stream, oldest first.

    Attributes:
        made: names this life of the stream.
    """

    def __init__(self, spec: StreamSpec, clock: Callable[[], float]) -> None:
        self.spec = spec
        self._clock = clock
        self.make_anew()

    def make_anew(self) -> None:
        """Lose everything, the sequences too."""
        self.made = str(next(_lives))
        self.last_sequence = 0
        self._messages: dict[int, StoredMessage] = {}
        self._by_subject: dict[str, list[int]] = {}
        self._expires_at: dict[int, float] = {}
        self._ids: dict[str, tuple[int, float]] = {}
        self._id_of: dict[int, str] = {}
        self._num_bytes = 0

    def publish(
        self, subject: str, data: bytes, message_id: str | None, expected_last: int | None, ttl_s: int | None
    ) -> tuple[int, bool]:
        """(sequence, stored now); the errors are those of port.Bus.publish."""
        now = self._clock()
        self.expire()
        if message_id is not None:
            for old in [key for key, (_, at) in self._ids.items() if now - at >= self.spec.duplicate_window_s]:
                del self._ids[old]
        if ttl_s is not None and not self.spec.message_ttl:
            raise BusError(f"{subject} was not stored: per-message time to live is disabled on {self.spec.name}")
        newest = self._by_subject.get(subject, [0])[-1]
        if expected_last is not None and expected_last != newest:
            if message_id is not None and newest and self._id_of.get(newest) == message_id:
                return newest, False
            raise BusConflictError(subject)
        if message_id is not None and message_id in self._ids:
            return self._ids[message_id][0], False
        self._make_room(subject, len(data) + len(subject) + _OVERHEAD_BYTES)
        self.last_sequence += 1
        message = StoredMessage(subject, data, self.last_sequence, now, self.made)
        self._messages[message.sequence] = message
        self._by_subject.setdefault(subject, []).append(message.sequence)
        self._num_bytes += _size(message)
        if ttl_s is not None:
            self._expires_at[message.sequence] = now + ttl_s
        if message_id is not None:
            self._ids[message_id] = (message.sequence, now)
            self._id_of[message.sequence] = message_id
        return message.sequence, True

    def _make_room(self, subject: str, num_bytes: int) -> None:
        held = self._by_subject.get(subject, [])
        replaced = 0
        if self.spec.max_per_subject and len(held) >= self.spec.max_per_subject:
            replaced = held[0]
        freed = _size(self._messages[replaced]) if replaced else 0
        if self.spec.refuse_when_full and self._num_bytes - freed + num_bytes > self.spec.max_bytes:
            raise BusFullError(f"{subject} was not stored: the stream has reached its max_bytes")
        if replaced:
            self._delete(replaced)
        while self._messages and self._num_bytes + num_bytes > self.spec.max_bytes:
            self._delete(next(iter(self._messages)))

    def expire(self) -> None:
        """Delete what is over the stream's age or its own time to live."""
        now = self._clock()
        for sequence in [key for key, at in self._expires_at.items() if at <= now]:
            self._delete(sequence)
        while self.spec.max_age_s and self._messages:
            oldest = next(iter(self._messages.values()))
            if now - oldest.stored_at < self.spec.max_age_s:
                return
            self._delete(oldest.sequence)

    def get(self, sequence: int) -> StoredMessage | None:
        """The message of that sequence, None if it is not held."""
        return self._messages.get(sequence)

    def size(self) -> tuple[int, int]:
        """(messages, bytes) held."""
        return len(self._messages), self._num_bytes

    def count_since(self, pattern: str, first: int) -> int:
        """Messages of a pattern with a sequence of at least `first`."""
        return sum(covers(pattern, item.subject) for item in self._messages.values() if item.sequence >= first)

    def last(self, subject: str) -> StoredMessage | None:
        """The newest message of one subject."""
        held = self._by_subject.get(subject)
        return self._messages[held[-1]] if held else None

    def since(self, pattern: str, first: int) -> StoredMessage | None:
        """The oldest message of a pattern with a sequence of at least `first`."""
        oldest = next(iter(self._messages), self.last_sequence + 1)
        for sequence in range(max(first, oldest), self.last_sequence + 1):
            message = self._messages.get(sequence)
            if message is not None and covers(pattern, message.subject):
                return message
        return None

    def last_per_subject(self, pattern: str) -> list[StoredMessage]:
        """The newest message of each subject of a pattern, by sequence."""
        newest = [held[-1] for subject, held in self._by_subject.items() if covers(pattern, subject)]
        return [self._messages[sequence] for sequence in sorted(newest)]

    def purge(self, pattern: str) -> int:
        """Delete the messages of a pattern; returns how many."""
        gone = [message.sequence for message in self._messages.values() if covers(pattern, message.subject)]
        for sequence in gone:
            self._delete(sequence)
        return len(gone)

    def message_ids(self, pattern: str) -> list[tuple[int, str]]:
        """(sequence, message id) of the messages of a pattern, oldest first."""
        return [
            (message.sequence, self._id_of.get(message.sequence, ""))
            for message in self._messages.values()
            if covers(pattern, message.subject)
        ]

    def erase(self, sequence: int) -> bool:
        """Delete one message; False if it is not held."""
        if sequence not in self._messages:
            return False
        self._delete(sequence)
        return True

    def _delete(self, sequence: int) -> None:
        message = self._messages.pop(sequence)
        self._num_bytes -= _size(message)
        self._expires_at.pop(sequence, None)
        self._id_of.pop(sequence, None)
        held = self._by_subject[message.subject]
        held.remove(sequence)
        if not held:
            del self._by_subject[message.subject]


def _size(message: StoredMessage) -> int:
    return len(message.data) + len(message.subject) + _OVERHEAD_BYTES


@dataclass(slots=True)
class _Pending:
    """A message handed out. `due_at`: when it may go to somebody again."""

    num_delivered: int
    due_at: float


@dataclass(slots=True)
class MemoryConsumer:
    """A durable pull consumer with explicit acknowledgement over one stream.

    Attributes:
        gave_up: called with (stream sequence, deliveries) when a message has failed max_deliver times.
    """

    spec: ConsumerSpec
    stream: MemoryStream
    clock: Callable[[], float]
    gave_up: Callable[[int, int], None]
    _next: int = 1
    _pending: dict[int, _Pending] = field(default_factory=dict)

    def make_anew(self) -> None:
        """Nothing was ever handed out."""
        self._next = 1
        self._pending.clear()

    def take(self) -> tuple[StoredMessage, int] | None:
        """The next message and how often it has been delivered now; None if there is none to hand out."""
        now = self.clock()
        for sequence, pending in sorted(self._pending.items()):
            if pending.due_at > now:
                continue
            message = self.stream.get(sequence)
            if message is None:
                del self._pending[sequence]
            elif pending.num_delivered >= self.spec.max_deliver:
                del self._pending[sequence]
                self.gave_up(sequence, pending.num_delivered)
            else:
                pending.num_delivered += 1
                pending.due_at = now + self.spec.ack_wait_s
                return message, pending.num_delivered
        if len(self._pending) >= self.spec.max_ack_pending:
            return None
        message = self.stream.since(self.spec.filter_subject, self._next)
        if message is None:
            return None
        self._next = message.sequence + 1
        self._pending[message.sequence] = _Pending(1, now + self.spec.ack_wait_s)
        return message, 1

    def untake(self, sequence: int) -> None:
        """Undo the newest take() of a message, as if it had never been handed out."""
        pending = self._pending[sequence]
        pending.num_delivered -= 1
        pending.due_at = self.clock()

    def next_due_in_s(self) -> float | None:
        """Seconds until the first pending message may be delivered again, None if none is pending."""
        if not self._pending:
            return None
        return max(0.0, min(pending.due_at for pending in self._pending.values()) - self.clock())

    def num_waiting(self) -> int:
        """Messages not acknowledged yet, handed out or not."""
        return len(self._pending) + self.stream.count_since(self.spec.filter_subject, self._next)

    def end(self, sequence: int) -> None:
        """Acknowledged or terminated: never again."""
        self._pending.pop(sequence, None)

    def delay(self, sequence: int, delay_s: float) -> None:
        """Deliver again, but not before `delay_s` from now."""
        if sequence in self._pending:
            self._pending[sequence].due_at = self.clock() + delay_s
