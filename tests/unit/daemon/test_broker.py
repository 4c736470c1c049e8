"""How [bus] becomes a connection. Against real servers: tests/contract and tests/integration/cli."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.daemon.fakes import resolved
from tide_daemon import broker
from tide_daemon.broker import connect_settings, tls_context
from tide_daemon.bus import admin
from tide_daemon.bus.connection import Connection, ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import Topology, TopologyLimits, build_topology
from tide_daemon.errors import BusSetupError, BusUnavailableError, ConfigError

TOPOLOGY = build_topology(TopologyLimits())


def test_the_sections_values_reach_the_connection(tmp_path: Path) -> None:
    """Several addresses, files and the time limit."""
    path = tmp_path / "user.creds"
    path.write_text("")
    config = resolved(tmp_path, "controller", bus__credentials_file=path, bus__connect_timeout_s=3).config
    settings = connect_settings(config, "nats://a:1,nats://b:2", ("controller",))
    assert settings.urls == ("nats://a:1", "nats://b:2")
    assert (settings.credentials_file, settings.nkey_seed_file, settings.first_connect_s) == (str(path), "", 3.0)
    assert settings.tls is None and settings.inbox_prefix == "_INBOX.controller.n1"


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    """Naming the settings."""
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")
    bus = resolved(tmp_path, "controller", bus__url="tls://a:1", bus__tls_ca_file=path).config.bus
    with pytest.raises(ConfigError, match=r"bus\.tls_ca_file"):
        tls_context(bus)


class Connected:
    """A connection that was made; says whether it was closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Connected:
    """What every connection is here."""
    made = Connected()

    async def connect(settings: ConnectSettings, topology: Topology) -> Connected:
        return made

    monkeypatch.setattr(broker.JetStreamBus, "connect", connect)
    monkeypatch.setattr(broker, "_PREPARE_PAUSE_S", 0.01)
    return made


async def test_a_jetstream_that_still_starts_is_waited_for(connected: Connected) -> None:
    """Its server takes connections already; ending at once, again and again, a daemon would be given up by systemd."""
    tries = 0

    async def prepare(bus: JetStreamBus) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise BusUnavailableError("JetStream is starting or leaderless")

    settings = ConnectSettings(("nats://a:1",), "n1", first_connect_s=30.0)
    assert await broker._first(settings, TOPOLOGY, prepare) is cast(Any, connected)
    assert (tries, connected.closed) == (4, False)


@pytest.mark.parametrize("error", [BusUnavailableError("starting"), BusSetupError("other subjects")])
async def test_but_not_for_longer_than_for_a_connection(connected: Connected, error: Exception) -> None:
    """And not at all for what waiting does not change."""
    started = asyncio.get_running_loop().time()

    async def prepare(bus: JetStreamBus) -> None:
        raise error

    with pytest.raises(type(error)):
        await broker._first(ConnectSettings(("nats://a:1",), "n1", first_connect_s=0.2), TOPOLOGY, prepare)
    took_s = asyncio.get_running_loop().time() - started
    assert connected.closed and (took_s >= 0.2) == isinstance(error, BusUnavailableError)


async def test_a_cluster_without_a_leader_is_no_wrong_setup() -> None:
    """It answers, with an error that passes."""

    async def api(request: str, body: object = None) -> dict[str, object]:
        return {"error": {"code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable"}}

    version = SimpleNamespace(major=2, minor=12)
    connection = SimpleNamespace(api=api, client=SimpleNamespace(connected_server_version=version))
    with pytest.raises(BusUnavailableError, match="temporarily unavailable"):
        await admin.ensure(cast(Connection, connection), TOPOLOGY)
