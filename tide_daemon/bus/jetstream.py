"""The bus on a real nats-server: port.Bus over one Connection.

Reading on: connection.py (errors and requests), admin.py (streams and consumers), puller.py,
tail.py, lease.py. Retries are not here, see outbox.py.
"""

import json
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import Any

from nats.aio.msg import Msg

from tide_daemon.bus import admin, erasing
from tide_daemon.bus.connection import Connection, ConnectSettings, decoded, status
from tide_daemon.bus.lease import CasLease
from tide_daemon.bus.port import StoredMessage, StreamDepth
from tide_daemon.bus.puller import JetStreamPuller
from tide_daemon.bus.tail import Position, tail
from tide_daemon.bus.topology import Topology
from tide_daemon.errors import BusConflictError, BusError, BusFullError, BusSetupError, BusUnavailableError

_READ_TIMEOUT_S = 5.0
_WRONG_LAST_SEQUENCE = {10071, 10164}
_FULL = {
    10077: "the stream has reached its max_bytes",
    10076: "the stream has reached its max_msgs",
    10023: "the server's JetStream store is full (max_file_store)",
    10047: "the server's JetStream store is full",
}
"""JetStream error codes: nats-server server/errors.json."""


class JetStreamBus:
    """See port.Bus. Make one with `await JetStreamBus.connect(...)`."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self.connection = connection
        self._topology = topology

    @classmethod
    async def connect(cls, settings: ConnectSettings, topology: Topology) -> "JetStreamBus":
        """Raises as Connection.open does. Streams and consumers are not looked at: see `ensure`."""
        return cls(await Connection.open(settings), topology)

    async def ensure(self, *, may_lower: bool = False, told: Callable[[str], None] = lambda line: None) -> list[str]:
        """Create, update or verify streams and consumers; see admin.ensure."""
        return await admin.ensure(self.connection, self._topology, may_lower=may_lower, told=told)

    async def verify(self) -> None:
        """Look at streams and consumers; see admin.verify."""
        await admin.verify(self.connection, self._topology)

    async def migrate(self, *, dry_run: bool) -> list[str]:
        """Bring streams and consumers to the topology, or tell how they differ; see admin.migrate."""
        return await admin.migrate(self.connection, self._topology, dry_run=dry_run)

    @property
    def max_payload(self) -> int:
        """See port.Bus.max_payload."""
        return self.connection.max_payload

    @property
    def connected(self) -> bool:
        """See port.Bus.connected."""
        return self.connection.connected

    @property
    def problem(self) -> str:
        """See port.Bus.problem."""
        return self.connection.problem

    @property
    def num_losses(self) -> int:
        """See port.Bus.num_losses."""
        return self.connection.num_losses

    async def wait_closed(self) -> str:
        """See port.Bus.wait_closed."""
        return await self.connection.wait_closed()

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
        """See port.Bus.publish."""
        headers: dict[str, str] = {}
        if message_id is not None:
            headers["Nats-Msg-Id"] = message_id
        if expected_last is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected_last)
        if ttl_s is not None:
            headers["Nats-TTL"] = str(ttl_s)
        answer = await self.connection.request(subject, data, timeout_s, headers or None)
        if status(answer) == "503":
            raise BusUnavailableError(f"no stream takes {subject}: it is not set up, or the server is just starting")
        body = decoded(answer, subject)
        error = body.get("error")
        if error is None:
            sequence = body.get("seq")
            if not isinstance(sequence, int):
                raise BusError(f"not an answer to a publish: {answer.data[:100]!r} for {subject}")
            return sequence
        code, text = error.get("err_code"), error.get("description")
        if code in _WRONG_LAST_SEQUENCE:
            return await self._own_or_conflict(subject, message_id)
        if code in _FULL:
            raise BusFullError(f"{subject} was not stored: {_FULL[code]} ({text})")
        if error.get("code") == 503:
            raise BusUnavailableError(f"{subject} was not stored: {text}")
        raise BusError(f"{subject} was not stored: {text} (JetStream error {code})")

    async def _own_or_conflict(self, subject: str, message_id: str | None) -> int:
        """The server compares sequences before ids, so a retry of what was stored conflicts with itself."""
        if message_id is not None:
            stream = self._topology.stream_of(subject).name
            newest = await self._direct_get(f"DIRECT.GET.{stream}.{subject}", b"")
            if newest is not None and (newest.headers or {}).get("Nats-Msg-Id") == message_id:
                return _from_direct_get(newest).sequence
        raise BusConflictError(subject)

    async def last(self, subject: str, *, timeout_s: float = 5.0) -> StoredMessage | None:
        """See port.Bus.last."""
        if "*" in subject or ">" in subject:
            raise ValueError(f"last() takes one subject, not a wildcard: {subject}")
        stream = self._topology.stream_of(subject).name
        newest = await self._direct_get(f"DIRECT.GET.{stream}.{subject}", b"", timeout_s)
        return None if newest is None else _from_direct_get(newest)

    async def get(self, stream: str, sequence: int) -> StoredMessage | None:
        """See port.Bus.get."""
        found = await self._direct_get(f"DIRECT.GET.{stream}", json.dumps({"seq": sequence}).encode())
        return None if found is None else _from_direct_get(found)

    async def _direct_get(self, request: str, body: bytes, timeout_s: float = _READ_TIMEOUT_S) -> Msg | None:
        answer = await self.connection.request(self.connection.api_subject(request), body, timeout_s)
        code = status(answer)
        if code == "404":
            return None
        if code:
            raise BusUnavailableError(f"{request}: {code} {(answer.headers or {}).get('Description', '')}".strip())
        return answer

    async def depth(self, stream: str) -> StreamDepth:
        """See port.Bus.depth."""
        held = await self._info(f"STREAM.INFO.{stream}")
        waiting = None
        for consumer in self._topology.consumers:
            if consumer.stream == stream:
                info = await self._info(f"CONSUMER.INFO.{stream}.{consumer.name}")
                waiting = int(info["num_pending"]) + int(info["num_ack_pending"])
        state, max_bytes = held["state"], max(0, int(held["config"].get("max_bytes", 0)))
        return StreamDepth(stream, int(state["messages"]), int(state["bytes"]), max_bytes, waiting)

    async def _info(self, request: str) -> dict[str, Any]:
        answer = await self.connection.api(request)
        if "error" in answer:
            raise BusSetupError(f"{request}: {answer['error'].get('description')}")
        return answer

    def tail(self, subject: str, *, since: str = "new", sequence: int = 0) -> AsyncGenerator[StoredMessage]:
        """See port.Bus.tail."""
        return self.follow(subject, Position(since, sequence))

    def follow(self, subject: str, position: Position) -> AsyncGenerator[StoredMessage]:
        """As `tail`, from a position that another connection may take over later."""
        return tail(self.connection, self._topology.stream_of(subject).name, subject, position)

    async def puller(self, durable: str) -> JetStreamPuller:
        """See port.Bus.puller."""
        return await JetStreamPuller.bind(self.connection, self._topology.consumer(durable))

    async def purge(self, subject: str) -> int:
        """See port.Bus.purge."""
        stream = self._topology.stream_of(subject).name
        answer = await self.connection.api(f"STREAM.PURGE.{stream}", {"filter": subject})
        if "error" in answer:
            error = answer["error"]
            kind = BusSetupError if error.get("code") == 404 else BusError
            raise kind(f"cannot purge {subject}: {error.get('description')}")
        return int(answer.get("purged", 0))

    async def message_ids(self, subject: str, reader: str) -> list[tuple[int, str]]:
        """See port.Bus.message_ids."""
        return await erasing.message_ids(self.connection, self._topology.stream_of(subject).name, subject, reader)

    async def erase(self, stream: str, sequence: int) -> bool:
        """See port.Bus.erase."""
        return await erasing.erase(self.connection, stream, sequence)

    def lease(self, name: str, holder: str, ttl_s: int) -> CasLease:
        """See port.Bus.lease."""
        return CasLease(self, name, holder, ttl_s)

    async def close(self) -> None:
        """Send what is pending, close, and wake everybody who waits. Bounded by a few seconds."""
        await self.connection.close()


def _from_direct_get(message: Msg) -> StoredMessage:
    headers = message.headers or {}
    try:
        stored_at = datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp()
        return StoredMessage(headers["Nats-Subject"], message.data, int(headers["Nats-Sequence"]), stored_at)
    except (KeyError, ValueError) as error:
        raise BusError(f"not the answer to a direct get: headers {headers}") from error
