"""What is told of a connection that is not there."""

import socket

import pytest

from tide_daemon.bus.connection import Connection, ConnectSettings
from tide_daemon.errors import BusError, BusSetupError, BusUnavailableError


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("login", ["anna:s3cret", "anna:s3@cret", "s3cret"])
async def test_no_password_is_told(login: str) -> None:
    """What is raised and what `problem` says end in logs and on the page; the host is told."""
    host = f"127.0.0.1:{closed_port()}"
    settings = ConnectSettings((f"nats://{login}@{host}",), "test", first_connect_s=0.2)
    with pytest.raises(BusUnavailableError) as raised:
        await Connection.open(settings)
    told = [str(raised.value), Connection(settings).problem]
    assert all(host in text and "cret" not in text and "s3" not in text for text in told)


async def test_no_part_of_a_password_with_a_slash_is_told() -> None:
    """Such an address cannot be used, and what says so is logged as well."""
    settings = ConnectSettings(("nats://anna:s3/cret@127.0.0.1:1",), "test", first_connect_s=0.2)
    with pytest.raises(BusError) as raised:
        await Connection.open(settings)
    assert isinstance(raised.value, BusSetupError)
    assert "cret" not in str(raised.value) and "s3" not in str(raised.value)
