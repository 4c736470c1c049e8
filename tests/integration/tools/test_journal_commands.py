"""replay and why against a journal that a real controller wrote on a real nats-server."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nats_fixture import NatsServer
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.cli import main
from tide_daemon.policy.settings import PolicySettings
from tide_daemon.roles.controller import ControllerRole
from tide_daemon.wire import envelope, subjects
from tide_daemon.wire.records import NodeReport, StepStats

MODEL = "smollm2-135m"


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what is waited for is a role's snapshot
            await asyncio.sleep(0.02)


async def _lead_for_a_while(url: str) -> None:
    """A controller that hears of one node, a few times."""
    topology = build_topology(TopologyLimits())
    buses = [await JetStreamBus.connect(ConnectSettings((url,), name), topology) for name in ("node", "controller")]
    await buses[0].ensure()
    role = ControllerRole(buses[1], PolicySettings(), MODEL, "controller-1", lease_ttl_s=2, tick_s=0.1)
    stop = asyncio.Event()
    running = asyncio.create_task(role.run(stop))
    await _until(lambda: bool(role.snapshot()["leading"]))
    for sequence in range(1, 6):
        step = StepStats(4, 0, 20, 80, (), 1.0, 1.0, 0.05)
        report = NodeReport("gpu-1", 1.0, sequence, "ready", 0, "", 0, 4, 1.0, (step,), True, 0, 0, 0, 0, 0, 0, 1)
        await buses[0].publish(subjects.subject_of(MODEL, report), envelope.encode(report))
        await asyncio.sleep(0.1)
    await _until(lambda: role.snapshot()["num_nodes"] == 1)
    stop.set()
    await running
    for bus in buses:
        await bus.close()


@pytest.fixture
async def url(nats_server: NatsServer) -> str:
    await _lead_for_a_while(nats_server.url)
    await _lead_for_a_while(nats_server.url)
    return nats_server.url


def test_replay_and_why_read_the_bus(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two reigns replay the same, from the bus and from the saved file; why knows the node."""
    bus, saved = ["--url", url, "--model", MODEL], str(tmp_path / "journal.jsonl")
    assert main(["replay", "--since", "1h", "--save", saved, "--json", *bus]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["same"] and outcome["num_skipped"] == outcome["num_refused"] == 0
    assert outcome["num_compared"] >= 12
    assert main(["replay", saved]) == 0
    assert f"Same: {outcome['num_compared']} entries" in capsys.readouterr().out
    assert main(["why", "--node", "gpu-1", *bus]) == 0
    text = capsys.readouterr().out
    assert text.startswith("gpu-1: engine ready, heard of ")
    assert "There is no draft to speculate with" in text
    assert main(["why", *bus]) == 0
    assert "gpu-1 is asked for no draft and plain decoding" in capsys.readouterr().out
