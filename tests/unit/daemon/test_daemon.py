"""Start order, drain, deadline, and how each failure ends. Signals to a real process: tests/integration/cli."""

import asyncio
import re
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.unit.daemon.fakes import IdleBus, ScriptedRole, resolved
from tide_daemon.daemon import Daemon
from tide_daemon.errors import BusSetupError, ConfigError
from tide_daemon.exit_codes import ExitCode
from tide_daemon.locks import role_locks


async def started(daemon: Daemon, *roles: ScriptedRole) -> asyncio.Task[ExitCode]:
    task = asyncio.create_task(daemon.run())
    async with asyncio.timeout(10):
        for role in roles:
            await role.running.wait()
    return task


async def test_roles_drain_and_the_bus_is_closed_last(tmp_path: Path) -> None:
    """Told to stop, every role finishes, then the connection closes; exit code 0."""
    bus, roles = IdleBus(), {name: ScriptedRole(name) for name in ("trainer", "controller")}
    daemon = Daemon(resolved(tmp_path, "trainer", "controller"), bus.open, lambda name, _config, _bus: roles[name])
    task = await started(daemon, *roles.values())
    assert daemon.ready()
    assert daemon.health() == {
        "bus": "ok",
        "trainer.run": "ok",
        "trainer.engine": "ok",
        "controller.run": "ok",
        "controller.engine": "ok",
    }
    daemon._stop.set()
    assert await asyncio.wait_for(task, 10) == ExitCode.OK
    assert [role.events for role in roles.values()] == [["run", "drained"]] * 2
    assert bus.exited and not daemon.ready()


async def test_a_role_over_the_deadline_is_cut_off(tmp_path: Path) -> None:
    """It is cancelled, the others drained, and the exit code says so."""
    bus = IdleBus()
    roles = {"trainer": ScriptedRole("trainer", "never_stop"), "controller": ScriptedRole("controller")}
    config = resolved(tmp_path, "trainer", "controller", node__drain_deadline_s=0.2)
    daemon = Daemon(config, bus.open, lambda name, _config, _bus: roles[name])
    task = await started(daemon, *roles.values())
    daemon._stop.set()
    assert await asyncio.wait_for(task, 10) == ExitCode.CUT_OFF
    assert roles["trainer"].events == ["run", "cancelled"]
    assert roles["controller"].events == ["run", "drained"]


async def test_one_failing_role_leaves_the_other_running(tmp_path: Path) -> None:
    """The page says which failed; readiness is lost, liveness is not."""
    bus = IdleBus()
    roles = {"trainer": ScriptedRole("trainer", "raise"), "controller": ScriptedRole("controller")}
    daemon = Daemon(resolved(tmp_path, "trainer", "controller"), bus.open, lambda name, _config, _bus: roles[name])
    task = await started(daemon, *roles.values())
    await asyncio.sleep(0.05)
    assert daemon.health()["trainer.run"] == "failed: RuntimeError: the disk is on fire"
    assert daemon.health()["controller.run"] == "ok"
    assert not daemon.ready()
    daemon._stop.set()
    assert await asyncio.wait_for(task, 10) == ExitCode.OK


async def test_a_broker_that_refuses_ends_the_start(tmp_path: Path) -> None:
    """Exit code 3, and no role was built."""

    @asynccontextmanager
    async def refuse(_config: object):
        raise BusSetupError("nats-server 2.9 is too old")
        yield

    built: list[str] = []
    daemon = Daemon(resolved(tmp_path, "controller"), refuse, lambda name, _c, _b: built.append(name))  # type: ignore
    assert await daemon.run() == ExitCode.BROKER
    assert built == []


async def test_a_broker_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    """The roles run on; /readyz and /status say why nobody can be reached."""
    bus, role = IdleBus(), ScriptedRole("server")
    daemon = Daemon(resolved(tmp_path, "server"), bus.open, lambda *_: role)
    task = await started(daemon, role)
    bus.connected, bus.problem = False, "not connected: authorization revoked"
    assert daemon.health()["bus"] == "not connected: authorization revoked"
    assert daemon.snapshot()["bus"] == {
        "connected": False,
        "error": "not connected: authorization revoked",
        "num_losses": 0,
    }
    assert daemon.ready()
    daemon._stop.set()
    assert await asyncio.wait_for(task, 10) == ExitCode.OK
    assert role.events == ["run", "drained"]


