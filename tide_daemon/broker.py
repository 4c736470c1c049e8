"""Opens the broker connection that a configuration asks for, starting the private server if it names none.

A server must serve whether or not there is a broker, so with that role among the roles the connection
is made in the background, and tried for ever. Other roles can do nothing without it: there the first
attempt must succeed, so that a wrong address ends the daemon. Later a connection that is lost, or
closed for good, is made anew whatever the roles are.
"""

import asyncio
import dataclasses
import functools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.permissions import inbox_prefix
from tide_daemon.bus.reopening import ReopeningBus
from tide_daemon.bus.topology import Topology, TopologyLimits, build_topology
from tide_daemon.config.carry import carry_over
from tide_daemon.config.daemon_sections import BusConfig
from tide_daemon.config.load import Resolved
from tide_daemon.config.sections import Config
from tide_daemon.errors import BusUnavailableError, ConfigError

log = structlog.get_logger()


_ATTEMPT_S = 10.0
"""One attempt to connect in the background: after it the reason is shown and the next one begins."""
_PREPARE_PAUSE_S = 1.0


@asynccontextmanager
async def open_bus(resolved: Resolved) -> AsyncIterator[ReopeningBus]:
    """The bus; connected, its streams and consumers made or verified, unless a server is among the roles.

    Raises:
        ConfigError: a certificate or key file cannot be used.
        BusSetupError: the private server cannot be started. Without the role server also: the server is too old,
            or streams differ from what is needed.
        BusUnavailableError: without the role server: nobody answered within bus.connect_timeout_s.
    """
    config = resolved.config
    topology = build_topology(carry_over(TopologyLimits, config.bus))
    server = private_server(config, topology) if not config.bus.url else None
    if server is not None:
        log.info("private_broker_started", url=await server.start())
    try:
        settings = connect_settings(config, server.url if server else config.bus.url, resolved.roles)
        # Nobody else's configuration speaks against ours on a private server.
        managed = functools.partial(_prepare, may_lower=server is not None)
        prepare = managed if config.bus.manage_streams else JetStreamBus.verify
        first = None if "server" in resolved.roles else await _first(settings, topology, prepare)
        background = dataclasses.replace(settings, first_connect_s=min(_ATTEMPT_S, settings.first_connect_s))
        connect = functools.partial(JetStreamBus.connect, background, topology)
        async with ReopeningBus(topology, connect, prepare, first=first, told=_told) as bus:
            yield bus
    finally:
        if server is not None:
            await server.stop()


async def _first(
    settings: ConnectSettings, topology: Topology, prepare: Callable[[JetStreamBus], Awaitable[None]]
) -> JetStreamBus:
    """A connection that may be used; see `open_bus` for what it raises.

    JetStream may start, or look for a leader, while its server takes connections already: that is waited for as long.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + settings.first_connect_s
    bus = await JetStreamBus.connect(settings, topology)
    try:
        while True:
            try:
                await prepare(bus)
                return bus
            except BusUnavailableError:
                if loop.time() >= give_up_at:
                    raise
            await asyncio.sleep(_PREPARE_PAUSE_S)
    except BaseException:
        await bus.close()
        raise


async def _prepare(bus: JetStreamBus, *, may_lower: bool) -> None:
    def told(line: str) -> None:
        log.warning("stream_limit_not_lowered", detail=line)

    for change in await bus.ensure(may_lower=may_lower, told=told):
        log.info("topology_changed", change=change)


def _told(problem: str) -> None:
    if problem:
        log.warning("broker_unusable", error=problem)
    else:
        log.info("broker_connected")


def private_server(config: Config, topology: Topology) -> EmbeddedServer:
    """A nats-server of our own under the state directory."""
    assert config.node.state_dir is not None, "the loader fills this in"
    settings = EmbeddedSettings(
        config.node.state_dir / "nats", max_store_bytes=topology.max_bytes, port=config.bus.embedded_port
    )
    return EmbeddedServer(settings, told=lambda text: log.warning("private_broker_changed", detail=text))


def connect_settings(config: Config, url: str, roles: Sequence[str]) -> ConnectSettings:
    """Who we are and how we show it. `roles` are the daemon's, or ("operator",) and ("admin",) for tools."""
    return ConnectSettings(
        urls=tuple(part.strip() for part in url.split(",")),
        name=f"tide-daemon {config.node.name}",
        inbox_prefix=inbox_prefix(roles, config.node.name),
        domain=config.bus.domain,
        nkey_seed_file=str(config.bus.nkey_file or ""),
        credentials_file=str(config.bus.credentials_file or ""),
        first_connect_s=config.bus.connect_timeout_s,
        tls=tls_context(config.bus),
    )


def tls_context(bus: BusConfig) -> ssl.SSLContext | None:
    """Whom we trust and who we are; None leaves both to the system.

    Raises:
        ConfigError: a file cannot be used.
    """
    if bus.tls_ca_file is None and bus.tls_cert_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=bus.tls_ca_file)
        if bus.tls_cert_file is not None:
            context.load_cert_chain(bus.tls_cert_file, bus.tls_key_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"bus.tls_ca_file, bus.tls_cert_file, bus.tls_key_file: cannot be used: {error}") from error
    return context
