"""Who is talked to, and who is let in: wrong authority, wrong name, no TLS, no key, another's key."""

import asyncio
import dataclasses
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.nats_deployment import OPS_NATS, Deployment
from tide_daemon.bus.connection import Connection, ConnectSettings
from tide_daemon.bus.users import User, seed_of
from tide_daemon.config import load
from tide_daemon.errors import BusError, ConfigError


async def refused(settings: ConnectSettings) -> str:
    with pytest.raises(BusError) as error:
        await Connection.open(settings)
    return str(error.value)


async def test_a_broker_of_another_authority_is_not_talked_to(deployment: Deployment, tmp_path: Path) -> None:
    """Neither with an authority of our own that did not sign it, nor with the system's."""
    command = [str(OPS_NATS / "certificates"), str(tmp_path / "other"), "localhost"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    other = ssl.create_default_context(cafile=tmp_path / "other/ca.pem")
    for context in (other, ssl.create_default_context()):
        assert "CERTIFICATE_VERIFY_FAILED" in await refused(
            deployment.settings("server:s1", tls=context, first_connect_s=2.0)
        )


async def test_a_certificate_for_another_name_is_refused(deployment: Deployment) -> None:
    """The address that was asked for must stand in it."""
    await asyncio.to_thread((deployment.folder / "etc/tls/server.key").unlink)
    command = [str(OPS_NATS / "certificates"), str(deployment.folder / "etc/tls"), "nats.example"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    deployment.stop()
    await asyncio.to_thread(deployment.start)
    assert "Hostname mismatch" in await refused(deployment.settings("server:s1", first_connect_s=2.0))


async def test_plain_text_is_not_spoken(deployment: Deployment) -> None:
    """The server asks for TLS; a client that was told nats:// upgrades, and checks the certificate all the same."""
    urls = tuple(url.replace("tls://", "nats://") for url in deployment.settings("server:s1").urls)
    settings = dataclasses.replace(deployment.settings("server:s1", tls=None, first_connect_s=2.0), urls=urls)
    assert "CERTIFICATE_VERIFY_FAILED" in await refused(settings)


async def test_a_user_without_a_known_key_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    """No key, and one that the server was not told of."""
    assert "refuses us" in await refused(deployment.settings("server:s1", nkey_seed_file=""))
    user = User(("server",), "s9")
    seed_of(tmp_path, user)
    assert "refuses us" in await refused(
        deployment.settings("server:s1", nkey_seed_file=str(tmp_path / user.file_name))
    )


def test_another_machine_needs_tls() -> None:
    """Or the operator's word that it may do without; loopback needs neither."""
    words = ["node.model=m"]
    for url in ("nats://broker:4222", "tls://a:1,nats://user:pw@10.0.0.5:4222"):
        with pytest.raises(ConfigError, match="another machine and not encrypted") as error:
            load(("controller",), None, {}, [*words, f"bus.url={url}"])
        assert "pw@" not in str(error.value)
        load(("controller",), None, {}, [*words, f"bus.url={url}", "bus.allow_plaintext=true"])
    for url in ("tls://broker:4222", "nats://127.0.0.1:4222", "nats://localhost:4222,nats://[::1]:4222"):
        load(("controller",), None, {}, [*words, f"bus.url={url}"])
