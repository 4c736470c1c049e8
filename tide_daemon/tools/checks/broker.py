"""The broker as this node's user sees it: reachable, new enough, set up, message size, clock."""

import time
from collections.abc import Sequence
from datetime import datetime

from tide_daemon.broker import connect_settings
from tide_daemon.bus.connection import HEADROOM_BYTES
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.config.carry import carry_over
from tide_daemon.config.sections import Config
from tide_daemon.errors import BusError, TideError
from tide_daemon.tools.checks.finding import FAILED, OK, SKIPPED, WARNING, Finding

_MAX_SKEW_S = 2.0
"""Reports carry their node's time; charts and `why` are off by it, and requests of operators grow old."""
_SLOW_S = 0.25


async def check_broker(config: Config, roles: Sequence[str]) -> list[Finding]:
    """Findings about bus.url; one that is skipped when a private broker will be started."""
    if not config.bus.url:
        return [Finding("broker", SKIPPED, "a private one will be started")]
    topology = build_topology(carry_over(TopologyLimits, config.bus))
    try:
        bus = await JetStreamBus.connect(connect_settings(config, config.bus.url, roles), topology)
    except TideError as error:
        return [Finding("broker", FAILED, str(error), "check bus.url, its key and certificates, and the firewall")]
    try:
        return [_version(bus), *await _setup(bus, config), _payload(bus, config, roles), await _clock(bus)]
    finally:
        await bus.close()


def _version(bus: JetStreamBus) -> Finding:
    version = bus.connection.client.connected_server_version
    return Finding("broker", OK, f"nats-server {version.major}.{version.minor}.{version.patch}")


async def _setup(bus: JetStreamBus, config: Config) -> list[Finding]:
    try:
        await bus.verify()
    except BusError as error:
        text = " ".join(str(error).split())
        if config.bus.manage_streams and "is missing" in text:
            return [Finding("streams", WARNING, text, "the daemon makes them at its start (bus.manage_streams)")]
        return [Finding("streams", FAILED, text, "tide-daemon admin init")]
    return [Finding("streams", OK, "all there")]


def _payload(bus: JetStreamBus, config: Config, roles: Sequence[str]) -> Finding:
    limit = bus.max_payload
    text = f"messages of up to {limit // 1024} KiB and {HEADROOM_BYTES // 1024} KiB of headers"
    if limit < 64 * 1024:
        return Finding("max_payload", FAILED, text, "set max_payload to 1MB in the nats-server's configuration")
    if "server" in roles and limit < config.capture.chunk_bytes:
        advice = (
            f"chunks are cut to that instead of {config.capture.chunk_bytes // 1024} KiB; max_payload: 1MB is enough"
        )
        return Finding("max_payload", WARNING, text, advice)
    return Finding("max_payload", OK, text)


async def _clock(bus: JetStreamBus) -> Finding:
    before = time.time()
    try:
        info = await bus.connection.api("STREAM.INFO.TIDE_REPORT")
        there = datetime.fromisoformat(str(info["ts"])).timestamp()
    except (BusError, KeyError, ValueError) as error:
        return Finding("clock", SKIPPED, f"the broker did not say its time: {error}")
    after = time.time()
    skew_s = max(0.0, before - there, there - after)
    text = f"{skew_s:.3f} s from the broker's, round trip {1000 * (after - before):.1f} ms"
    if skew_s > _MAX_SKEW_S:
        return Finding("clock", FAILED if skew_s > 60 else WARNING, text, "run an NTP client on both machines")
    if after - before > _SLOW_S:
        return Finding("clock", WARNING, text, "the way to the broker is slow; swaps and decisions will be too")
    return Finding("clock", OK, text)
