"""What the rest of the daemon may ask of the broker: a few small operations, bytes in and out.

Two implementations are held to one contract suite: jetstream.py (nats-py) and memory.py. Neither
knows what the bytes mean. Subjects are made and parsed in wire/subjects.py; streams, limits and
consumers are data in topology.py.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as the broker holds it.

    Attributes:
        stored_at: unix seconds by the broker's clock.
        stream_made: names the stream's life, told by tail() only: another one means that it was made anew and
            sequences began again.
    """

    subject: str
    data: bytes
    sequence: int
    stored_at: float
    stream_made: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class StreamDepth:
    """What a stream holds now.

    Attributes:
        max_bytes: at which its rule when full applies; 0 for no limit.
        num_waiting: messages that the consumer shared by all its readers has not acknowledged; None without one.
    """

    name: str
    num_messages: int
    num_bytes: int
    max_bytes: int
    num_waiting: int | None = None


class Delivery(Protocol):
    """One message handed to a shared consumer; exactly one of ack, nak and term ends it."""

    @property
    def message(self) -> StoredMessage:
        """What was delivered."""
        ...

    @property
    def num_delivered(self) -> int:
        """1 for the first time."""
        ...

    async def ack(self) -> None:
        """Done: it is never delivered again."""
        ...

    async def nak(self, delay_s: float = 0.0) -> None:
        """Not done: deliver it again, to anyone, after `delay_s`."""
        ...

    async def term(self) -> None:
        """Nobody can use it: never deliver it again."""
        ...

    async def in_progress(self) -> None:
        """Still at it: the time to acknowledge starts anew. Call it every third of ack_wait."""
        ...


class Puller(Protocol):
    """A durable, shared pull consumer. One fetch at a time."""

    async def fetch(self, max_messages: int, max_bytes: int, timeout_s: float) -> Sequence[Delivery]:
        """What is there, up to the given bounds; empty after `timeout_s` with nothing, broker away or not.

        Returns as soon as there is one message. A single message over `max_bytes` comes alone rather
        than never. Safe to cancel: nothing is lost, the next fetch returns it.

        Raises:
            BusSetupError: the consumer is gone.
        """
        ...

    async def close(self) -> None:
        """Give what was fetched and not returned back to the broker. A running fetch ends empty."""
        ...


class Lease(Protocol):
    """A named lease with a fencing token.

    The token grows with every change of holder, so that a reader can refuse a stale leader's writes.
    """

    async def acquire(self) -> int | None:
        """Fencing token if this process now holds (or renewed) the lease, None if another does.

        Call it every third of the time to live. Raises BusUnavailableError when nobody can tell.
        """
        ...

    @property
    def held(self) -> bool:
        """True while the newest successful acquire() began less than the time to live ago, by our own clock."""
        ...

    async def release(self) -> None:
        """Let another have it at once. Harmless when it is not held."""
        ...


class Bus(Protocol):
    """A connection to the broker.

    Any operation raises BusClosedError after the connection was closed for good.
    """

    @property
    def max_payload(self) -> int:
        """Largest payload in bytes that may be published, head-room for headers already taken off.

        0 while no broker has said so yet.
        """
        ...

    @property
    def connected(self) -> bool:
        """True while the broker answers, as far as we know."""
        ...

    @property
    def problem(self) -> str:
        """Why the broker cannot be used now, in a sentence for people; "" while `connected`."""
        ...

    @property
    def num_losses(self) -> int:
        """How often the broker was lost; one that comes back within a moment is seen by this alone."""
        ...

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        expected_last: int | None = None,
        ttl_s: int | None = None,
        timeout_s: float = 5.0,
    ) -> int:
        """Store a message; returns its stream sequence.

        Args:
            message_id: the broker stores one message per id within its window, so that a retry is harmless.
            expected_last: publish only if the subject's last sequence is this (0: the subject is empty).
                With a message_id too, a retry of what was stored returns its sequence instead of a conflict.
            ttl_s: the broker deletes the message after so many seconds (>= 1); only in streams that allow it.
            timeout_s: for everything, waiting for a lost connection included.

        Raises:
            MessageTooLargeError: data is over max_payload; nothing was sent.
            BusConflictError: expected_last did not hold.
            BusFullError: the stream or the broker's store is full; nothing was stored.
            BusUnavailableError: no acknowledgement in time; it may or may not have been stored.
            BusError: refused for another reason, a missing permission for one.
        """
        ...

    async def last(self, subject: str, *, timeout_s: float = 5.0) -> StoredMessage | None:
        """The newest message of one subject, None if there is none."""
        ...

    async def get(self, stream: str, sequence: int) -> StoredMessage | None:
        """One message of a stream by its sequence, without consuming it; None if it is not held."""
        ...

    async def depth(self, stream: str) -> StreamDepth:
        """How full a stream of the topology is. Consumes nothing.

        Raises:
            BusSetupError: the stream or its consumer does not exist, or we may not look.
            BusUnavailableError: no answer in time.
        """
        ...

    def tail(self, subject: str, *, since: str = "new", sequence: int = 0) -> AsyncIterator[StoredMessage]:
        """Every message of a subject (wildcards allowed), in order, for ever, across reconnects.

        Begins at the first `anext`. No message comes twice and none that the stream still holds is left
        out. Sequences grow, except after the stream was deleted and made anew, or lost its newest messages:
        then "last" begins again with the newest of each subject.

        Args:
            since: "new", "all", "last" (the newest of each subject first, then what follows; an
                interruption during the first part may let older ones of a subject come before its
                newest) or "sequence".
            sequence: first stream sequence wanted with since="sequence".

        Raises:
            BusSetupError: the stream does not exist, or we may not read it.
        """
        ...

    async def puller(self, durable: str) -> Puller:
        """Bind to a consumer named in the topology."""
        ...

    async def purge(self, subject: str) -> int:
        """Delete the messages of a subject (wildcards allowed); returns how many."""
        ...

    async def message_ids(self, subject: str, reader: str) -> Sequence[tuple[int, str]]:
        """(sequence, message id) of every message of a subject (wildcards allowed) that is stored now; "" for no id.

        Payloads do not travel. `reader` names the short-lived consumer: one scan at a time under one name.

        Raises:
            BusSetupError: the stream does not exist, or we may not read it.
            BusUnavailableError: interrupted; call again.
        """
        ...

    async def erase(self, stream: str, sequence: int) -> bool:
        """Delete one message and overwrite it on the broker's disk; False if it is not held (any more)."""
        ...

    def lease(self, name: str, holder: str, ttl_s: int) -> Lease:
        """A lease of whole seconds, at least 1. `holder` is for people; two leases never share a hold."""
        ...

    async def wait_closed(self) -> str:
        """Returns, with the reason, when the connection is closed for good. Nothing works after that."""
        ...

    async def close(self) -> None:
        """Send what is pending, within a few seconds, and close. Whoever waits gets BusClosedError."""
        ...
