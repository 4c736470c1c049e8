"""Faults of the broker."""

import asyncio
import shutil
import time

from fault_runs.deployed import DeployedStage
from fault_runs.run import Inflicting
from fault_runs.stage import ROLES, users_config
from tests.nats_deployment import make_certificate
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
    before = await stage.role("server")
    stage.nats.max_payload = 64 * 1024
    await asyncio.to_thread(stage.nats.reload)

    async def flows() -> bool:
        return (await stage.role("server"))["rows_published"] > before["rows_published"] + 50

    await run.until("rows flow in smaller chunks", flows, 60.0)
    shown = await stage.role("server")
    # Of the server's whole life: a fault before this one may have cost some.
    num_dropped = shown["chunks_dropped"] - before["chunks_dropped"]
    run.check(f"no chunk was dropped, but {num_dropped}", not num_dropped)
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
    run.expect_unwell("trainer", "trainer.training", "max_bytes")
    await _set_draft_limit(run, 0)
    await run.seen(240.0)
    published = (await stage.role("trainer")).get("candidates_published")
    await _set_draft_limit(run, 256 * MIB)
    run.over()

    async def more() -> bool:
        return (await stage.role("trainer"))["candidates_published"] > (published or 0)

    await run.until("the candidate is published once there is room", more, 120.0)
    await stage.train(False)


async def cluster_leader_lost(run: Inflicting) -> None:
    """It stays dead: what must come back does so with two of three."""
    stage = run.stage
    assert isinstance(stage, DeployedStage)
    lost = await stage.broker_of("trainer")
    await run.until(f"{lost} leads all streams", lambda: stage.has_lead(lost), 60.0)
    for name in ROLES:
        if await stage.broker_of(name) == lost:
            _expect_loss_counted(run, name, (await stage.metrics(name))["tide_bus_losses_total"])
    await asyncio.to_thread(stage.brokers.kill, lost)
    run.over()

    async def others_lead() -> bool:
        return all(leader not in ("", lost) for leader in (await stage.leaders()).values())

    await run.until("others lead all streams", others_lead, 60.0)
    run.notes["others_lead_after_s"] = round(time.monotonic() - run.ended_at, 1)


async def certificate_expired(run: Inflicting) -> None:
    stage = run.stage
    assert isinstance(stage, DeployedStage)
    tls = stage.brokers.folder / "etc" / "tls"
    run.expect_bus_lost()
    for role in ROLES:
        run.expect_unwell(role, "bus", "certificate has expired")
    await asyncio.to_thread(stage.brokers.stop)
    valid = await asyncio.to_thread(shutil.copytree, tls, tls.with_name("valid"))
    await asyncio.to_thread(make_certificate, tls, -1)
    await asyncio.to_thread(stage.brokers.start)
    await asyncio.sleep(20.0)
    await _answered_meanwhile(run)
    await asyncio.to_thread(stage.brokers.stop)
    await asyncio.to_thread(shutil.copytree, valid, tls, dirs_exist_ok=True)
    await asyncio.to_thread(stage.brokers.start)
    run.over()


def _expect_loss_counted(run: Inflicting, name: str, before: float) -> None:
    """It finds another broker within a second, which a page that is looked at now and then would not show."""
    run.expect(
        f"{name} lost its broker",
        name,
        lambda status: status["bus"]["num_losses"] > before,
        lambda metrics: metrics["tide_bus_losses_total"] > before,
    )


async def _set_draft_limit(run: Inflicting, max_bytes: int) -> None:
    """Or what the stream holds, if that is more."""
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
