"""A failed role is run again after a growing pause; the others never notice."""

import asyncio

from tests.unit.daemon.fakes import ScriptedRole
from tide_daemon.clock import ManualClock
from tide_daemon.errors import BusError
from tide_daemon.roles.port import Role
from tide_daemon.supervisor import RoleRunner


async def start(runner: RoleRunner, stop: asyncio.Event) -> asyncio.Task[None]:
    runner.prepare()
    task = asyncio.create_task(runner.run(stop))
    await asyncio.sleep(0.01)
    return task


async def test_a_role_runs_until_stopped() -> None:
    """One run, drained, and the states in between."""
    role, stop = ScriptedRole(), asyncio.Event()
    runner = RoleRunner("controller", lambda: role, ManualClock(), 30)
    assert (runner.state, runner.ready()) == ("starting", False)
    task = await start(runner, stop)
    assert (runner.state, runner.ready(), runner.health()) == ("running", True, {"run": "ok", "engine": "ok"})
    stop.set()
    await task
    assert role.events == ["run", "drained"]
    assert (runner.state, runner.ready(), runner.health()) == ("stopped", False, {"run": "stopped"})


async def test_pauses_double_up_to_the_limit() -> None:
    """0.5, 1, 2, 4, 4 s: each failure is counted and told."""
    clock, stop, built = ManualClock(), asyncio.Event(), []

    def build() -> Role:
        built.append(clock.monotonic())
        return ScriptedRole(script="raise")

    runner = RoleRunner("trainer", build, clock, 4.0)
    task = await start(runner, stop)
    assert runner.health() == {"run": "failed: RuntimeError: the disk is on fire"}
    for _ in range(24):
        await clock.advance(0.5)
    assert built == [0.0, 0.5, 1.5, 3.5, 7.5, 11.5]
    assert (runner.num_failures, runner.state) == (6, "failed")
    stop.set()
    await asyncio.wait_for(task, 1)


async def test_a_calm_run_resets_the_pause() -> None:
    """A role that worked for an hour does not pay for failures of the morning."""
    clock, stop = ManualClock(), asyncio.Event()
    fail = asyncio.Event()

    class Late(ScriptedRole):
        async def run(self, stop: asyncio.Event) -> None:
            self.events.append("run")
            await fail.wait()
            raise BusError("gone")

    role = Late()
    runner = RoleRunner("server", lambda: role, clock, 60)
    task = await start(runner, stop)
    for expected in (2, 3):
        await clock.advance(100.0)
        fail.set()
        await asyncio.sleep(0.01)
        fail.clear()
        assert runner.last_error == "gone"
        await clock.advance(0.5)
        assert len(role.events) == expected
    stop.set()
    fail.set()
    await asyncio.wait_for(task, 1)


async def test_a_role_that_returns_early_is_run_again() -> None:
    """Ending by itself is a failure."""
    runner, stop = RoleRunner("server", lambda: ScriptedRole(script="return"), ManualClock(), 30), asyncio.Event()
    task = await start(runner, stop)
    assert runner.last_error == "the role ended by itself"
    stop.set()
    await asyncio.wait_for(task, 1)
