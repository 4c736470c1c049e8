"""How [bus] becomes a connection. Against real servers: tests/contract and tests/integration/cli."""

from pathlib import Path

import pytest

from tests.unit.daemon.fakes import resolved
from tide_daemon.broker import connect_settings, tls_context
from tide_daemon.errors import ConfigError


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
