"""Faults of the broker."""

import asyncio
import time

from fault_runs.run import Inflicting
from fault_runs.stage import ROLES, users_config
from tide_daemon.bus.topology import MIB


async def broker_killed(run: Inflicting) -> None:
    stage = run.stage
    run.expect_bus_lost()
    await asyncio.to_thread(stage.nats.kill)
    await asyncio.sleep(10.0)
    await _answered_meanwhile(run)
    await asyncio.to_thread(stage.nats.start)
    run.over()


async def broker_restarted(run: Inflicting) -> None:
    run.expect_bus_lost()
    await asyncio.to_thread(run.stage.nats.stop)
    await asyncio.sleep(2.0)
    await asyncio.to_thread(run.stage.nats.start)
    run.over()


async def broker_frozen_60s(run: Inflicting) -> None:
    run.expect_bus_lost()
    await asyncio.to_thread(run.stage.nats.freeze)
    await asyncio.sleep(60.0)
    await _answered_meanwhile(run)
    run.stage.nats.thaw()
    run.over()


async def broker_unreachable_5min(run: Inflicting) -> None:
    stage = run.stage
    run.expect_bus_lost()
    for role in ROLES:
        stage.relays[role].hold()
    await asyncio.sleep(300.0)
    await _answered_meanwhile(run)
    run.notes["rows_dropped"] = (await stage.role("server")).get("rows_dropped")
    for role in ROLES:
        # What waited in a network that lost it never arrives.
        stage.relays[role].break_off()
        stage.relays[role].release()
    run.over()


async def broker_max_payload_lowered(run: Inflicting) -> None:
    stage = run.stage
    held = stage.nats.max_payload
    published = (await stage.role("server"))["rows_published"]
    stage.nats.max_payload = 64 * 1024
    await asyncio.to_thread(stage.nats.reload)

    async def flows() -> bool:
        return (await stage.role("server"))["rows_published"] > published + 50

    await run.until("rows flow in smaller chunks", flows, 60.0)
    shown = await stage.role("server")
    run.check("no chunk was dropped", shown["chunks_dropped"] == 0)
    stage.nats.max_payload = held
    await asyncio.to_thread(stage.nats.reload)
    run.over()


async def broker_permission_revoked(run: Inflicting) -> None:
    stage = run.stage
    run.expect_unwell("server", "server.samples", "hidden")
    stage.nats.extra_config = users_config({"server": "tide.v1.hidden.>"})
    await asyncio.to_thread(stage.nats.reload)
    began = time.time()
    await asyncio.sleep(20.0)
    newest = run.observer.reports[-1]
    run.check("reports still come", newest.at > began)
    stage.nats.extra_config = users_config({})
    await asyncio.to_thread(stage.nats.reload)
    run.over()


async def broker_disk_full(run: Inflicting) -> None:
    stage = run.stage
    store = stage.folder / "nats" / "store"
    run.expect(
        "somebody says that the broker refuses",
        "server",
        lambda status: (
            any(words != "ok" for words in status["health"].values())
            or status["roles"]["server"]["snapshot"]["chunks_waiting"] > 0
        ),
        lambda metrics: metrics["tide_chunks_waiting"] > 0 or metrics["tide_bus_connected"] == 0,
    )
    ballast = await asyncio.to_thread(stage.fill, store)
    await asyncio.sleep(20.0)
    ballast.unlink()
    # A stream that met a full disk stays broken until the server restarts, see ops/nats/single.conf.
    await asyncio.to_thread(stage.nats.stop)
    await asyncio.to_thread(stage.nats.start)
    run.over()


async def broker_store_full(run: Inflicting) -> None:
    stage = run.stage
    await stage.train(True)
    run.expect_unwell("trainer", "trainer.training", "full")
    await _set_draft_limit(run, MIB)
    await run.seen(240.0)
    published = (await stage.role("trainer")).get("candidates_published")
    await _set_draft_limit(run, 256 * MIB)
    run.over()

    async def more() -> bool:
        return (await stage.role("trainer"))["candidates_published"] > (published or 0)

    await run.until("the candidate is published once there is room", more, 120.0)
    await stage.train(False)


async def _set_draft_limit(run: Inflicting, max_bytes: int) -> None:
    async with run.stage.bus() as bus:
        info = await bus.connection.api("STREAM.INFO.TIDE_DRAFT")
        config = {**info["config"], "max_bytes": max(max_bytes, info["state"]["bytes"])}
        answer = await bus.connection.api("STREAM.UPDATE.TIDE_DRAFT", config)
        run.check(f"the limit is changed: {answer.get('error')}", "error" not in answer)


async def _answered_meanwhile(run: Inflicting) -> None:
    """Requests that begin while the broker is away are answered; on a busy machine that takes its time."""
    clients = run.clients
    if clients is None:
        return
    since = time.monotonic()

    async def answered() -> bool:
        return {each.streamed for each in clients.requests if each.started > since and not each.error} == {True, False}

    await run.until("requests go on without the broker", answered, 60.0)
