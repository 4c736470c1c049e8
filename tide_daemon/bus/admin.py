"""Creates the topology's streams and consumers on a JetStream server, or says how they differ.

Three ways. `ensure`, at the start of a daemon that may: what is missing is made, limits (bytes, age, windows) are
raised. A stream's limits are not lowered: the server would delete what is beyond them, and the next daemon may be
configured for more. That is named; anything else that differs is somebody's decision and refused. `verify`, for a
daemon whose user may only look (STREAM.INFO and CONSUMER.INFO): limits are not its business. `migrate`, for an
operator (`tide-daemon admin init`): whatever the server lets be changed is changed; or, dry, only told.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tide_daemon.bus.connection import Connection
from tide_daemon.bus.topology import ConsumerSpec, StreamSpec, Topology
from tide_daemon.errors import BusError, BusSetupError, BusUnavailableError

_NANO = 1_000_000_000
_PERSIST_MODE_SINCE = (2, 12)
_STREAM_LIMITS = {"max_bytes", "max_age", "max_msgs_per_subject", "duplicate_window"}
_NO_SPACE = "insufficient storage"
_PAUSES_S = (0.1, 0.2, 0.4, 0.8)
_CONSUMER_LIMITS = {"ack_wait", "max_ack_pending", "max_deliver"}
_STREAM_FIXED = {"name", "storage", "retention", "persist_mode"}
"""What no update changes; the rest is tried and refused by the server in its own words."""
_CONSUMER_FIXED = {"durable_name", "ack_policy", "deliver_policy"}


async def ensure(
    connection: Connection,
    topology: Topology,
    *,
    may_lower: bool = False,
    told: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Create what is missing, raise limits, and verify the rest; returns one line per change made.

    Args:
        may_lower: lower a stream's limits as well.
        told: called with a line for each limit that was not lowered.

    Raises:
        BusSetupError: one line per difference or refusal.
        BusUnavailableError: the server did not answer.
    """
    return await _Pass(connection, may_lower=may_lower, told=told).over(topology)


async def verify(connection: Connection, topology: Topology) -> None:
    """Return if all streams and consumers are there and of the right kind, whatever their limits.

    Raises: as `ensure`.
    """
    await _Pass(connection, may_create=False, may_update=False, limits_matter=False).over(topology)


async def migrate(connection: Connection, topology: Topology, *, dry_run: bool) -> list[str]:
    """Bring everything to the topology, what is not a limit too; returns one line per change made, or to be made.

    Raises: as `ensure`; a difference that the server does not let be changed is one.
    """
    return await _Pass(connection, may_migrate=True, may_lower=True, dry_run=dry_run).over(topology)


def stream_config(spec: StreamSpec, persist_mode: bool) -> dict[str, Any]:
    """The stream as the JetStream API names its fields; durations in nanoseconds."""
    config: dict[str, Any] = {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "storage": "file",
        "retention": "limits",
        "discard": "new" if spec.refuse_when_full else "old",
        "max_bytes": spec.max_bytes,
        "max_age": int(spec.max_age_s * _NANO),
        "max_msgs_per_subject": spec.max_per_subject or -1,
        "duplicate_window": int(spec.duplicate_window_s * _NANO),
        "num_replicas": spec.replicas,
        "allow_direct": True,
    }
    if spec.message_ttl:
        config["allow_msg_ttl"] = True
    if spec.persist_async and persist_mode:
        config["persist_mode"] = "async"
    return config


def consumer_config(spec: ConsumerSpec) -> dict[str, Any]:
    """The consumer as the JetStream API names its fields; durations in nanoseconds."""
    return {
        "durable_name": spec.name,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": spec.filter_subject,
        "ack_wait": int(spec.ack_wait_s * _NANO),
        "max_ack_pending": spec.max_ack_pending,
        "max_deliver": spec.max_deliver,
    }


class _StreamApi:
    limits = _STREAM_LIMITS
    fixed = _STREAM_FIXED

    def __init__(self, name: str) -> None:
        self.info = f"STREAM.INFO.{name}"
        self.create = f"STREAM.CREATE.{name}"
        self.update = f"STREAM.UPDATE.{name}"

    def body(self, config: dict[str, Any]) -> dict[str, Any]:
        return config


class _ConsumerApi:
    limits = _CONSUMER_LIMITS
    fixed = _CONSUMER_FIXED

    def __init__(self, stream: str, name: str) -> None:
        self.info = f"CONSUMER.INFO.{stream}.{name}"
        self.create = self.update = f"CONSUMER.DURABLE.CREATE.{stream}.{name}"
        self._stream = stream

    def body(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"stream_name": self._stream, "config": config}


