import json

import pytest

from schemas.examples import EXAMPLES
from tests.nats_fixture import NatsServer
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.cli import main
from tide_daemon.wire.envelope import encode
from tide_daemon.wire.subjects import message_id, subject_of

MODEL = "smollm2-135m"


@pytest.fixture
async def url(nats_server: NatsServer) -> str:
    """A real server that holds one message of every example."""
    bus = await JetStreamBus.connect(ConnectSettings((nats_server.url,), "test"), build_topology(TopologyLimits()))
    await bus.ensure()
    for record in EXAMPLES.values():
        await bus.publish(subject_of(MODEL, record), encode(record), message_id=message_id(MODEL, record))
    await bus.close()
    return nats_server.url


def test_peek_shows_stored_messages(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peek", "TIDE_JOURNAL", "--seq", "1", "--url", url]) == 0
    assert "kind: Decision" in capsys.readouterr().out
    assert main(["peek", "--last", f"tide.v1.control.{MODEL}.server.gpu-1", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fields"]["node"] == "gpu-1"
    assert main(["peek", "TIDE_JOURNAL", "--seq", "99", "--url", url]) == 1
    assert "no message" in capsys.readouterr().out
