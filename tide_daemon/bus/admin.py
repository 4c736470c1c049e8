"""Creates the topology's streams and consumers on a JetStream server, or says how they differ.

Limits (bytes, age, windows) are brought up to date; anything else that differs is somebody's
decision, so it is named and left alone. A user without the right to create or change may still
verify: STREAM.INFO and CONSUMER.INFO are enough when all is as it should be.
"""

import asyncio
from typing import Any

from tide_daemon.bus.connection import Connection
from tide_daemon.bus.topology import ConsumerSpec, StreamSpec, Topology
from tide_daemon.errors import BusError, BusSetupError

_NANO = 1_000_000_000
_PERSIST_MODE_SINCE = (2, 12)
_STREAM_LIMITS = {"max_bytes", "max_age", "max_msgs_per_subject", "duplicate_window"}
_NO_SPACE = "insufficient storage"
_PAUSES_S = (0.1, 0.2, 0.4, 0.8)
_CONSUMER_LIMITS = {"ack_wait", "max_ack_pending", "max_deliver"}


async def ensure(connection: Connection, topology: Topology) -> list[str]:
    """Create what is missing, update limits, and verify the rest; returns one line per change made.

    Raises:
        BusSetupError: one line per difference or refusal.
        BusUnavailableError: the server did not answer.
    """
    changes: list[str] = []
    problems: list[str] = []
    for stream in topology.streams:
        wanted = stream_config(stream, _supports_persist_mode(connection))
        await _ensure_stream(connection, stream.name, wanted, changes, problems)
    for consumer in topology.consumers:
        api = _ConsumerApi(consumer.stream, consumer.name)
        if not problems:
            wanted = consumer_config(consumer)
            await _ensure_one(connection, f"consumer {consumer.name}", api, wanted, changes, problems)
    if problems:
        raise BusSetupError("the broker is not set up as needed:\n" + "\n".join(problems))
    return changes


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

    def __init__(self, name: str) -> None:
        self.info = f"STREAM.INFO.{name}"
        self.create = f"STREAM.CREATE.{name}"
        self.update = f"STREAM.UPDATE.{name}"

    def body(self, config: dict[str, Any]) -> dict[str, Any]:
        return config


class _ConsumerApi:
    limits = _CONSUMER_LIMITS

    def __init__(self, stream: str, name: str) -> None:
        self.info = f"CONSUMER.INFO.{stream}.{name}"
        self.create = self.update = f"CONSUMER.DURABLE.CREATE.{stream}.{name}"
        self._stream = stream

    def body(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"stream_name": self._stream, "config": config}


async def _ensure_stream(
    connection: Connection, name: str, wanted: dict[str, Any], changes: list[str], problems: list[str]
) -> None:
    """Daemons that start together may create a stream at the same moment. The server then reserves its bytes
    once for each, and may refuse one of them for want of space; a moment later the stream is there."""
    refused: list[str] = []
    for pause_s in (*_PAUSES_S, 0.0):
        refused = []
        await _ensure_one(connection, f"stream {name}", _StreamApi(name), wanted, changes, refused)
        if not any(_NO_SPACE in line for line in refused):
            break
        await asyncio.sleep(pause_s)
    problems += refused


async def _ensure_one(
    connection: Connection,
    what: str,
    api: _StreamApi | _ConsumerApi,
    wanted: dict[str, Any],
    changes: list[str],
    problems: list[str],
) -> None:
    found = await connection.api(api.info)
    error = found.get("error")
    if error is not None and error.get("code") != 404:
        problems.append(f"{what}: {error.get('description')}")
        return
    if error is not None:
        await _apply(connection, f"{what}: create", api.create, api.body(wanted), changes, problems)
        return
    config = found["config"]
    differing = {key for key, value in wanted.items() if _normal(key, config.get(key)) != _normal(key, value)}
    for key in sorted(differing - api.limits):
        problems.append(f"{what}: {key} is {config.get(key)!r}, needed is {wanted[key]!r}; change or delete it by hand")
    if differing and differing <= api.limits:
        # Keep whatever else an operator set on it.
        update = api.body({**config, **wanted})
        named = ", ".join(f"{key} {config.get(key)} -> {wanted[key]}" for key in sorted(differing))
        await _apply(connection, f"{what}: set {named}", api.update, update, changes, problems)


async def _apply(
    connection: Connection,
    what: str,
    request: str,
    body: dict[str, Any],
    changes: list[str],
    problems: list[str],
) -> None:
    try:
        answer = await connection.api(request, body)
    except BusError as refused:
        problems.append(f"{what}: {refused}")
        return
    if "error" in answer:
        problems.append(f"{what}: {answer['error'].get('description')}")
    else:
        changes.append(what)


def _normal(key: str, value: Any) -> Any:
    """The server leaves out what is zero or unlimited."""
    if key == "subjects":
        return sorted(value or [])
    if key in ("max_msgs_per_subject", "max_age"):
        return max(value or 0, 0)
    return value or 0


def _supports_persist_mode(connection: Connection) -> bool:
    version = connection.client.connected_server_version
    return (version.major, version.minor) >= _PERSIST_MODE_SINCE
