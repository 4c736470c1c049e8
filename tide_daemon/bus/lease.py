"""A lease with a fencing token, built from two operations of the bus: last() and publish() with compare-and-set.

The lease is the newest message of one subject. Its time to live is the message's own, so a holder
that is gone loses it without anybody's help. A bucket without delete markers is needed: with them
an expired key still answers, and a create fails (nats.md, pitfall 4).

The token is the message's sequence at acquisition. A renewal keeps it; a change of holder can only
be a later message, so the token grows. To release is to write "nobody" by compare-and-set.
"""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from tide_daemon.bus.port import Bus, StoredMessage
from tide_daemon.bus.topology import LEASE_SUBJECT
from tide_daemon.errors import BusConflictError


@dataclass(frozen=True, slots=True)
class _Hold:
    """Our newest message. `since` is the local clock before it was sent."""

    token: int
    revision: int
    since: float


class CasLease:
    """See port.Lease. Every instance is a holder of its own, whatever name it bears.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self, bus: Bus, name: str, holder: str, ttl_s: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if ttl_s < 1 or int(ttl_s) != ttl_s:
            raise ValueError(f"a lease lasts whole seconds, at least 1; got {ttl_s}")
        self._bus = bus
        self._subject = f"{LEASE_SUBJECT}.{name}"
        self._holder = holder
        self._ttl_s = int(ttl_s)
        # Without an answer within a third, the next attempt is due anyway.
        self._timeout_s = max(0.5, ttl_s / 3)
        self._clock = clock
        self._instance = secrets.token_hex(8)
        self._hold: _Hold | None = None

    @property
    def held(self) -> bool:
        """True while our newest acquisition or renewal was sent less than the time to live ago."""
        return self._hold is not None and self._clock() - self._hold.since < self._ttl_s

    async def acquire(self) -> int | None:
        """See port.Lease.acquire."""
        started = self._clock()
        current = await self._bus.last(self._subject, timeout_s=self._timeout_s)
        owner = _owner(current)
        if owner == self._instance and current is not None:
            # Ours: renewed, or written by a publish whose acknowledgement was lost.
            known = self._hold is not None and self._hold.revision == current.sequence
            token = self._hold.token if known and self._hold else _token(current)
            return await self._write(current.sequence, token, started)
        if owner is not None:
            self._hold = None
            return None
        return await self._write(0 if current is None else current.sequence, None, started)

    async def release(self) -> None:
        """Let the next one take it at once. Losing the race to another holder is as good."""
        hold, self._hold = self._hold, None
        if hold is None:
            return
        try:
            await self._bus.publish(self._subject, _value("", "", None), expected_last=hold.revision, ttl_s=self._ttl_s)
        except BusConflictError:
            return

    async def _write(self, expected_last: int, token: int | None, started: float) -> int | None:
        value = _value(self._holder, self._instance, token)
        try:
            revision = await self._bus.publish(
                self._subject, value, expected_last=expected_last, ttl_s=self._ttl_s, timeout_s=self._timeout_s
            )
        except BusConflictError:
            self._hold = None
            return None
        self._hold = _Hold(revision if token is None else token, revision, started)
        return self._hold.token


async def is_held(bus: Bus, name: str, *, timeout_s: float) -> bool:
    """Whether anybody holds the lease of that name now, without asking for it. Raises BusError when nobody can tell."""
    return _owner(await bus.last(f"{LEASE_SUBJECT}.{name}", timeout_s=timeout_s)) is not None


def _value(holder: str, instance: str, token: int | None) -> bytes:
    return json.dumps({"holder": holder, "instance": instance, "token": token}).encode()


def _owner(message: StoredMessage | None) -> str | None:
    """The instance that holds the lease; None if nobody does, or the message is not a lease."""
    if message is None:
        return None
    fields = _fields(message)
    return str(fields.get("instance") or "") or None


def _token(message: StoredMessage) -> int:
    token = _fields(message).get("token")
    return token if isinstance(token, int) else message.sequence


def _fields(message: StoredMessage) -> dict[str, object]:
    try:
        fields = json.loads(message.data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
