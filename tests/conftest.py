"""Fixtures for every test: a real nats-server, one for each test that asks."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.nats_fixture import NatsServer

# Tests do not time: how long an example takes says more about the machine's other load than about the code.
settings.register_profile("tide", deadline=None)
settings.load_profile("tide")


@pytest.fixture
def make_nats_server(tmp_path: Path) -> Iterator[Callable[..., NatsServer]]:
    """Starts further servers with given settings; all are stopped after the test."""
    servers: list[NatsServer] = []

    def make(**settings: object) -> NatsServer:
        server = NatsServer(tmp_path / f"nats-{len(servers)}", **settings)  # type: ignore[arg-type]
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def nats_server(make_nats_server: Callable[..., NatsServer]) -> NatsServer:
    """A healthy nats-server with JetStream, its own port and an empty store."""
    return make_nats_server()
