"""A server node serves whatever the broker does. The engine is the modelled one; the daemon is a real process."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.test_process import DaemonProcess, get, role_words
from tests.nats_fixture import NatsServer
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.exit_codes import ExitCode
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import DesiredServer, HiddenChunk, NodeReport

CHUNKS, CONTROL = subjects.hidden("m", "t1"), subjects.control_server("m", "t1")
REPORTS = subjects.report("m", "t1", "server")


class Node:
    """A server daemon and what its endpoint says."""

    def __init__(self, url: str, state_dir: Path) -> None:
        settings = ["server.mode=modelled", "server.report_interval_s=0.2", "node.model=m"]
        words = [word for setting in settings for word in ("--set", setting)]
        self.daemon = DaemonProcess(*role_words("server", url, state_dir), *words)
        self.url = self.daemon.wait_for("status_endpoint_opened")["url"]
        self.daemon.wait_for("role_started")

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(get(f"{self.url}status")[1])
        return status

    @property
    def role(self) -> dict[str, Any]:
        snapshot: dict[str, Any] = self.status["roles"]["server"]["snapshot"]
        return snapshot

    @property
    def engine(self) -> tuple[str, int]:
        return self.role["engine"], self.role["engine_starts"]

    def until(self, condition: Callable[[], bool], what: str, within_s: float = 20.0) -> None:
        end = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {within_s} s; {self.status}"
            time.sleep(0.1)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    started: list[Node] = []
    yield started
    for node in started:
        if node.daemon.process.poll() is None:
            node.daemon.process.kill()
        node.daemon.process.communicate()


async def newest(server: NatsServer, subject: str) -> Any:
    bus = await JetStreamBus.connect(ConnectSettings((server.url,), "test"), build_topology(TopologyLimits()))
    try:
        message = await bus.last(subject)
        return None if message is None else envelope.decode(message.data)
    finally:
        await bus.close()


async def ask_for_capture(server: NatsServer) -> None:
    bus = await JetStreamBus.connect(ConnectSettings((server.url,), "test"), build_topology(TopologyLimits()))
    desired = DesiredServer("t1", 7, 1, time.time(), 0, "", (), True, 1.0, "a test")
    await bus.publish(CONTROL, envelope.encode(desired))
    await bus.close()


def test_the_engine_starts_before_the_broker_and_survives_it(
    nats_server: NatsServer, tmp_path: Path, nodes: list[Node]
) -> None:
    """The engine is ready at once and /readyz says why the bus is not; chunks and reports flow when the broker comes;
    its death and a new life do not touch the engine."""
    nats_server.stop()
    node = Node(nats_server.url, tmp_path / "state")
    nodes.append(node)
    node.until(lambda: node.engine == ("ready", 1), "the engine is ready without a broker", 5)
    node.until(lambda: "answered at" in node.status["bus"]["error"], "the reason is named")
    code, body = get(f"{node.url}readyz")
    assert code == 200 and nats_server.url in json.loads(body)["dependencies"]["bus"]
    nats_server.start()
    node.until(lambda: bool(node.status["bus"]["connected"]), "connected")
    asyncio.run(ask_for_capture(nats_server))
    node.until(lambda: node.role["applied_generation"] == 7, "desired state is reached")
    node.until(lambda: isinstance(asyncio.run(newest(nats_server, CHUNKS)), HiddenChunk), "chunks flow")
    assert isinstance(asyncio.run(newest(nats_server, REPORTS)), NodeReport)
    nats_server.kill()
    node.until(lambda: not node.status["bus"]["connected"], "the loss shows")
    assert node.engine == ("ready", 1) and get(f"{node.url}readyz")[0] == 200
    nats_server.start()
    node.until(lambda: bool(node.status["bus"]["connected"]), "connected again")
    before = asyncio.run(newest(nats_server, REPORTS)).sequence
    node.until(lambda: asyncio.run(newest(nats_server, REPORTS)).sequence > before, "reports flow again")
    assert node.engine == ("ready", 1)
    assert node.daemon.stop() == ExitCode.OK


def test_a_broker_set_up_wrongly_is_named_and_serving_goes_on(
    make_nats_server: Callable[..., NatsServer], tmp_path: Path, nodes: list[Node]
) -> None:
    """A user that may not make streams: /readyz names every refusal."""
    users = (
        "accounts { A { jetstream: enabled, users: [ { user: u, password: p, "
        'permissions { publish: { deny: ["$JS.API.STREAM.CREATE.>"] } } } ] } }'
    )
    server = make_nats_server(extra_config=users)
    node = Node(server.url.replace("//", "//u:p@"), tmp_path / "state")
    nodes.append(node)
    node.until(lambda: "stream TIDE_HIDDEN" in node.status["bus"]["error"], "the refusal is named")
    assert "permission denied" in node.status["bus"]["error"]
    assert node.engine == ("ready", 1)
    assert node.daemon.stop() == ExitCode.OK