@dataclass(slots=True)
class _Pass:
    """One way through the topology; see the module."""

    connection: Connection
    may_create: bool = True
    may_update: bool = True
    may_migrate: bool = False
    may_lower: bool = False
    limits_matter: bool = True
    dry_run: bool = False
    told: Callable[[str], None] = lambda line: None
    changes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    async def over(self, topology: Topology) -> list[str]:
        persist_mode = _supports_persist_mode(self.connection)
        for stream in topology.streams:
            await self._stream(stream.name, stream_config(stream, persist_mode))
        for consumer in topology.consumers:
            if not self.problems:
                api = _ConsumerApi(consumer.stream, consumer.name)
                await self._one(f"consumer {consumer.name}", api, consumer_config(consumer))
        if self.problems:
            raise BusSetupError("the broker is not set up as needed:\n" + "\n".join(self.problems))
        return self.changes

    async def _stream(self, name: str, wanted: dict[str, Any]) -> None:
        """Daemons that start together may create a stream at the same moment. The server then reserves its bytes
        once for each, and may refuse one of them for want of space; a moment later the stream is there."""
        before = len(self.problems)
        for pause_s in (*_PAUSES_S, 0.0):
            del self.problems[before:]
            await self._one(f"stream {name}", _StreamApi(name), wanted)
            if not any(_NO_SPACE in line for line in self.problems[before:]):
                return
            await asyncio.sleep(pause_s)

    async def _one(self, what: str, api: _StreamApi | _ConsumerApi, wanted: dict[str, Any]) -> None:
        try:
            found = await self.connection.api(api.info)
        except BusUnavailableError:
            raise
        except BusError as denied:
            self.problems.append(f"{what}: {denied}")
            return
        error = found.get("error")
        if error is not None and error.get("code") == 503:
            raise BusUnavailableError(f"{what}: {error.get('description')}")
        if error is not None and error.get("code") != 404:
            self.problems.append(f"{what}: {error.get('description')}")
        elif error is not None and self.may_create:
            await self._apply(f"{what}: create", api.create, api.body(wanted))
        elif error is not None:
            self.problems.append(f"{what} is missing; `tide-daemon admin init` makes it")
        else:
            await self._compare(what, api, wanted, found["config"])

    async def _compare(
        self, what: str, api: _StreamApi | _ConsumerApi, wanted: dict[str, Any], config: dict[str, Any]
    ) -> None:
        differing = {key for key, value in wanted.items() if _normal(key, config.get(key)) != _normal(key, value)}
        if not self.limits_matter:
            differing -= api.limits
        elif not self.may_lower:
            differing -= self._kept(what, wanted, config, differing & _STREAM_LIMITS)
        mine = (differing - api.fixed) if self.may_migrate else (differing & api.limits)
        for key in sorted(differing - mine):
            advice = "delete it by hand to have it made anew" if self.may_migrate else "run `tide-daemon admin init`"
            self.problems.append(f"{what}: {key} is {config.get(key)!r}, needed is {wanted[key]!r}; {advice}")
        if mine and mine == differing and self.may_update:
            named = ", ".join(f"{key} {config.get(key)} -> {wanted[key]}" for key in sorted(mine))
            # Keep whatever else an operator set on it.
            changed = {key: wanted[key] for key in mine}
            await self._apply(f"{what}: set {named}", api.update, api.body({**config, **changed}))

    def _kept(self, what: str, wanted: dict[str, Any], config: dict[str, Any], limits: set[str]) -> set[str]:
        """Those of the limits that are higher than wanted, each told of."""
        kept = {key for key in limits if _height(config.get(key)) > _height(wanted[key])}
        for key in sorted(kept):
            self.told(
                f"{what}: {key} stays {config.get(key)}, configured is less: {wanted[key]}; "
                "`tide-daemon admin init` lowers it, which deletes what is beyond"
            )
        return kept

    async def _apply(self, what: str, request: str, body: dict[str, Any]) -> None:
        if self.dry_run:
            self.changes.append(what)
            return
        try:
            answer = await self.connection.api(request, body)
        except BusError as refused:
            self.problems.append(f"{what}: {refused}")
            return
        if "error" in answer:
            self.problems.append(f"{what}: {answer['error'].get('description')}")
        else:
            self.changes.append(what)


def _normal(key: str, value: Any) -> Any:
    """The server leaves out what is zero or unlimited."""
    if key == "subjects":
        return sorted(value or [])
    if key in ("max_msgs_per_subject", "max_age"):
        return max(value or 0, 0)
    return value or 0


def _height(limit: int | None) -> float:
    """A limit to compare by: what is zero, negative or left out is unlimited."""
    return limit if limit is not None and limit > 0 else math.inf


def _supports_persist_mode(connection: Connection) -> bool:
    version = connection.client.connected_server_version
    return (version.major, version.minor) >= _PERSIST_MODE_SINCE
