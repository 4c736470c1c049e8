"""`tide-daemon admin` against real brokers: make, compare, migrate, and what cannot be migrated."""

import json
from asyncio import to_thread
from pathlib import Path

import pytest

from tests.nats_deployment import Deployment
from tests.nats_fixture import NatsServer
from tide_daemon import cli
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.exit_codes import ExitCode

TOPOLOGY = build_topology(TopologyLimits())
Output = pytest.CaptureFixture[str]


def init(url: str, *words: str) -> int:
    return cli.main(["admin", "init", "--url", url, *words])


async def api(url: str, request: str, body: dict[str, object] | None = None) -> dict[str, object]:
    bus = await JetStreamBus.connect(ConnectSettings((url,), "test"), TOPOLOGY)
    try:
        return await bus.connection.api(request, body)
    finally:
        await bus.close()


def test_init_is_idempotent_and_a_dry_run_changes_nothing(nats_server: NatsServer, capsys: Output) -> None:
    """Dry: all would be made, exit code 1, and nothing was. Then it is, once."""
    assert init(nats_server.url, "--dry-run") == ExitCode.FAILED
    told = capsys.readouterr().out.splitlines()
    assert told == [
        *(f"stream {stream.name}: would create" for stream in TOPOLOGY.streams),
        *(f"consumer {consumer.name}: would create" for consumer in TOPOLOGY.consumers),
    ]
    assert init(nats_server.url, "--json") == ExitCode.OK
    assert len(json.loads(capsys.readouterr().out)["changes"]) == len(told)
    assert init(nats_server.url) == ExitCode.OK
    assert capsys.readouterr().out.endswith("are as they should be\n")
    assert init(nats_server.url, "--dry-run", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == {"dry_run": True, "changes": []}


async def test_init_migrates_what_the_server_lets_be_changed(
    nats_server: NatsServer, capsys: Output, tmp_path: Path
) -> None:
    """A limit, a kept subject of old, and a stream that refused nothing: differences first, then changed, data kept."""
    url = nats_server.url
    old = {"name": "TIDE_DRAFT", "subjects": ["tide.v1.draft.>", "tide.v0.draft.>"], "max_bytes": 1 << 30}
    await api(url, "STREAM.CREATE.TIDE_DRAFT", {**old, "storage": "file", "retention": "limits", "discard": "old"})
    bus = await JetStreamBus.connect(ConnectSettings((url,), "test"), TOPOLOGY)
    await bus.publish("tide.v1.draft.m.00000001.claim", b"kept")
    await bus.close()
    file = tmp_path / "tide.toml"
    file.write_text(f'[bus]\nurl = "{url}"\ndraft_max_bytes = 3_000_000_000\n')
    assert await to_thread(cli.main, ["admin", "init", "--config", str(file), "--dry-run"]) == ExitCode.FAILED
    told = capsys.readouterr().out
    assert "TIDE_DRAFT: would set allow_direct False -> True, discard old -> new," in told
    assert "max_bytes 1073741824 -> 3000000000" in told and "tide.v0" in told
    assert await to_thread(cli.main, ["admin", "init", "--config", str(file)]) == ExitCode.OK
    info = await api(url, "STREAM.INFO.TIDE_DRAFT")
    config, state = info["config"], info["state"]
    assert isinstance(config, dict) and isinstance(state, dict)
    assert (config["discard"], config["subjects"], config["max_bytes"]) == ("new", ["tide.v1.draft.>"], 3_000_000_000)
    assert state["messages"] == 1
    assert await to_thread(cli.main, ["admin", "init", "--config", str(file), "--dry-run"]) == ExitCode.OK


async def test_what_cannot_be_migrated_is_named(nats_server: NatsServer, capsys: Output) -> None:
    """A stream in memory stays one; nothing else of it is touched."""
    body = {"name": "TIDE_JOURNAL", "subjects": ["tide.v1.journal.>"], "storage": "memory", "max_bytes": 1 << 20}
    await api(nats_server.url, "STREAM.CREATE.TIDE_JOURNAL", body)
    assert await to_thread(init, nats_server.url) == ExitCode.FAILED
    assert "stream TIDE_JOURNAL: storage is 'memory', needed is 'file'; delete it by hand" in capsys.readouterr().err


def test_init_needs_no_right_to_read(made: Deployment, capsys: Output) -> None:
    """The admin of the generated users can do it, over TLS, again and dry."""
    capsys.readouterr()
    assert cli.main(["admin", "init", "--dry-run", "--config", str(made.config_file("admin:a1"))]) == ExitCode.OK
    assert "are as they should be" in capsys.readouterr().out


def test_users_are_made_once(tmp_path: Path, capsys: Output) -> None:
    """A second run keeps every key and adds the new user; the server's file holds no seed."""
    command = ["admin", "users", "--folder", str(tmp_path), "--model", "m", "--json"]
    assert cli.main([*command, "server:s1"]) == ExitCode.OK
    seed = (tmp_path / "server.s1.nk").read_text()
    assert cli.main([*command, "server:s1", "server+controller:s2"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["made"] == ["server-controller.s2.nk"]
    assert (tmp_path / "server.s1.nk").read_text() == seed
    assert (tmp_path / "server.s1.nk").stat().st_mode & 0o777 == 0o600
    text = (tmp_path / "users.conf").read_text()
    assert seed not in text and text.count("nkey: U") == 2


@pytest.mark.parametrize("user", ["server", "boss:x", "server+boss:x", "server:a.b", "server:", ":x"])
def test_wrong_users_are_refused(user: str, tmp_path: Path, capsys: Output) -> None:
    """With the form that is wanted."""
    assert cli.main(["admin", "users", "--folder", str(tmp_path), "--model", "m", user]) == ExitCode.USAGE
    assert "must be ROLE:NAME" in capsys.readouterr().err