async def test_stop_while_connecting_is_obeyed(tmp_path: Path) -> None:
    """A daemon that waits for its broker ends at once; its endpoint answers meanwhile."""
    entered = asyncio.Event()

    @asynccontextmanager
    async def hang(_config: object):
        entered.set()
        await asyncio.Event().wait()
        yield

    daemon = Daemon(resolved(tmp_path, "controller"), hang, lambda *_: ScriptedRole())
    task = asyncio.create_task(daemon.run())
    await asyncio.wait_for(entered.wait(), 10)
    assert daemon.health() == {"bus": "not connected to the broker yet", "controller.run": "starting"}
    daemon._stop.set()
    assert await asyncio.wait_for(task, 5) == ExitCode.OK


async def test_a_missing_package_is_named_before_anything_runs(tmp_path: Path) -> None:
    """Exit code 4; the other role was built but never run."""
    bus, controller = IdleBus(), ScriptedRole("controller")

    def build(name: str, _config: object, _bus: object) -> ScriptedRole:
        if name == "trainer":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return controller

    daemon = Daemon(resolved(tmp_path, "trainer", "controller"), bus.open, build)
    assert await daemon.run() == ExitCode.ROLE
    assert controller.events == []


async def test_a_builder_that_refuses_the_configuration_ends_with_usage(tmp_path: Path) -> None:
    """Exit code 2."""

    def build(*_: object) -> ScriptedRole:
        raise ConfigError("server.model_path: there is no config.json in /m")

    assert await Daemon(resolved(tmp_path, "server"), IdleBus().open, build).run() == ExitCode.USAGE


async def test_a_second_daemon_on_the_same_files_is_refused(tmp_path: Path) -> None:
    """Exit code 4, naming the process; another role of the same node may run beside it."""
    with role_locks(tmp_path, ("trainer",)):
        daemon = Daemon(resolved(tmp_path, "trainer"), IdleBus().open, lambda *_: ScriptedRole())
        assert await daemon.run() == ExitCode.ROLE
        role = ScriptedRole()
        other = Daemon(resolved(tmp_path, "controller"), IdleBus().open, lambda *_: role)
        task = await started(other, role)
        other._stop.set()
        assert await asyncio.wait_for(task, 10) == ExitCode.OK


async def test_a_taken_status_port_ends_with_usage(tmp_path: Path) -> None:
    """Found before the broker is asked for anything."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        daemon = Daemon(resolved(tmp_path, "controller", status__port=port), IdleBus().open, lambda *_: ScriptedRole())
        assert await daemon.run() == ExitCode.USAGE


async def test_a_state_directory_that_cannot_be_made_ends_with_usage(tmp_path: Path) -> None:
    """A file in its place, for instance."""
    (tmp_path / "file").write_text("")
    daemon = Daemon(resolved(tmp_path / "file" / "state", "controller"), IdleBus().open, lambda *_: ScriptedRole())
    assert await daemon.run() == ExitCode.USAGE


async def test_the_endpoint_shows_the_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/status, /readyz and /metrics of a running daemon agree with its roles."""
    role = ScriptedRole("server")
    daemon = Daemon(resolved(tmp_path, "server"), IdleBus().open, lambda *_: role)
    task = await started(daemon, role)
    found = re.search(r"http://127\.0\.0\.1:\d+/", capsys.readouterr().out)
    assert found is not None
    async with aiohttp.ClientSession(found[0]) as session:
        status = await (await session.get("status")).json()
        assert status["roles"]["server"]["snapshot"]["draft_version"] == 7
        assert (await session.get("readyz")).status == 200
        assert 'tide_rows_dropped_total{model="target",node="n1"} 3.0' in await (await session.get("metrics")).text()
    daemon._stop.set()
    assert await asyncio.wait_for(task, 10) == ExitCode.OK
