"""Faults of the controller."""

import asyncio

from fault_runs.run import Inflicting

TAKEOVER_LIMIT_S = 60.0
"""The lease lasts 5 s; the rest is for a machine that is busy with something else."""


async def controller_killed(run: Inflicting) -> None:
    stage = run.stage
    before = (await stage.role("controller"))["fencing_token"]
    version = (await stage.role("server"))["draft_version"]
    run.expect_restart("controller")
    stage.kill("controller")
    await asyncio.sleep(2.0)
    await stage.start_role("controller")
    run.over()
    await run.until("it leads", lambda: _leads(run, "controller"), 90.0)
    run.check("with a higher token", (await stage.role("controller")).get("fencing_token", 0) > before)
    run.check("the same draft runs", (await stage.role("server"))["draft_version"] == version)


async def controller_frozen(run: Inflicting) -> None:
    stage = run.stage
    await stage.start_role("controller", "controller-2")
    await run.until("a second one stands by", lambda: _ready(run, "controller-2"), 90.0)
    before = (await stage.role("controller"))["fencing_token"]
    run.expect("the frozen one is silent", "controller", lambda status: not status, lambda metrics: not metrics)
    _expect_leader(run, "controller-2")
    stage.freeze("controller")
    await run.until("the second one leads", lambda: _leads(run, "controller-2"), TAKEOVER_LIMIT_S)
    await run.seen(20.0)
    stage.thaw("controller")
    run.over()
    await asyncio.sleep(5.0)
    run.check("it has a higher token", (await stage.role("controller-2")).get("fencing_token", 0) > before)
    run.check("the first one does not lead", not await _leads(run, "controller"))
    await _remove_second(run)


async def two_controllers(run: Inflicting) -> None:
    stage = run.stage
    await stage.start_role("controller", "controller-2")
    await run.until("a second one stands by", lambda: _ready(run, "controller-2"), 90.0)
    leading = [name for name in ("controller", "controller-2") if await _leads(run, name)]
    run.check(f"one leads, not {leading}", len(leading) == 1)
    run.expect_restart("controller")
    _expect_leader(run, "controller-2")
    stage.kill("controller")
    await run.until("the second one takes over", lambda: _leads(run, "controller-2"), 60.0)
    await stage.start_role("controller")
    run.over()
    await run.until("the first one stands by", lambda: _ready(run, "controller"), 90.0)
    await _remove_second(run)


async def controller_cut_off_with_lease(run: Inflicting) -> None:
    stage = run.stage
    await stage.start_role("controller", "controller-2")
    await run.until("a second one stands by", lambda: _ready(run, "controller-2"), 90.0)
    before = (await stage.role("controller"))["fencing_token"]
    _expect_leader(run, "controller-2")
    run.expect(
        "the one that is cut off says so",
        "controller",
        lambda status: not status["roles"]["controller"]["snapshot"]["leading"],
        lambda metrics: metrics["tide_leading"] == 0,
    )
    stage.relays["controller"].hold("sent")
    await run.until("the second one leads", lambda: _leads(run, "controller-2"), TAKEOVER_LIMIT_S)
    await run.seen(20.0)
    stage.relays["controller"].release()
    run.over()
    await asyncio.sleep(5.0)
    run.check("it has a higher token", (await stage.role("controller-2")).get("fencing_token", 0) > before)
    await _remove_second(run)


def _expect_leader(run: Inflicting, name: str) -> None:
    run.expect(
        f"{name} leads",
        name,
        lambda status: status["roles"]["controller"]["snapshot"]["leading"],
        lambda metrics: metrics["tide_leading"] == 1,
    )


async def _leads(run: Inflicting, name: str) -> bool:
    return bool((await run.stage.role(name)).get("leading"))


async def _ready(run: Inflicting, name: str) -> bool:
    return bool((await run.stage.status(name)).get("ready"))


async def _remove_second(run: Inflicting) -> None:
    """Have the second one end in order, so that the first one leads again for the next row."""
    await run.seen(15.0)
    await run.stage.end("controller-2")
    run.stage.roles.pop("controller-2")
    await run.until("the first one leads again", lambda: _leads(run, "controller"), 60.0)
